// Finds what an adapter replaces in a graph: whole tensors, and rows of embeddings (trainable_token_indices).

import { isWeightDtype } from '../../core/base/dtype.js'
import { didYouMean, MismatchError, UnsupportedError } from '../../core/base/errors.js'
import { formatShape } from '../../core/base/tensor.js'
import type { Replacement, TokenRows } from '../../lora/kinds/stored.js'
import type { OnnxModel } from '../../onnx/format/model.js'
import type { Graph } from '../../onnx/view/graph.js'
import { modelType } from '../families/families.js'
import { type Linear, nodeScope } from './linears.js'
import { ofModule } from './module-names.js'
import { type BiasPlace, certainBias, type Place, placesOf, shapeError } from './parameters.js'
import { readTokenRows } from './read-base-tensor.js'

export interface ModelPlaces {
  readonly model: OnnxModel
  readonly graph: Graph
  readonly linears: readonly Linear[]
  readonly embeddings: readonly Linear[]
  /** The contents of config.json; may be empty. */
  readonly config: Readonly<Record<string, unknown>>
}

export type StoredPlace =
  | {
      readonly kind: 'weight'
      readonly linear: Linear
      /** The adapter's module, or the head that is tied to it. */
      readonly module: string
      /** True if the adapter holds it as (k, d), not (d, k). */
      readonly isInputMajor: boolean
    }
  | { readonly kind: 'bias'; readonly linear: Linear; readonly bias: BiasPlace }
  | {
      readonly kind: 'other'
      readonly place: Place
      /** Number to add to the adapter's values: {@link normOffset}. */
      readonly offset: number
    }

/**
 * Finds the weight or bias of a linear layer, an embedding, or an input of a norm. Throws UnsupportedError if the place
 * is not certain.
 */
export async function placeReplacement(
  places: ModelPlaces,
  tensor: Pick<Replacement, 'name' | 'module' | 'dtype' | 'shape' | 'isTrained'>,
  isConv1d: boolean,
  isReplaced: (name: string) => boolean,
): Promise<StoredPlace[]> {
  const { graph } = places
  const { name, module, shape } = tensor
  const member = name.slice(module.length + 1)
  if (!isWeightDtype(tensor.dtype)) refuse(name, 'values of this type cannot take a place in the graph', tensor.dtype)
  const linears = ofModule(places.linears, module)
  if (linears.length > 0 && member === 'weight') {
    const found: StoredPlace[] = linears.map((linear) => {
      const isInputMajor = isStoredInputMajor(linear, name, shape, isConv1d)
      return { kind: 'weight', linear, module, isInputMajor }
    })
    // A copy that was merely saved is for all uses of the base's tensor.
    for (const embedding of tensor.isTrained ? [] : places.embeddings) {
      const tied = await tiedHeads(embedding, { ...places, linears })
      if (tied.length === 0 || isReplaced(`${embedding.name}.weight`)) continue
      found.push({ kind: 'weight', linear: embedding, module: embedding.name, isInputMajor: true })
    }
    return found
  }
  if (linears.length > 0 && member === 'bias') {
    return linears.map((linear) => ({ kind: 'bias', linear, bias: ownBias(graph, linear, name, shape) }))
  }
  if (member === 'weight' && ofModule(places.embeddings, module).length > 0) {
    const found: StoredPlace[] = []
    for (const embedding of embeddingsOf(places, module, [shape[0], shape[1]])) {
      found.push({ kind: 'weight', linear: embedding, module: embedding.name, isInputMajor: true })
      // In PEFT a trained copy replaces only the embedding. A copy that was merely saved equals the base's tensor,
      // which the tied head reads too.
      const heads = tensor.isTrained ? [] : await tiedHeads(embedding, places)
      for (const linear of heads) {
        if (isReplaced(`${linear.name}.weight`)) continue
        found.push({ kind: 'weight', linear, module: linear.name, isInputMajor: false })
      }
    }
    return found
  }
  const others = placesOf(graph, name, shape)
  if (others.length === 0) {
    const ops = graph.nodes.filter((node) => nodeScope(node) === module).map(({ opType }) => opType)
    refuse(name, 'the graph has no tensor that is certain to be this one', ops.join(', ') || 'no node')
  }
  const { model_type: type = 'no model_type in config.json' } = places.config
  const offset = normOffset(graph, places.config, name) ?? refuse(name, UNKNOWN_OFFSET, String(type))
  return others.map((place) => ({ kind: 'other', place, offset }))
}

/** Finds the embedding or the head that has these rows, or both if they are tied. */
export async function placeTokenRows(
  places: ModelPlaces,
  tensor: Pick<TokenRows, 'module' | 'indices' | 'dtype' | 'shape'>,
  isReplaced: (module: string) => boolean,
): Promise<Linear[]> {
  const { module, indices, shape } = tensor
  if (!isWeightDtype(tensor.dtype)) refuse(module, 'rows of this type cannot take a place in the graph', tensor.dtype)
  const inRange = (vocabulary: number) => {
    const outside = indices.find((token) => token >= vocabulary)
    if (outside === undefined) return
    throw new MismatchError({ where: module, what: `no row ${outside} to replace`, expected: `below ${vocabulary}` })
  }
  const ofHead = (linear: Linear) => {
    if (linear.k !== shape[1]) throw shapeError(module, [indices.length, linear.k], shape)
    inRange(linear.d)
    return linear
  }
  const heads = ofModule(places.linears, module)
  if (heads.length > 0) return heads.map(ofHead)
  const found: Linear[] = []
  for (const embedding of embeddingsOf(places, module, [undefined, shape[1]])) {
    inRange(embedding.k)
    found.push(embedding)
    const tied = await tiedHeads(embedding, places)
    found.push(...tied.filter(({ name }) => !isReplaced(name)).map(ofHead))
  }
  return found
}

