// The heads that transformers puts on encoders, by type of model: for labels of whole texts, of each word, of pictures
// and of sounds.

import { UnsupportedError } from '../../base/errors.js'
import { inputFamily } from '../../graph/inputs/family.js'
import type { HeadBase, HeadForm, HeadLayer } from './heads.js'

type Config = Readonly<Record<string, unknown>>
type Forms = Readonly<Record<string, (config: Config) => HeadForm | undefined>>

/** A head with one layer between the first token and the classifier, outside of the classifier's module. */
function pooled(encoder: string, module: string, activation: HeadLayer['activation']): HeadForm {
  const name = module.replace(`${encoder}.`, '').replace(/\.dense$/, '')
  const layers = [{ module, activation }, { module: 'classifier' }]
  return { encoder, rows: 'first', layers, modulesToSave: ['classifier', name] }
}

function dense(encoder: string, activation: HeadLayer['activation']): HeadForm {
  const layers = [{ module: 'classifier.dense', activation }, { module: 'classifier.out_proj' }]
  return { encoder, rows: 'first', layers, modulesToSave: ['classifier'] }
}

function words(encoder: string): HeadForm {
  return { encoder, rows: 'all', layers: [{ module: 'classifier' }], modulesToSave: ['classifier'] }
}

/** Undefined where the config asks for what is not known here. */
function modernBert(config: Config): HeadForm | undefined {
  const pooling = config.classifier_pooling ?? 'cls'
  if (pooling !== 'cls' && pooling !== 'mean') return undefined
  return modernBertHead(config, pooling === 'cls' ? 'first' : 'mean')
}

function modernBertHead(config: Config, rows: HeadForm['rows']): HeadForm | undefined {
  const { classifier_activation, classifier_bias, norm_bias, norm_eps } = config
  if ((classifier_activation ?? 'gelu') !== 'gelu') return undefined
  const epsilon = typeof norm_eps === 'number' ? norm_eps : 1e-5
  return {
    encoder: 'model',
    rows,
    layers: [
      { module: 'head.dense', hasBias: classifier_bias === true, activation: 'Gelu' },
      { module: 'head.norm', kind: 'norm', hasBias: norm_bias === true, epsilon },
      { module: 'classifier' },
    ],
    modulesToSave: ['classifier', 'head'],
  }
}

/** One layer over the last token of a text. */
function continued(encoder: string): (config: Config) => HeadForm {
  return ({ pad_token_id: pad }) => {
    const padTokenId = typeof pad === 'number' ? pad : undefined
    const layers = [{ module: 'score', hasBias: false }]
    return { encoder, rows: 'last', padTokenId, layers, modulesToSave: ['score'] }
  }
}

/** Decoders by the name that transformers gives the part in front of their head. */
const DECODERS: Readonly<Record<string, readonly string[]>> = {
  gpt_neox: ['gpt_neox'],
  model: [
    ...['arcee', 'diffllama', 'doge', 'exaone4', 'gemma', 'gemma2', 'gemma3_text', 'glm', 'glm4', 'gpt_oss', 'helium'],
    ...['jamba', 'jetmoe', 'llama', 'minimax', 'ministral', 'mistral', 'mixtral', 'nemotron', 'olmo', 'olmo2', 'olmo3'],
    ...['opt', 'persimmon', 'phi', 'phi3', 'phimoe', 'qwen2', 'qwen2_moe', 'qwen3', 'qwen3_moe', 'seed_oss', 'smollm3'],
    ...['stablelm', 'starcoder2'],
  ],
  transformer: ['bloom', 'falcon', 'gpt2', 'gpt_bigcode', 'gpt_neo', 'gptj', 'mpt'],
}

const DECODER_FORMS: Forms = Object.fromEntries(
  Object.entries(DECODERS).flatMap(([encoder, types]) => types.map((type) => [type, continued(encoder)])),
)

function deberta(config: Config): HeadForm | undefined {
  return (config.pooler_hidden_act ?? 'gelu') === 'gelu' ? pooled('deberta', 'pooler.dense', 'Gelu') : undefined
}

