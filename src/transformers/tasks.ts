// The tasks of pipelines that adapters can be used in: which classes of transformers.js stand behind each.

import { readJson, readJsonIfThere, readText } from '../base/bytes.js'
import { didYouMean, FileError, UnsupportedError } from '../base/errors.js'
import { objectOf } from '../base/options.js'
import type { Model } from '../graph/model-folder.js'
import { MAX_TEMPLATE_BYTES } from '../text/chat-template.js'
import { type Class, classNamed, type PreTrainedModel, type TransformersModule } from './module.js'

interface TaskClasses {
  readonly auto: string
  readonly pipeline: string
  /** An encoder and a decoder, in a graph each. */
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

export function checkTask(task: unknown): asserts task is PipelineTask {
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

/** Refuses a model that has other graphs than the pipelines of a task run. */
export function checkGraphs(task: PipelineTask, { graphs, name }: Pick<Model, 'graphs' | 'name'>): void {
  const { isPair }: TaskClasses = CLASSES[task]
  const wanted = isPair ? 'decoder, encoder' : undefined
  // Folders on the Hub often have the second decoder of older exports too, which the merged one makes needless.
  const isNeedless = (role: string) => role === 'decoder_with_past' && graphs.decoder?.includes('merged')
  const roles = Object.keys(graphs).filter((role) => !isNeedless(role))
  const got = roles.sort().join(', ')
  if (wanted === undefined ? roles.length === 1 : got === wanted) return
  const expected = wanted === undefined ? 'one graph, model' : 'encoder_model.onnx and decoder_model_merged.onnx'
  throw new UnsupportedError({ where: name, what: `no graphs for ${task}`, expected, got })
}

export function pipelineClass<T>(transformers: TransformersModule, task: PipelineTask): Class<T> {
  return classNamed<T>(transformers, CLASSES[task].pipeline)
}

/** The tables in which the Auto classes of transformers.js look models up. */
export function modelClass(
  transformers: TransformersModule,
  task: PipelineTask,
  { config, name }: Model,
): Class<PreTrainedModel> {
  const auto = classNamed(transformers, CLASSES[task].auto) as unknown as {
    readonly MODEL_CLASS_MAPPINGS: readonly ReadonlyMap<string, string>[]
    readonly BASE_IF_FAIL?: boolean
  }
  const type = String(config.model_type)
  const found = auto.MODEL_CLASS_MAPPINGS.map((mapping) => mapping.get(type)).find((one) => one !== undefined)
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

/** The readers of the input: an image processor for pictures, a tokenizer for texts. */
export async function readerOf(transformers: TransformersModule, task: PipelineTask, model: Model): Promise<object> {
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
  // Newer folders hold the template in a file of its own, which transformers.js does not look for.
  const template = 'chat_template.jinja'
  if (settings.chat_template === undefined && (await directory.has(template))) {
    settings.chat_template = await readText(directory, template, MAX_TEMPLATE_BYTES)
  }
  const named = String(settings.tokenizer_class ?? '').replace(/Fast$/, '')
  const Tokenizer = classNamed<object>(transformers, named, 'PreTrainedTokenizer')
  return new Tokenizer(tokenizer, settings)
}