/** Finds embeddings by name. An undefined size matches any. Throws UnsupportedError if the graph has none. */
export function embeddingsOf(
  { graph, embeddings }: ModelPlaces,
  module: string,
  [vocabulary, features]: readonly [number | undefined, number | undefined],
): Linear[] {
  const found = ofModule(embeddings, module)
  if (found.length === 0) {
    const ops = graph.nodes.filter((node) => nodeScope(node) === module).map(({ opType }) => opType)
    throw new UnsupportedError({
      where: module,
      what: 'the graph has no embedding of this name, or not in a form that lowrank reads',
      ...(ops.length > 0 && { got: ops.join(', ') }),
      hint: didYouMean(module, new Set(embeddings.map(({ name }) => name)), 3),
    })
  }
  for (const place of found) {
    const { k, d } = place
    const wanted = [vocabulary ?? k, features ?? d]
    if (wanted[0] !== k || wanted[1] !== d) throw shapeError(module, [k, d], wanted)
  }
  return found
}

function ownBias(graph: Graph, linear: Linear, name: string, shape: readonly number[]): BiasPlace {
  const bias = certainBias(graph, linear)
  if (bias === undefined) refuse(name, 'the linear layer has no bias that is certain to be this one', linear.node.name)
  if (shape.length !== 1 || shape[0] !== linear.d) throw shapeError(name, [linear.d], shape)
  return bias
}

function isStoredInputMajor(linear: Linear, name: string, shape: readonly number[], isConv1d: boolean): boolean {
  const { d, k, fused } = linear
  if (fused !== undefined) refuse(name, 'the linear layer computes several layers', linear.node.name)
  const [rows, columns] = shape
  const isOutputMajor = shape.length === 2 && rows === d && columns === k
  const isInputMajor = shape.length === 2 && rows === k && columns === d
  if (!isOutputMajor && !isInputMajor) throw shapeError(name, [d, k], shape)
  if (isOutputMajor && isInputMajor && isConv1d) {
    refuse(name, 'a square weight of a model with Conv1D layers could be stored either way', formatShape(shape))
  }
  return !isOutputMajor
}

/** Returns what the graph's value exceeds PyTorch's by, or undefined if that is not known. */
export function normOffset(
  { producerName }: Pick<Graph, 'producerName'>,
  config: Readonly<Record<string, unknown>>,
  name: string,
): number | undefined {
  if (producerName !== 'onnxruntime-genai' || !name.endsWith('.weight')) return 0
  return modelType(config.model_type).normOffset
}

export const UNKNOWN_OFFSET =
  'for this type of model, it is not known whether onnxruntime-genai has added 1 to the weights of norms'

export function refuse(where: string, what: string, got?: string): never {
  throw new UnsupportedError({ where, what, ...(got !== undefined && { got }) })
}

// Tied embeddings are one initializer, two with the same values (an exporter folded a transpose into a copy), or a
// float and an integer initializer with about the same values.

/** Tokens to compare, in two stretches. Untied embeddings differ everywhere. */
const COMPARED_TOKENS = 64

/** 4 bits change a weight by about a tenth of its norm; untied weights are further apart than their norm. */
const QUANTIZED_DISTANCE = 0.4

export async function tiedHeads(
  embedding: Linear,
  { model, graph, linears }: Pick<ModelPlaces, 'model' | 'graph' | 'linears'>,
): Promise<Linear[]> {
  const heads = linears.filter(({ isHead, d, k }) => isHead && d === embedding.k && k === embedding.d)
  const isTied = await Promise.all(heads.map((head) => haveSameTokens(model, graph, embedding, head)))
  return heads.filter((_, i) => isTied[i])
}

/** Compares values: exactly, or approximately if at least one side is stored as integers. */
async function haveSameTokens(model: OnnxModel, graph: Graph, embedding: Linear, head: Linear): Promise<boolean> {
  const both = [embedding, head]
  const isExact = both.every(({ form }) => !form.isQuantized)
  if (isExact && embedding.weight === head.weight) return true
  if (!isExact && both.some(({ problem }) => problem !== undefined)) return false
  const count = Math.min(COMPARED_TOKENS / 2, head.d)
  const starts = [0, Math.floor((head.d - count) / 2)]
  const tokens = starts.flatMap((first) => Array.from({ length: count }, (_, i) => first + i))
  const [values, others] = [
    await readTokenRows(model, graph, embedding, tokens),
    await readTokenRows(model, graph, head, tokens),
  ]
  let [square, distance] = [0, 0]
  for (let i = 0; i < values.length; i++) {
    square += values[i] ** 2
    distance += (values[i] - others[i]) ** 2
  }
  return isExact ? distance === 0 : distance < QUANTIZED_DISTANCE ** 2 * square
}
