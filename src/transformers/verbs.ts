// The two ways to a pipeline with adapters: a new one, and one that is there.

import { ConfigError, MismatchError, RuntimeError, StateError, UnsupportedError } from '../base/errors.js'
import type { SignalLike } from '../base/globals.js'
import { checkOptions, describe, isObject } from '../base/options.js'
import type { DtypeChoice } from '../graph/graph-file.js'
import type { ModuleMap } from '../graph/match/linears.js'
import type { Model } from '../graph/model-folder.js'
import { openAdapter } from '../index/adapters.js'
import { loadModel } from '../index/model.js'
import type { Source } from '../index/sources.js'
import type { SessionExtras } from '../infer/graphs.js'
import { ModelSession } from '../infer/model-session.js'
import type { OnDownload } from '../io/hub/directory.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { OrtModule } from '../runtime/onnxruntime.js'
import { CallSession, type SharedSession, sessionsFor } from './call-session.js'
import { PIPELINE_OPTIONS, WITH_ADAPTERS_OPTIONS } from './gen/options.js'
import {
  defaultDevice,
  findRuntime,
  type PipelineInstance,
  type PreTrainedModel,
  runtimeModule,
  transformersModule,
} from './module.js'
import { adapterPipeline, type PipelineRun, sessionExtras, shareSession } from './pipelines.js'
import { checkGraphs, checkTask, modelClass, type PipelineTask, pipelineClass, readerOf } from './tasks.js'

/** The adapters of a pipeline, and how its model is opened. */
export interface PipelineOptions {
  /**
   * Adapters by the name that calls choose them by: in memory, or what `loadAdapter` takes. `session.add` adds others
   * later.
   */
  adapters?: Readonly<Record<string, LoraAdapter | Source>> | undefined
  /** The type of the graph's weights: onnx/model_q4.onnx for `q4`. Default `auto`: what config.json says, else fp32. */
  dtype?: DtypeChoice | undefined
  /**
   * The device that the model runs on: cpu, webgpu, wasm, cuda, coreml, dml, … `gpu` takes the first graphics processor
   * that works, `auto` too, or else the processor. Default: cpu in Node, wasm in pages.
   */
  device?: string | undefined
  /**
   * Threads of a run on the processor. Default: ONNX Runtime's own choice.
   * @range an integer in [1, 1024]
   */
  threads?: number | undefined
  /** Module name → name of the node or of its weight, where the graph's own names do not tell. */
  modules?: ModuleMap | undefined
  /** Hears of each file that comes from the Hub or a web server, before its first byte. */
  onDownload?: OnDownload | undefined
  /** Ends the loading of files. */
  signal?: SignalLike | undefined
  /**
   * The imported module @huggingface/transformers, where `import` from this package would find none or another copy.
   */
  transformers?: object | undefined
}

/** Options of {@link withAdapters}. */
export interface WithAdaptersOptions extends Omit<PipelineOptions, 'device' | 'transformers'> {
  /**
   * The source that the pipeline's model was loaded from: a path, a model on the Hub, a URL, picked files or a
   * Directory.
   */
  source: Source
}

export async function pipelineWithAdapters(task: PipelineTask, source: Source, options: PipelineOptions = {}) {
  checkTask(task)
  checkOptions(options, 'pipelineWithAdapters', PIPELINE_OPTIONS)
  const transformers = await transformersModule(options.transformers)
  const module = await findRuntime(transformers)
  const { shared, model } = await firstThatOpens(devicesOf(options.device, module), (device) =>
    openShared(source, options, {
      module,
      run: { dtype: dtypeText(options.dtype), device },
      prepare(model) {
        checkGraphs(task, model)
        return {}
      },
    }),
  )
  try {
    const ModelClass = modelClass(transformers, task, model)
    const config = await transformers.AutoConfig.from_pretrained(model.name, { config: { ...model.config } })
    const sessions = sessionsFor(shared, null)
    const configs = { generation_config: model.generationConfig }
    const built = new ModelClass(config, sessions, configs)
    const reader = await readerOf(transformers, task, model)
    const Pipeline = pipelineClass<PipelineInstance>(transformers, task)
    return adapterPipeline(new Pipeline({ task, model: built, ...reader }), shared)
  } catch (error) {
    await shared.session.dispose()
    throw error
  }
}

export async function withAdapters(pipeline: PipelineInstance, options: WithAdaptersOptions) {
  checkPipeline(pipeline)
  checkOptions(options, 'withAdapters', WITH_ADAPTERS_OPTIONS)
  const { model } = pipeline
  const { model: theirs } = model.sessions
  const { dtype, device } = theirs.config ?? {}
  const InferenceSession = theirs.constructor as unknown as OrtModule['InferenceSession']
  const module = runtimeModule({ InferenceSession }, pipeline.tokenizer('a').input_ids.ort_tensor)
  const run = {
    dtype: typeof dtype === 'string' ? dtype : 'fp32',
    device: typeof device === 'string' ? device : defaultDevice(),
  }
  let released: Promise<void> | undefined
  const { shared } = await openShared(
    options.source,
    { ...options, dtype: options.dtype ?? (run.dtype as DtypeChoice) },
    {
      module,
      run,
      prepare(opened) {
        checkGraphs(pipeline.task as PipelineTask, opened)
        checkSameModel(model.config, opened)
        // Two copies of the weights may not fit into memory.
        return { beforeOpen: () => (released ??= theirs.release()) }
      },
    },
  )
  model.sessions = { model: new CallSession(shared, null) }
  return adapterPipeline(pipeline, shared)
}

