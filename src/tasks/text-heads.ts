// What transformers puts on an encoder of texts for classification: layers from a hidden state to the logits, by type of model. Training,
// sessions and merging use the same forms.

import { MismatchError, UnsupportedError } from '../base/errors.js'
import { formatShape } from '../base/tensor.js'
import { findLinears, type Linear } from '../graph/match/linears.js'
import type { Builder, Value } from '../graph/view/builder.js'
import type { Graph } from '../graph/view/graph.js'

/** What exporters call the hidden states (batch, sequence, k), best first. */
export const HIDDEN_OUTPUTS: readonly string[] = ['last_hidden_state', 'token_embeddings']
const POOLED = 'pooler_output'

/** A layer of a head: y = activation(x·Wᵀ + b). The last one gives the logits. */
export interface HeadLayer {
  readonly module: string
  readonly activation?: 'Tanh' | 'Relu'
}

/** The layers of a head, and how PEFT saves them. */
export interface HeadForm {
  /** How transformers calls the encoder: exports of the encoder alone lack this first part of the names. */
  readonly encoder: string
  /** From the hidden state of the first token on. */
  readonly layers: readonly HeadLayer[]
  /** What PEFT is told to save whole. */
  readonly modulesToSave: readonly string[]
}

const BERT: HeadForm = {
  encoder: 'bert',
  layers: [{ module: 'bert.pooler.dense', activation: 'Tanh' }, { module: 'classifier' }],
  modulesToSave: ['classifier', 'pooler'],
}
const DISTILBERT: HeadForm = {
  encoder: 'distilbert',
  layers: [{ module: 'pre_classifier', activation: 'Relu' }, { module: 'classifier' }],
  modulesToSave: ['classifier', 'pre_classifier'],
}
const ROBERTA: HeadForm = {
  encoder: 'roberta',
  layers: [{ module: 'classifier.dense', activation: 'Tanh' }, { module: 'classifier.out_proj' }],
  modulesToSave: ['classifier'],
}

/** By model_type. */
const FORMS: Readonly<Record<string, HeadForm>> = {
  bert: BERT,
  distilbert: DISTILBERT,
  roberta: ROBERTA,
  'xlm-roberta': ROBERTA,
  camembert: ROBERTA,
}

/** The part of a model that a head depends on. */
export interface HeadBase {
  /** config.json */
  readonly config: Readonly<Record<string, unknown>>
  readonly graph: Graph
  readonly linears: readonly Linear[]
}

/** The head that this type of model has for classification, or that its graph has; undefined where neither is known. */
export function findHeadForm({ config, linears }: HeadBase): HeadForm | undefined {
  const type = String(config.model_type)
  if (Object.hasOwn(FORMS, type)) return FORMS[type]
  const head = linears.find(({ name, isHead }) => isHead && /^(classifier|score)$/.test(name))
  return head && { encoder: '', layers: [{ module: head.name }], modulesToSave: [head.name] }
}

/** The same. Throws UnsupportedError where it is not known. */
export function headForm(base: HeadBase): HeadForm {
  const form = findHeadForm(base)
  if (form !== undefined) return form
  throw new UnsupportedError({
    where: 'model_type',
    what: 'the head that this type of model has for classification is not known',
    expected: Object.keys(FORMS).join(', '),
    got: String(base.config.model_type),
    hint: 'Export the model with its head: optimum-cli export onnx --task text-classification',
  })
}

/** All layers of a new head; of a head in the graph those that PEFT saves by itself. */
export function trainedLayers({ layers }: HeadForm, { graph, linears }: HeadBase): readonly HeadLayer[] {
  const isThere = ({ module }: HeadLayer) => linears.some(({ name }) => name === module)
  const first = layers.findIndex(({ module }) => /^(classifier|score)\b/.test(module))
  if (isThere(layers[first])) return layers.slice(first)
  const hasPooled = graph.outputs.some(({ name }) => name === POOLED)
  return hasPooled && layers[0].module.includes('pooler') ? layers.slice(1) : layers
}

/** The width of the hidden states. Throws UnsupportedError when nothing tells it. */
export function headWidth({ config, linears }: HeadBase, layers: readonly HeadLayer[]): number {
  const own = linears.find(({ name }) => name === layers[0].module)?.k
  const width = own ?? [config.hidden_size, config.dim, config.d_model].find((value) => Number.isSafeInteger(value))
  if (width !== undefined) return width as number
  throw new UnsupportedError({ where: 'config.json', what: 'it does not tell the width of the hidden states' })
}

/** What the first of some layers of a head computes with. */
export interface HeadInput {
  /** (batch, k), or (batch, sequence, k) where `isSequence` */
  readonly value: Value
  /** The row of the first token is meant. */
  readonly isSequence: boolean
}

