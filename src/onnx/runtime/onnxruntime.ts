// Wraps ONNX Runtime's JavaScript API, which onnxruntime-node and onnxruntime-web share, as a Runtime.
// API: https://onnxruntime.ai/docs/api/js/

import {
  didYouMean,
  FileError,
  messageOf,
  openFilesHint,
  RuntimeError,
  UnsupportedError,
} from '../../core/base/errors.js'
import type { GpuCopies } from './gpu-copies.js'
import {
  type Feeds,
  freeOnGpu,
  isOnGpu,
  keepsOnGpu,
  type OutputOptions,
  type Runtime,
  type RuntimeSession,
  type RuntimeTensor,
  type SessionModel,
  type SessionOptions,
  withoutFloat16Array,
} from './runtime.js'

/**
 * The members of the module object of onnxruntime-node or onnxruntime-web that we use. With this type, our declarations
 * do not depend on another package.
 */
export interface OrtModule {
  /** Opens sessions: https://onnxruntime.ai/docs/api/js/interfaces/InferenceSessionFactory.html */
  readonly InferenceSession: { create(model: Uint8Array, options?: Record<string, unknown>): Promise<OrtSession> }
  /** https://onnxruntime.ai/docs/api/js/interfaces/TensorConstructor.html */
  readonly Tensor: new (
    type: never,
    data: never,
    dims: readonly number[],
  ) => unknown
  /** The providers that onnxruntime-node has on this system. */
  listSupportedBackends?(): readonly { readonly name: string }[]
  /**
   * Settings of the module. `versions` is read for reports. `wasm` says where the .wasm file of onnxruntime-web is, and
   * how many threads to use.
   */
  readonly env?: {
    logLevel?: string
    readonly versions?: Readonly<Record<string, string | undefined>>
    readonly wasm?: { wasmPaths?: unknown; numThreads?: number }
  }
}

interface OrtSession {
  readonly inputNames: readonly string[]
  readonly outputNames: readonly string[]
  run(feeds: Record<string, unknown>, fetches: readonly string[]): Promise<Record<string, unknown>>
  release(): Promise<void>
}

/**
 * Wraps the module object of onnxruntime-node or onnxruntime-web. Sessions run in this thread, and each run blocks it.
 *
 * @param name a name for reports; by default the package's name and version
 * @param ownsThread whether other code in this thread may be affected: then numbers below 1.2e-38 become zero in the
 *   whole thread, which makes softmax of masked scores several times as fast
 */
export function runtimeOf(ort: OrtModule, name?: string, ownsThread = false): Runtime {
  const versions = ort.env?.versions ?? {}
  const flavour = versions.node !== undefined ? 'node' : 'web'
  let copies: Promise<GpuCopies> | undefined
  const loadCopies = async () => {
    const { GpuCopies } = await import('./gpu-copies.js')
    const tensorOf = ({ type, data, dims }: RuntimeTensor) => new ort.Tensor(type as never, data as never, dims)
    return new GpuCopies((model, options) => ort.InferenceSession.create(model, options), tensorOf, runError)
  }
  const gpuCopies = () => {
    copies ??= loadCopies()
    return copies
  }
  return {
    name: name ?? `onnxruntime-${flavour} ${versions[flavour] ?? versions.common ?? ''}`.trim(),
    async createSession(model, options = {}) {
      checkProviders(ort, options.executionProviders)
      let session: OrtSession
      try {
        const ortOptions = sessionOptions(model, options, ownsThread)
        if (model.weights !== undefined) ortOptions.externalData = await Promise.all(model.weights.map(contentOf))
        session = await ort.InferenceSession.create(model.graph, ortOptions)
      } catch (cause) {
        if (cause instanceof FileError) throw cause
        const { missingKernel } = await import('./missing-kernels.js')
        const missing = missingKernel(messageOf(cause), options.executionProviders ?? [], cause)
        if (missing !== undefined) throw missing
        throw new RuntimeError({
          where: 'ONNX Runtime',
          what: `it cannot open the graph: ${messageOf(cause)}`,
          hint: openFilesHint(messageOf(cause)) ?? openingHint(messageOf(cause), options.executionProviders),
          cause,
        })
      }
      const used = keepsOnGpu(options) ? await gpuCopies() : undefined
      return new WrappedSession(ort, session, options.keepsTensors === true, used)
    },
    toHost: async (tensor) => (await gpuCopies()).toHost(tensor),
  }
}

async function contentOf({ location: path, data }: NonNullable<SessionModel['weights']>[number]) {
  if (data instanceof Uint8Array) return { path, data }
  try {
    return { path, data: new Uint8Array(await data.arrayBuffer()) }
  } catch (cause) {
    throw new FileError({ where: path, what: 'cannot be read', hint: 'Pick the file again', cause })
  }
}

