// What transformers puts on an encoder of texts for classification: layers from a hidden state to the logits, by type of model. Training,
// sessions and merging use the same forms.

import { UnsupportedError } from '../base/errors.js'
import { findLinears, type Linear } from '../graph/match/linears.js'
import type { Value } from '../graph/view/builder.js'
import type { Graph } from '../graph/view/graph.js'

/** What exporters call the hidden states (batch, sequence, k), best first. */
const HIDDEN = ['last_hidden_state', 'token_embeddings']
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

/** Throws UnsupportedError for a type of encoder whose head is not known, and that has none in its graph. */
export function headForm({ config, linears }: HeadBase): HeadForm {
  const type = String(config.model_type)
  if (Object.hasOwn(FORMS, type)) return FORMS[type]
  const head = linears.find(({ name, isHead }) => isHead && /^(classifier|score)$/.test(name))
  if (head !== undefined) return { encoder: '', layers: [{ module: head.name }], modulesToSave: [head.name] }
  throw new UnsupportedError({
    where: 'model_type',
    what: 'the head that this type of model has for classification is not known',
    expected: Object.keys(FORMS).join(', '),
    got: type,
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
  const value = output(HIDDEN) ?? graph.outputs.find(({ name }) => name !== 'logits')?.name
  return value === undefined ? undefined : { value, isSequence: true }
}
