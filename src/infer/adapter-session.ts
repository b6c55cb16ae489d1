// One base model, many adapters: a session whose LoRA factors are graph inputs, so that choosing an adapter is feeding
// other arrays. The base's weights are in memory once, whatever the number of adapters.

import { MismatchError, nearMisses, StateError } from '../base/errors.js'
import type { OnnxModel } from '../formats/onnx/model.js'
import { affineInputs, injectLora, loraInputs } from '../graph/inject/inject.js'
import { completeFeeds } from '../graph/inputs/causal-inputs.js'
import { findLinears, type Linear, type ModuleMap } from '../graph/match/linears.js'
import { placeAdapter } from '../graph/match/place-adapter.js'
import { sessionModel } from '../graph/session-model.js'
import { Graph } from '../graph/view/graph.js'
import type { LoraAdapter } from '../lora/adapter.js'
import { requireKinds } from '../lora/plain.js'
import { type Engine, openEngine, type RuntimeHost } from '../runtime/host.js'
import { type Remote, transfer } from '../runtime/rpc.js'
import type { Feeds, RuntimeTensor, SessionOptions } from '../runtime/runtime.js'
import { type AdapterFactors, InferEngine, type LoraSite } from './engine.js'
import { adapterFactors } from './site-factors.js'

/** What a session needs of a model; a CausalModel has it. */
export interface SessionBase {
  /** The base's graph, and where its weights lie. */
  readonly onnx: OnnxModel
  /** Where the session is opened: in a worker, or in the caller's thread. */
  readonly runtime: RuntimeHost
}

/** The adapters of a session, and how the runtime opens it. */
export interface AdapterSessionOptions extends SessionOptions {
  /** Adapters to begin with, by the name that runs choose them by. */
  adapters?: Readonly<Record<string, LoraAdapter>>
  /** Module name → name of the node or of its weight, where the graph's own names do not tell. */
  modules?: ModuleMap
}

/** What one run computes. */
export interface RunOptions {
  /** Name of the adapter. Default: the base model alone. */
  adapter?: string | undefined
  /** Outputs to compute. Default: all. */
  outputNames?: readonly string[]
}

/** Providers on which tensors without elements work; on others an idle site gets zeros of rank 1. */
const TAKES_EMPTY_TENSORS = new Set(['cpu', 'wasm'])

/**
 * A session of a model and any number of adapters, of which each run chooses one. Runs take turns: calls may overlap, and are answered in
 * their order.
 */
export class AdapterSession<M extends SessionBase = SessionBase> {
  /** What the session was opened over. It has to stay open until the session is disposed. */
  readonly model: M
  readonly #engine: Engine<InferEngine>
  readonly #options: SessionOptions
  readonly #modules: ModuleMap
  readonly #graph: Graph
  readonly #linears: readonly Linear[]
  readonly #adapters = new Set<string>()
  /** Modules that the open session has LoRA inputs for; undefined before the first session. */
  #adapted: ReadonlySet<string> | undefined
  /** Those of them that take a scale and a shift of their outputs, for DoRA and biases of B. */
  #affine: ReadonlySet<string> = new Set()
  /** Changes of the session follow one another. */
  #lastChange: Promise<unknown> = Promise.resolve()
  #disposal: Promise<void> | undefined

  private constructor(model: M, { adapters: _, modules = {}, ...options }: AdapterSessionOptions) {
    this.model = model
    this.#options = options
    this.#modules = modules
    this.#graph = new Graph(model.onnx.proto)
    this.#linears = findLinears(this.#graph, modules)
    this.#engine = openEngine(model.runtime, 'infer', (runtime) => new InferEngine(runtime))
  }

  /**
   * Opens the model's session: in a worker, or in this thread if the model's runtime is a module object.
   *
   * @throws MismatchError when an adapter does not fit the model, RuntimeError when ONNX Runtime cannot be found or
   *   cannot open the model
   */
  static async open<M extends SessionBase>(model: M, options: AdapterSessionOptions = {}): Promise<AdapterSession<M>> {
    const session = new AdapterSession(model, options)
    try {
      await session.#add(Object.entries(options.adapters ?? {}))
      return session
    } catch (error) {
      await session.dispose()
      throw error
    }
  }

