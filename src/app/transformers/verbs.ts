// Makes a pipeline of transformers.js whose model runs a session of lowrank.

import { openAdapter } from '../../api/adapters.js'
import { type LoadModelOptions, loadModel } from '../../api/model.js'
import type { Source } from '../../core/base/bytes.js'
import { closingOnError, readJson, readJsonIfThere, readText } from '../../core/base/bytes.js'
import { didYouMean, FileError, RuntimeError, UnsupportedError } from '../../core/base/errors.js'
import { checkOptions, objectOf } from '../../core/base/options.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import type { Model } from '../../model/model-folder.js'
import type { OrtModule } from '../../onnx/runtime/onnxruntime.js'
import type { AdapterSessionOptions } from '../../run/session.js'
import { type SharedSession, sessionsFor } from './call-session.js'
import { PIPELINE_OPTIONS } from './gen/options.js'
import {
  type Class,
  classNamed,
  defaultDevice,
  findRuntime,
  type PipelineInstance,
  type PreTrainedModel,
  type TransformersModule,
  transformersModule,
} from './module.js'
import { adapterPipeline, openShared } from './pipelines.js'

interface TaskClasses {
  readonly auto: string
  readonly pipeline: string
  /** The model has an encoder graph and a decoder graph. */
  readonly isPair?: true
}

const CLASSES = {
  'text-generation': { auto: 'AutoModelForCausalLM', pipeline: 'TextGenerationPipeline' },
  'feature-extraction': { auto: 'AutoModel', pipeline: 'FeatureExtractionPipeline' },
  'text-classification': { auto: 'AutoModelForSequenceClassification', pipeline: 'TextClassificationPipeline' },
  'zero-shot-classification': {
    auto: 'AutoModelForSequenceClassification',
    pipeline: 'ZeroShotClassificationPipeline',
  },
  'fill-mask': { auto: 'AutoModelForMaskedLM', pipeline: 'FillMaskPipeline' },
  'text2text-generation': { auto: 'AutoModelForSeq2SeqLM', pipeline: 'Text2TextGenerationPipeline', isPair: true },
  summarization: { auto: 'AutoModelForSeq2SeqLM', pipeline: 'SummarizationPipeline', isPair: true },
  translation: { auto: 'AutoModelForSeq2SeqLM', pipeline: 'TranslationPipeline', isPair: true },
  'image-to-text': { auto: 'AutoModelForVision2Seq', pipeline: 'ImageToTextPipeline', isPair: true },
  'token-classification': { auto: 'AutoModelForTokenClassification', pipeline: 'TokenClassificationPipeline' },
  'image-classification': { auto: 'AutoModelForImageClassification', pipeline: 'ImageClassificationPipeline' },
} satisfies Readonly<Record<string, TaskClasses>>

/** A task of transformers.js's pipelines. */
export type PipelineTask = keyof typeof CLASSES

function checkTask(task: unknown): asserts task is PipelineTask {
  const names = Object.keys(CLASSES)
  if (typeof task === 'string' && names.includes(task)) return
  throw new UnsupportedError({
    where: 'task',
    what: 'pipelines of this task take no adapters',
    expected: names.join(', '),
    got: String(task),
    hint: didYouMean(String(task), names),
  })
}

/** Refuses a model whose graphs the pipelines of a task cannot run. */
function checkGraphs(task: PipelineTask, { graphs, name }: Pick<Model, 'graphs' | 'name'>): void {
  const { isPair }: TaskClasses = CLASSES[task]
  const wanted = isPair ? 'decoder, encoder' : undefined
  // Folders on the Hub often also have the second decoder of older exports. If the decoder is merged, it is not needed.
  const isNeedless = (role: string) => role === 'decoder_with_past' && graphs.decoder?.includes('merged')
  const roles = Object.keys(graphs).filter((role) => !isNeedless(role))
  const got = roles.sort().join(', ')
  if (wanted === undefined ? roles.length === 1 : got === wanted) return
  const expected = wanted === undefined ? 'one graph, model' : 'encoder_model.onnx and decoder_model_merged.onnx'
  throw new UnsupportedError({ where: name, what: `no graphs for ${task}`, expected, got })
}

/** Finds the class of a model in the tables of transformers.js's Auto classes. */
function modelClass(
  transformers: TransformersModule,
  task: PipelineTask,
  { config, name }: Model,
): Class<PreTrainedModel> {
  const auto = classNamed(transformers, CLASSES[task].auto) as unknown as {
    readonly MODEL_CLASS_MAPPINGS: readonly ReadonlyMap<string, string>[]
    readonly BASE_IF_FAIL?: boolean
  }
  const type = String(config.model_type)
  const found = auto.MODEL_CLASS_MAPPINGS.map((mapping) => mapping.get(type)).find((name) => name !== undefined)
  if (found !== undefined) return classNamed<PreTrainedModel>(transformers, found)
  if (auto.BASE_IF_FAIL) return classNamed<PreTrainedModel>(transformers, 'PreTrainedModel')
  throw new UnsupportedError({
    where: name,
    what: `@huggingface/transformers ${transformers.env.version} has no ${task} for models of this type`,
    got: type,
    ...(task === 'text-classification' && {
      hint: 'session.classify of openSession gives labels with models that transformers.js has no class for',
    }),
  })
}