/** Sets the number of threads of onnxruntime-web. It can be set only here, and only before the first session. */
export function setWebThreads({ env }: OrtModule, threads: number | undefined): void {
  if (threads !== undefined && env?.wasm !== undefined) env.wasm.numThreads = threads
}

/** @throws UnsupportedError for a provider that this system does not have */
export function checkProviders(ort: OrtModule, providers: readonly string[] = []): void {
  const available = ort.listSupportedBackends?.().map(({ name }) => name)
  const missing = providers.find((name) => available?.includes(name) === false)
  if (missing === undefined) return
  throw new UnsupportedError({
    where: 'device',
    what: 'ONNX Runtime has no such provider on this system',
    expected: available?.join(', '),
    got: missing,
    hint: didYouMean(missing === 'gpu' ? 'webgpu' : missing, available ?? []),
  })
}

function openingHint(message: string, providers: readonly string[] = []): string | undefined {
  const isPage = typeof globalThis.navigator === 'object' && globalThis.process?.versions?.node === undefined
  if (isPage && providers.includes('webgpu')) {
    return 'gpu' in globalThis.navigator
      ? 'WebGPU needs a build of onnxruntime-web with it: ort.webgpu.bundle.min.mjs, and its .wasm file'
      : 'WebGPU needs https or localhost, and a browser with it. Choose device: wasm'
  }
  const device = providers.find((name) => name !== 'cpu')
  if (device !== undefined && /AppendExecutionProvider|RequestAdapterStatus/.test(message)) {
    return `The device ${device} does not start: its driver or libraries are missing. Choose \`device: 'cpu'\``
  }
  if (!/no available backend/.test(message)) return undefined
  return 'In a browser its .wasm file lies beside its script, or webRuntime(url, wasm) is told where it is'
}

/** Messages that mean the browser has taken away the GPU. ONNX Runtime has no error class for it. */
const GPU_LOST = /device (was |is )?lost|MapAsyncStatus|external Instance reference no longer exists/i

function runError(cause: unknown): RuntimeError {
  if (!GPU_LOST.test(messageOf(cause))) {
    return new RuntimeError({ where: 'ONNX Runtime', what: `the run failed: ${messageOf(cause)}`, cause })
  }
  return new RuntimeError({
    where: 'WebGPU',
    what: `the GPU was lost in the middle of a run: ${messageOf(cause)}`,
    hint: 'Open the session again, or go on with resume: true. If it is lost again, use smaller batches, or device: wasm',
    cause,
  })
}

/** How many held feeds keep GPU copies. ONNX Runtime does not free the copies, and fails at exit if any are left. */
const KEPT_COPIES = 4

class WrappedSession implements RuntimeSession {
  #session: OrtSession | undefined
  /** Tensors of feeds that are used again, such as a cache that grows in place. */
  readonly #tensors = new WeakMap<RuntimeTensor, object>()
  readonly #held = new WeakMap<Feeds, Record<string, unknown>>()
  readonly #copied: { readonly held: Feeds; readonly copied: readonly RuntimeTensor[] }[] = []
  /** Set after the GPU is lost. Another run, or the release, could wait forever for an answer. */
  #lost: RuntimeError | undefined
  readonly inputNames: readonly string[]
  readonly outputNames: readonly string[]

  constructor(
    private readonly ort: OrtModule,
    session: OrtSession,
    private readonly keepsTensors: boolean,
    /** Copies held feeds to the GPU. Undefined if the session does not run there. */
    private readonly copies: GpuCopies | undefined,
  ) {
    this.#session = session
    this.inputNames = session.inputNames
    this.outputNames = session.outputNames
  }