  /** Names of the adapters that runs can choose. */
  get adapters(): readonly string[] {
    return [...this.#adapters]
  }

  /** The model's own inputs, without those that take adapters. */
  get inputNames(): readonly string[] {
    return this.#graph.inputs.map(({ name }) => name)
  }

  /** The model's outputs. */
  get outputNames(): readonly string[] {
    return this.#graph.outputs.map(({ name }) => name)
  }

  /**
   * Copies an adapter into the session; runs choose it by `name`. An adapter for modules that none before it touched
   * opens the base anew, so that both are in memory for a moment: give such adapters to `open` where that matters. So does the
   * first one with DoRA or biases of B for a module; DoRA's scales are computed here, from the base's weights, once.
   *
   * @throws MismatchError when a layer has no module in the model, or another shape there; UnsupportedError when the
   *   module is there in a form that cannot be adapted, or the adapter holds more than linear layers, or DoRA for weights that
   *   are not floats; NumericError when a weight is not finite; StateError when the name is taken or the session is disposed. The
   *   session stays as it was then.
   */
  addAdapter(name: string, adapter: LoraAdapter): Promise<void> {
    return this.#add([[name, adapter]])
  }

  /**
   * Frees an adapter's arrays. Texts that are being written with it go on.
   *
   * @throws MismatchError for an unknown name, StateError when the session is disposed
   */
  removeAdapter(name: string): Promise<void> {
    return this.#change(async () => {
      this.checkAdapter(name)
      this.#adapters.delete(name)
      await this.engine.removeAdapter(name)
    })
  }

  /**
   * Runs the model once.
   *
   * @param feeds the model's own inputs, by name. For a language model `input_ids` is enough: what is left out becomes a mask of ones,
   *   positions that count the mask's ones, and an empty cache.
   * @returns the outputs by name; their arrays are the caller's
   * @throws MismatchError for an unknown adapter, RuntimeError when the run fails, StateError when the session is disposed
   */
  async run(feeds: Feeds, { adapter, outputNames }: RunOptions = {}): Promise<Record<string, RuntimeTensor>> {
    this.checkAdapter(adapter)
    return this.engine.run(completeFeeds(this.#graph, feeds), adapter, outputNames)
  }

  /** Closes the session after the runs that were asked for before, and ends its worker. Other calls throw StateError from then on. */
  dispose(): Promise<void> {
    this.#disposal ??= this.#close()
    return this.#disposal
  }

  async #close(): Promise<void> {
    await this.#lastChange
    // A worker that failed cannot answer; its end is all that is left to do.
    await this.#engine.remote.dispose().catch(() => {})
    await this.#engine.close()
  }

  /** `await using`: {@link dispose}. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }

  /** @internal */
  get engine(): Remote<InferEngine> {
    if (this.#disposal !== undefined) throw new StateError({ where: 'AdapterSession', what: 'it is disposed' })
    return this.#engine.remote
  }

  /** @internal Throws MismatchError unless runs can choose this adapter. */
  checkAdapter(name: string | undefined): void {
    if (name === undefined || this.#adapters.has(name)) return
    const near = nearMisses(name, this.#adapters)
    throw new MismatchError({
      where: 'adapter',
      what: `the session has no adapter ${JSON.stringify(name)}`,
      expected: this.#adapters.size === 0 ? 'none: add one first' : this.adapters.join(', '),
      ...(near.length > 0 ? { hint: `Did you mean ${near[0]}?` } : {}),
    })
  }

  #add(adapters: readonly (readonly [string, LoraAdapter])[]): Promise<void> {
    return this.#change(async () => {
      const engine = this.engine
      const added = []
      for (const [name, adapter] of adapters) {
        if (this.#adapters.has(name)) {
          throw new StateError({
            where: 'adapter',
            what: `the session has an adapter ${JSON.stringify(name)} already`,
            hint: 'Call removeAdapter first, or choose another name',
          })
        }
        requireKinds(adapter, ['linear', 'dora', 'lora-bias'], 'adapters of sessions')
        const placed = placeAdapter(this.#graph, this.#linears, adapter)
        added.push({ name, factors: await adapterFactors(this.model.onnx, this.#graph, placed) })
      }
      const sites = added.flatMap(({ factors }) => [...factors])
      await this.#openFor(
        sites.map(([module]) => module),
        sites.flatMap(([module, { affine }]) => (affine === undefined ? [] : [module])),
      )
      for (const { name, factors } of added) {
        await engine.addAdapter(name, transfer(factors, buffersOf(factors)))
        this.#adapters.add(name)
      }
    })
  }

  /** Makes sure that the open session has inputs for these modules, and for the scales and shifts of some of them. */
  async #openFor(modules: readonly string[], affineModules: readonly string[]): Promise<void> {
    const adapted = new Set([...(this.#adapted ?? []), ...modules])
    const affine = new Set([...this.#affine, ...affineModules])
    if (this.#adapted !== undefined && adapted.size === this.#adapted.size && affine.size === this.#affine.size) return
    // The graph is edited, so that each session starts from a fresh view of the model.
    const graph = new Graph(this.model.onnx.proto)
    const linears = findLinears(graph, this.#modules).filter(({ name }) => adapted.has(name))
    injectLora(graph, linears, affine)
    const providers = this.#options.executionProviders ?? []
    await this.engine.open({
      model: await sessionModel(this.model.onnx, graph.toModel()),
      sites: sitesOf(linears, affine),
      idleRank: providers.every((name) => TAKES_EMPTY_TENSORS.has(name)) ? 0 : 1,
      options: this.#options,
    })
    this.#adapted = adapted
    this.#affine = affine
  }

  #change<T>(action: () => Promise<T>): Promise<T> {
    const result = this.#lastChange.then(action)
    this.#lastChange = result.catch(() => {})
    return result
  }
}

function buffersOf(factors: AdapterFactors): ArrayBufferLike[] {
  return [...factors.values()].flatMap(({ weightA, weightB, affine }) => {
    const vectors = affine === undefined ? [] : [affine.scale.buffer, affine.shift.buffer]
    return [weightA.buffer, weightB.buffer, ...vectors]
  })
}

/** One site a module: linears of one name share their inputs. */
function sitesOf(linears: readonly Linear[], affine: ReadonlySet<string>): LoraSite[] {
  const site = ({ name, k, d }: Linear): LoraSite => {
    return { module: name, ...loraInputs(name), affine: affine.has(name) ? affineInputs(name) : undefined, k, d }
  }
  return [...new Map(linears.map((linear) => [linear.name, site(linear)])).values()]
}