/** Loads what reads the input: an image processor for pictures, a tokenizer for texts. */
async function readerOf(transformers: TransformersModule, task: PipelineTask, model: Model): Promise<object> {
  const processor = task.startsWith('image-') ? { processor: processorOf(transformers, model) } : {}
  if (task === 'image-classification') return processor
  return { ...processor, tokenizer: await tokenizerOf(transformers, model) }
}

function processorOf(transformers: TransformersModule, { preprocessorConfig, name }: Model): object {
  if (preprocessorConfig === undefined) {
    throw new FileError({
      where: name,
      what: 'no preprocessor_config.json in this folder, which says how pictures are resized',
      hint: 'Copy it from where the model came from',
    })
  }
  const named = String(preprocessorConfig.image_processor_type ?? '').replace(/Fast$/, '')
  const Processor = classNamed<object>(transformers, named, 'ImageProcessor')
  return new Processor({ ...preprocessorConfig })
}

async function tokenizerOf(transformers: TransformersModule, model: Model): Promise<unknown> {
  const { directory } = model
  const tokenizer = await readJson(directory, 'tokenizer.json')
  const settings = { ...objectOf(await readJsonIfThere(directory, 'tokenizer_config.json')) }
  // Newer folders have the template in a separate file, which transformers.js does not look for.
  const template = 'chat_template.jinja'
  if (await directory.has(template)) settings.chat_template = await readText(directory, template)
  const named = String(settings.tokenizer_class ?? '').replace(/Fast$/, '')
  const Tokenizer = classNamed<object>(transformers, named, 'PreTrainedTokenizer')
  return new Tokenizer(tokenizer, settings)
}

/** Options of a pipeline: its adapters, and how its model is opened. */
export interface PipelineOptions
  extends Pick<LoadModelOptions, 'dtype' | 'on' | 'signal'>,
    Pick<AdapterSessionOptions, 'modules'> {
  /**
   * The adapters by name: in memory, or any source that `loadAdapter` accepts. Calls choose an adapter by its name.
   * `session.add` adds more later.
   */
  adapters?: Readonly<Record<string, LoraAdapter | Source>> | undefined
  /**
   * The device that runs the model: cpu, webgpu, wasm, cuda, coreml, dml, … `gpu` takes the first GPU that works.
   * `auto` does the same, and takes the CPU if no GPU works. Default: cpu in Node, wasm in pages.
   */
  device?: string | undefined
  /**
   * The number of threads of a run on the CPU. Default: ONNX Runtime chooses.
   * @range an integer in [1, 1024]
   */
  threads?: number | undefined
  /**
   * The imported module @huggingface/transformers. Needed if `import` from this package would not find it, or would
   * find another copy.
   */
  transformers?: object | undefined
}

export async function pipelineWithAdapters(task: PipelineTask, source: Source, options: PipelineOptions = {}) {
  checkTask(task)
  checkOptions(options, 'pipelineWithAdapters', PIPELINE_OPTIONS)
  const transformers = await transformersModule(options.transformers)
  const module = await findRuntime(transformers)
  const { shared, model } = await firstThatOpens(devicesOf(options.device, module), (device) =>
    openOn(device, task, source, options, module),
  )
  try {
    const ModelClass = modelClass(transformers, task, model)
    const config = await transformers.AutoConfig.from_pretrained(model.name, { config: { ...model.config } })
    const sessions = sessionsFor(shared, null)
    const configs = { generation_config: model.generationConfig }
    const built = new ModelClass(config, sessions, configs)
    const reader = await readerOf(transformers, task, model)
    const Pipeline = classNamed<PipelineInstance>(transformers, CLASSES[task].pipeline)
    return adapterPipeline(new Pipeline({ task, model: built, ...reader }), shared)
  } catch (error) {
    await shared.session.dispose()
    throw error
  }
}

/** The GPUs among ONNX Runtime's device names. */
const GPUS = ['cuda', 'dml', 'coreml', 'webgpu']

/** Returns the devices to try for a choice, in order. */
function devicesOf(device = defaultDevice(), { listSupportedBackends }: OrtModule): string[] {
  if (device !== 'auto' && device !== 'gpu') return [device]
  const inPage = 'gpu' in (globalThis.navigator ?? {}) ? ['webgpu'] : []
  const known = listSupportedBackends?.().map(({ name }) => name) ?? inPage
  const gpus = GPUS.filter((name) => known.includes(name))
  if (device === 'auto') return [...gpus, defaultDevice()]
  if (gpus.length > 0) return gpus
  throw new UnsupportedError({ where: 'device', what: 'no graphics processor here', hint: 'Choose auto' })
}

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

async function openOn(
  device: string,
  task: PipelineTask,
  source: Source,
  { adapters, dtype, threads, modules, on, signal }: PipelineOptions,
  module: OrtModule,
): Promise<{ shared: SharedSession; model: Model }> {
  const opened: Record<string, LoraAdapter> = {}
  for (const [name, adapter] of Object.entries(adapters ?? {})) {
    opened[name] = await openAdapter(adapter, `adapters.${name}`)
  }
  return closingOnError(await loadModel(source, { runtime: { module }, dtype, on, signal }), async (model) => {
    checkGraphs(task, model)
    const config = { dtype: typeof dtype === 'string' && dtype !== 'auto' ? dtype : 'fp32', device }
    return { shared: await openShared(model, { adapters: opened, modules, threads }, config), model }
  })
}