const ENCODER_FORMS: Forms = {
  albert: () => pooled('albert', 'albert.pooler', 'Tanh'),
  bert: () => pooled('bert', 'bert.pooler.dense', 'Tanh'),
  camembert: () => dense('roberta', 'Tanh'),
  deberta,
  'deberta-v2': deberta,
  distilbert: () => pooled('distilbert', 'pre_classifier', 'Relu'),
  electra: () => dense('electra', 'Gelu'),
  modernbert: modernBert,
  mpnet: () => dense('mpnet', 'Tanh'),
  roberta: () => dense('roberta', 'Tanh'),
  'xlm-roberta': () => dense('roberta', 'Tanh'),
}

/** Types whose encoder transformers calls by the name of another. */
const NAMES: Record<string, string> = { camembert: 'roberta', 'deberta-v2': 'deberta', 'xlm-roberta': 'roberta' }

const TOKEN_FORMS: Forms = {
  ...Object.fromEntries(Object.keys(ENCODER_FORMS).map((type) => [type, () => words(NAMES[type] ?? type)])),
  modernbert: (config) => modernBertHead(config, 'all'),
}

/** A layer over the first token, or over it and the mean of the others. */
function pictures(encoder: string, architecture: string, rows: HeadForm['rows'] = 'first'): HeadForm {
  const layers = [{ module: 'classifier' }]
  return { encoder, rows, layers, modulesToSave: ['classifier'], architecture: `${architecture}ForImageClassification` }
}

const IMAGE_FORMS: Forms = {
  deit: () => pictures('deit', 'DeiT'),
  dinov2: () => pictures('dinov2', 'Dinov2', 'first-and-mean'),
  vit: () => pictures('vit', 'ViT'),
}

/** Two layers over the mean of all times, whose first one transformers puts in front of the mean. */
function whisper({ use_weighted_layer_sum: isWeighted, classifier_proj_size: width }: Config): HeadForm | undefined {
  if (isWeighted === true) return undefined
  const projector = { module: 'projector', isOfEach: true, width: typeof width === 'number' ? width : 256 }
  return {
    ...{ encoder: 'encoder', rows: 'mean', layers: [projector, { module: 'classifier' }] },
    ...{ modulesToSave: ['projector', 'classifier'], architecture: 'WhisperForAudioClassification' },
  }
}

const AUDIO_FORMS: Forms = { whisper }

const KINDS = {
  text: { forms: { ...DECODER_FORMS, ...ENCODER_FORMS }, rows: 'first', reads: undefined, task: 'text-classification' },
  token: { forms: TOKEN_FORMS, rows: 'all', reads: undefined, task: 'token-classification' },
  image: { forms: IMAGE_FORMS, rows: 'first', reads: 'pictures', task: 'image-classification' },
  audio: { forms: AUDIO_FORMS, rows: 'mean', reads: 'sounds', task: 'audio-classification' },
} as const

export type HeadKind = keyof typeof KINDS

export function findHead(kind: HeadKind, base: HeadBase): HeadForm | undefined {
  const { forms, reads }: { forms: Forms; reads?: string | undefined } = KINDS[kind]
  if (reads !== undefined && inputFamily(base.graph)?.reads !== reads) return undefined
  const type = String(base.config.model_type)
  const known = Object.hasOwn(forms, type) ? forms[type](base.config) : undefined
  if (known !== undefined) return known
  const own = base.linears.find(({ name, isHead }) => isHead && /^(classifier|score)$/.test(name))
  return own && { encoder: '', rows: KINDS[kind].rows, layers: [{ module: own.name }], modulesToSave: [own.name] }
}

export function requireHead(kind: HeadKind, base: HeadBase): HeadForm {
  const found = findHead(kind, base)
  if (found !== undefined) return found
  throw new UnsupportedError({
    where: 'model_type',
    what: 'the head that this type of model has for classification is not known',
    expected: Object.keys(KINDS[kind].forms).join(', '),
    got: String(base.config.model_type),
    hint: `Export the model with its head: optimum-cli export onnx --task ${KINDS[kind].task}`,
  })
}