/**
 * The graph's value that goes into the first of these layers.
 *
 * @param layers the last ones of the form
 * @returns undefined where the graph has no such value
 */
export function headInput(form: HeadForm, graph: Graph, [{ module }]: readonly HeadLayer[]): HeadInput | undefined {
  const own = findLinears(graph).find(({ name }) => name === module)
  if (own !== undefined) return { value: own.input, isSequence: false }
  const output = (names: readonly string[]) => graph.outputs.find(({ name }) => names.includes(name))?.name
  if (module !== form.layers[0].module) {
    const value = output([POOLED])
    return value === undefined ? undefined : { value, isSequence: false }
  }
  const value = output(HIDDEN_OUTPUTS) ?? graph.outputs.find(({ name }) => name !== 'logits')?.name
  return value === undefined ? undefined : { value, isSequence: true }
}

/** The layers of a head that an adapter brings, and where they begin. */
export interface PlacedHead {
  readonly layers: readonly HeadLayer[]
  readonly input: HeadInput
  /** How many logits it gives. */
  readonly count: number
  /** Names of the adapter's tensors that it is made from. */
  readonly tensors: ReadonlySet<string>
  /** The graph has layers of this name in front of its logits, which these take the place of. */
  readonly isInGraph: boolean
}

/**
 * The head of an adapter: the last layers of the form, from the first one that the adapter has.
 *
 * @param shapeOf shapes of the adapter's whole tensors, by name
 * @returns undefined where it has none of them
 * @throws MismatchError when layers are missing, or do not fit the model or one another
 */
export function placeHead(
  form: HeadForm,
  base: HeadBase,
  shapeOf: (tensor: string) => readonly number[] | undefined,
): PlacedHead | undefined {
  const own = form.layers.map(({ module }) => shapeOf(`${module}.weight`) !== undefined)
  const first = own.indexOf(true)
  if (first === -1) return undefined
  const layers = form.layers.slice(first)
  const missing = layers.find((_, i) => !own[first + i])
  if (missing !== undefined) {
    throw new MismatchError({
      where: `${missing.module}.weight`,
      what: 'the adapter replaces a layer of the head, but not this one, which follows it',
      hint: 'Train it with all layers of the head in modules_to_save',
    })
  }
  const input = headInput(form, base.graph, layers)
  if (input === undefined) {
    throw new MismatchError({
      where: first === 0 ? 'adapter' : `${form.layers[first - 1].module}.weight`,
      what: 'the head of the adapter needs it, and neither the adapter nor the graph has it',
      got: `outputs ${base.graph.outputs.map(({ name }) => name).join(', ')}`,
      hint: 'Export the model with its pooler or its head, or train with all layers of the head in modules_to_save',
    })
  }
  let count = headWidth(base, layers)
  for (const { module } of layers) {
    const weight = shapeOf(`${module}.weight`)!
    const bias = shapeOf(`${module}.bias`) ?? [weight[0]]
    const isFit = weight.length === 2 && weight[1] === count && bias.length === 1 && bias[0] === weight[0]
    if (!isFit) {
      throw new MismatchError({
        where: `${module}.weight`,
        what: 'the head of the adapter does not fit the model',
        expected: `(d, ${count}) and a bias of (d)`,
        got: `${formatShape(weight)} and ${formatShape(bias)}`,
      })
    }
    count = weight[0]
  }
  const tensors = layers.flatMap(({ module }) => [`${module}.weight`, `${module}.bias`])
  const isInGraph = base.linears.some(({ name, isHead }) => isHead && name === layers.at(-1)?.module)
  return { layers, input, count, tensors: new Set(tensors), isInGraph }
}

/**
 * Appends a head to the graph.
 *
 * @param tensorOf the value that holds a tensor, by its name; undefined where a layer has no bias
 * @returns the logits (batch, labels)
 */
export function appendHead(
  g: Builder,
  input: HeadInput,
  layers: readonly HeadLayer[],
  tensorOf: (tensor: string) => Value | undefined,
): Value {
  let x = input.isSequence ? g.op('Gather', [input.value, g.int(0)], { axis: 1 }) : input.value
  for (const { module, activation } of layers) {
    const path = module.replaceAll('.', '/')
    const tensors = [tensorOf(`${module}.weight`), tensorOf(`${module}.bias`)].flatMap((value) => value ?? [])
    // Nodes have their module's name, by which layers are found again.
    x = g.op('Gemm', [x, ...tensors], { transB: 1 }, `${path}/Gemm`)
    if (activation !== undefined) x = g.op(activation, [x], {}, `${path}/${activation}`)
  }
  return x
}