  async run(feeds: Feeds, outputNames?: readonly string[], held?: Feeds): Promise<Record<string, RuntimeTensor>> {
    if (this.#session === undefined) throw new RuntimeError({ where: 'ONNX Runtime', what: 'the session is disposed' })
    if (this.#lost !== undefined) throw this.#lost
    // Add this run's feeds to the object with the held tensors, and remove them afterwards. Copying the held ones,
    // which may be hundreds, into a new object would take longer than some layers take to run.
    const tensors = held === undefined ? Object.create(null) : (this.#held.get(held) ?? (await this.#hold(held)))
    const names = Object.keys(feeds).filter((name) => !(name in tensors))
    const made = names.map((name) => this.#tensor(name, feeds[name]))
    let results: Record<string, unknown>
    try {
      names.forEach((name, i) => {
        tensors[name] = made[i]
      })
      results = await this.#session.run(tensors, outputNames ?? this.outputNames)
    } catch (cause) {
      const error = runError(cause)
      if (GPU_LOST.test(messageOf(cause))) this.#lost = error
      throw error
    } finally {
      // Remove the tensors: if they stayed here, they would keep a whole cache in memory.
      if (held !== undefined) for (const name of names) delete tensors[name]
    }
    if (this.keepsTensors) return results as Record<string, RuntimeTensor>
    const plain = Object.entries(results as Record<string, RuntimeTensor>).map(([name, tensor]) => {
      if (isOnGpu(tensor)) return [name, tensor] as const
      const { type, data, dims } = tensor
      return [name, { type, data: withoutFloat16Array(data), dims }] as const
    })
    return Object.fromEntries(plain)
  }

  async #hold(held: Feeds): Promise<Record<string, unknown>> {
    // The object has no prototype, because a name in a file may be __proto__.
    const tensors: Record<string, unknown> = Object.create(null)
    const copied: RuntimeTensor[] = []
    for (const name of Object.keys(held)) {
      const tensor = held[name]
      if (this.copies !== undefined) {
        const copy = await this.copies.toGpu(tensor)
        tensors[name] = this.#tensor(name, copy)
        copied.push(copy)
        continue
      }
      const made = this.#tensor(name, tensor) as RuntimeTensor
      tensors[name] = made
      // ONNX Runtime's native code reads `data` and `location` of every tensor in every run. Getters would call back
      // into JavaScript each time.
      if (made !== tensor) Object.defineProperties(made, { data: { value: made.data }, location: { value: 'cpu' } })
    }
    this.#held.set(held, tensors)
    if (this.copies !== undefined) this.#copied.push({ held, copied })
    this.#freeCopies(KEPT_COPIES)
    return tensors
  }

  #tensor(name: string, tensor: RuntimeTensor): unknown {
    if (isOnGpu(tensor) || (this.keepsTensors && 'location' in tensor)) return tensor
    const known = this.#tensors.get(tensor)
    if (known !== undefined) return known
    try {
      const { type, data, dims } = tensor
      const made = new this.ort.Tensor(type as never, data as never, dims) as object
      this.#tensors.set(tensor, made)
      return made
    } catch (cause) {
      throw new RuntimeError({ where: `input ${name}`, what: `not a tensor: ${messageOf(cause)}`, cause })
    }
  }

  #freeCopies(kept: number): void {
    for (const { held, copied } of this.#copied.splice(0, Math.max(0, this.#copied.length - kept))) {
      this.#held.delete(held)
      freeOnGpu(...copied)
    }
  }

  async dispose(): Promise<void> {
    const session = this.#session
    this.#session = undefined
    this.#freeCopies(0)
    if (this.#lost === undefined) await session?.release()
  }
}

/**
 * Optimizers that would undo what the graph does on purpose. The first merges nodes that compute the same. The second
 * makes all slices of a tensor at once, instead of each right before it is read.
 */
const DISTURBING_OPTIMIZERS = 'CommonSubexpressionElimination;GatherSliceToSplitFusion'

function sessionOptions(
  model: SessionModel,
  options: SessionOptions & OutputOptions,
  ownsThread: boolean,
): Record<string, unknown> {
  const { threads, executionProviders, gpuOutputs = [], profilePrefix } = options
  const isOnCpu = ['cpu', 'wasm'].includes(executionProviders?.[0] ?? 'cpu')
  const stays = keepsOnGpu(options) ? gpuOutputs.map((name) => [name, 'gpu-buffer']) : []
  const entries: Record<string, string> = {}
  if (model.weightsFolder !== undefined) entries.model_external_initializers_file_folder_path = model.weightsFolder
  // Prepacked weights are a few percent faster but need a copy; otherwise the weights stay in mapped pages of the file.
  if (options.lowMemory) entries.disable_prepacking = '1'
  // This affects the thread that opens the first session of the process, and the other threads of each session.
  if (ownsThread) entries.set_denormal_as_zero = '1'
  if (options.yieldProcessors) entries['intra_op.allow_spinning'] = '0'
  if (options.exactProducts) entries.qdq_matmulnbits_accuracy_level = '0'
  return {
    graphOptimizationLevel: options.optimization ?? (model.isOptimized && isOnCpu ? 'disabled' : 'all'),
    // Memory patterns reserve memory for the largest shapes seen. Without them, runs take as long and need much less.
    enableMemPattern: false,
    interOpNumThreads: 1,
    logSeverityLevel: 3,
    extra: {
      session: entries,
      ...(model.keepsRepeats === true && { optimization: { disable_specified_optimizers: DISTURBING_OPTIMIZERS } }),
    },
    ...(threads !== undefined && { intraOpNumThreads: threads }),
    ...(executionProviders && { executionProviders: [...executionProviders] }),
    ...(stays.length > 0 && { preferredOutputLocation: Object.fromEntries(stays) }),
    ...(profilePrefix !== undefined && { enableProfiling: true, profileFilePrefix: profilePrefix }),
  }
}
