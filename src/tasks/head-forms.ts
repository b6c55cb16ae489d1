// The heads that transformers puts on encoders, by type of model: for labels of whole texts, of each word, and of pictures.

import { UnsupportedError } from '../base/errors.js'
import { takesImages } from '../graph/inputs/family.js'
import type { HeadBase, HeadForm, HeadLayer } from './heads.js'

type Config = Readonly<Record<string, unknown>>
type Forms = Readonly<Record<string, (config: Config) => HeadForm | undefined>>

/** A head with one layer between the first token and the classifier, outside of the classifier's module. */
function pooled(encoder: string, module: string, activation: HeadLayer['activation']): HeadForm {
  const name = module.replace(`${encoder}.`, '').replace(/\.dense$/, '')
  const layers = [{ module, activation }, { module: 'classifier' }]
  return { encoder, rows: 'first', layers, modulesToSave: ['classifier', name] }
}

/** A head whose module has both layers. */
function dense(encoder: string, activation: HeadLayer['activation']): HeadForm {
  const layers = [{ module: 'classifier.dense', activation }, { module: 'classifier.out_proj' }]
  return { encoder, rows: 'first', layers, modulesToSave: ['classifier'] }
}

/** One layer over each token. */
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

/** By model_type, as transformers has them for sequence classification. */
const TEXT_FORMS: Forms = {
  ...DECODER_FORMS,
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

/** By model_type, as transformers has them for token classification. */
const TOKEN_FORMS: Forms = {
  albert: () => words('albert'),
  bert: () => words('bert'),
  camembert: () => words('roberta'),
  deberta: () => words('deberta'),
  'deberta-v2': () => words('deberta'),
  distilbert: () => words('distilbert'),
  electra: () => words('electra'),
  modernbert: (config) => modernBertHead(config, 'all'),
  mpnet: () => words('mpnet'),
  roberta: () => words('roberta'),
  'xlm-roberta': () => words('roberta'),
}

/** A layer over the first token, or over it and the mean of the others. */
function pictures(encoder: string, architecture: string, rows: HeadForm['rows'] = 'first'): HeadForm {
  const layers = [{ module: 'classifier' }]
  return { encoder, rows, layers, modulesToSave: ['classifier'], architecture: `${architecture}ForImageClassification` }
}

/** By model_type, as transformers has them for image classification. */
const IMAGE_FORMS: Forms = {
  deit: () => pictures('deit', 'DeiT'),
  dinov2: () => pictures('dinov2', 'Dinov2', 'first-and-mean'),
  vit: () => pictures('vit', 'ViT'),
}

/** The head that this type of model has for labels of texts, or that its graph has; undefined where neither is known. */
export function findTextHead(base: HeadBase): HeadForm | undefined {
  return findForm(TEXT_FORMS, base) ?? headInGraph(base, 'first')
}

/** The same for labels of words. */
export function findTokenHead(base: HeadBase): HeadForm | undefined {
  return findForm(TOKEN_FORMS, base) ?? headInGraph(base, 'all')
}

/** The same for labels of pictures. */
export function findImageHead(base: HeadBase): HeadForm | undefined {
  if (!takesImages(base.graph)) return undefined
  return findForm(IMAGE_FORMS, base) ?? headInGraph(base, 'first')
}

/** @throws UnsupportedError where the head is not known */
export function textHead(base: HeadBase): HeadForm {
  return findTextHead(base) ?? refuse(base, TEXT_FORMS, 'text-classification')
}

/** @throws UnsupportedError where the head is not known */
export function tokenHead(base: HeadBase): HeadForm {
  return findTokenHead(base) ?? refuse(base, TOKEN_FORMS, 'token-classification')
}

/** @throws UnsupportedError where the head is not known */
export function imageHead(base: HeadBase): HeadForm {
  return findImageHead(base) ?? refuse(base, IMAGE_FORMS, 'image-classification')
}

function findForm(forms: Forms, { config }: HeadBase): HeadForm | undefined {
  const type = String(config.model_type)
  return Object.hasOwn(forms, type) ? forms[type](config) : undefined
}

function headInGraph({ linears }: HeadBase, rows: HeadForm['rows']): HeadForm | undefined {
  const head = linears.find(({ name, isHead }) => isHead && /^(classifier|score)$/.test(name))
  return head && { encoder: '', rows, layers: [{ module: head.name }], modulesToSave: [head.name] }
}

function refuse({ config }: HeadBase, forms: Forms, task: string): never {
  throw new UnsupportedError({
    where: 'model_type',
    what: 'the head that this type of model has for classification is not known',
    expected: Object.keys(forms).join(', '),
    got: String(config.model_type),
    hint: `Export the model with its head: optimum-cli export onnx --task ${task}`,
  })
}