/** Graphics processors among the names of ONNX Runtime's devices. */
const GPUS = ['cuda', 'dml', 'coreml', 'webgpu']

/** The devices that a choice stands for, in the order in which they are tried. */
function devicesOf(device = defaultDevice(), { listSupportedBackends }: OrtModule): string[] {
  if (device !== 'auto' && device !== 'gpu') return [device]
  const inPage = 'gpu' in (globalThis.navigator ?? {}) ? ['webgpu'] : []
  const known = listSupportedBackends?.().map(({ name }) => name) ?? inPage
  const gpus = GPUS.filter((name) => known.includes(name))
  if (device === 'auto') return [...gpus, defaultDevice()]
  if (gpus.length > 0) return gpus
  throw new UnsupportedError({ where: 'device', what: 'no graphics processor here', hint: 'Choose auto' })
}

/** Tries the next device where one does not start. */
async function firstThatOpens<T>(
  [device, ...others]: readonly string[],
  open: (device: string) => Promise<T>,
): Promise<T> {
  try {
    return await open(device)
  } catch (error) {
    if (!(error instanceof RuntimeError) || others.length === 0) throw error
    return firstThatOpens(others, open)
  }
}

interface SharedRequest {
  readonly module: OrtModule
  readonly run: PipelineRun
  /** Throws for models that the pipeline cannot run. */
  prepare(model: Model): SessionExtras
}

async function openShared(
  source: Source,
  { adapters, dtype, threads, modules, onDownload, signal }: PipelineOptions,
  { module, run, prepare }: SharedRequest,
): Promise<{ shared: SharedSession; model: Model }> {
  const opened: Record<string, LoraAdapter> = {}
  for (const [name, adapter] of Object.entries(adapters ?? {})) {
    opened[name] = await openAdapter(adapter, `adapters.${name}`)
  }
  const model = await loadModel(source, { runtime: { module }, dtype, onDownload, signal })
  try {
    const extras = { ...prepare(model), ...sessionExtras(model, run) }
    const settings = { adapters: opened, device: run.device, modules, ...(threads !== undefined && { threads }) }
    const session = await ModelSession.open(model, settings, true, extras)
    return { shared: shareSession(session, run), model }
  } catch (error) {
    await model.close()
    throw error
  }
}

function checkPipeline(pipeline: PipelineInstance): void {
  const { task, model, tokenizer } = (typeof pipeline === 'function' ? pipeline : {}) as Partial<PipelineInstance>
  const sessions: unknown = model?.sessions
  if (task === 'image-classification') {
    throw new UnsupportedError({
      where: 'pipeline',
      what: 'adapters cannot be added to a pipeline of pictures that is there',
      got: task,
      hint: `Call pipelineWithAdapters('${task}', source)`,
    })
  }
  if (task === undefined || typeof tokenizer !== 'function' || !isObject(sessions)) {
    throw new ConfigError({
      where: 'pipeline',
      what: 'not usable',
      expected: 'a pipeline of @huggingface/transformers 4.3 or later',
      got: describe(pipeline),
    })
  }
  checkTask(task)
  const { model: session, ...others } = sessions as PreTrainedModel['sessions']
  if (session === undefined || Object.keys(others).length > 0) {
    throw new UnsupportedError({
      where: 'pipeline',
      what: 'its model has several graphs',
      expected: 'one graph, model',
      got: Object.keys(sessions).join(', '),
    })
  }
  if (session instanceof CallSession) {
    throw new StateError({
      where: 'pipeline',
      what: 'it runs in a session of lowrank already',
      hint: 'Call session.add of the pipeline that withAdapters gave',
    })
  }
  if (!Array.isArray(session.inputMetadata)) {
    throw new UnsupportedError({
      where: 'pipeline',
      what: 'this version of transformers.js is too old for adapters',
      expected: '@huggingface/transformers 4.3 or later',
    })
  }
}

/** Fields in which two models of one kind are hardly ever equal by chance. */
const SIZES = ['model_type', 'vocab_size', 'hidden_size', 'num_hidden_layers', 'intermediate_size']

/** Throws MismatchError unless the source is what the pipeline's model was loaded from, as far as config.json tells. */
function checkSameModel(config: Readonly<Record<string, unknown>>, { config: read, name }: Model): void {
  for (const field of SIZES) {
    if (config[field] === read[field] || read[field] === undefined) continue
    throw new MismatchError({
      where: `source ${name}`,
      what: `this is another model than the pipeline’s: ${field} differs`,
      expected: String(config[field]),
      got: String(read[field]),
    })
  }
}

function dtypeText(dtype: DtypeChoice | undefined): string {
  return typeof dtype === 'string' && dtype !== 'auto' ? dtype : 'fp32'
}
