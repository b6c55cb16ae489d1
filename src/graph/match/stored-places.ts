// Where the tensors of an adapter that take the place of the base's own go in a graph: whole tensors (modules_to_save, biases), and rows of
// an embedding (trainable_token_indices). For sessions and for merging.

import { isWeightDtype } from '../../base/dtype.js'
import { MismatchError, nearMisses, UnsupportedError } from '../../base/errors.js'
import { formatShape } from '../../base/tensor.js'
import type { OnnxModel } from '../../formats/onnx/model.js'
import type { Replacement, TokenRows } from '../../lora/kinds/stored.js'
import type { Graph } from '../view/graph.js'
import { type Linear, nodeScope } from './linears.js'
import { normOffset, UNKNOWN_OFFSET } from './norm-offset.js'
import { type BiasPlace, certainBias, type Embedding, ofModule, type Place, placesOf } from './parameters.js'
import { refuse, shapeError } from './refusals.js'

/** A graph, and what of it adapters can change. */
export interface ModelPlaces {
  readonly model: OnnxModel
  readonly graph: Graph
  readonly linears: readonly Linear[]
  readonly embeddings: readonly Embedding[]
  /** config.json; empty where it is not known. */
  readonly config: Readonly<Record<string, unknown>>
}

/** A linear layer whose weight is replaced. */
export interface WeightPlace {
  readonly kind: 'weight'
  readonly linear: Linear
  /** The adapter's module, or that of the head which is tied to it. */
  readonly module: string
  /** The adapter holds it (k, d), not (d, k). */
  readonly isInputMajor: boolean
}

/** An embedding whose weight is replaced. */
export interface EmbeddingPlace {
  readonly kind: 'lookup'
  readonly embedding: Embedding
}

/** What a replaced tensor takes the place of. */
export type StoredPlace =
  | WeightPlace
  | EmbeddingPlace
  | { readonly kind: 'bias'; readonly linear: Linear; readonly bias: BiasPlace }
  | {
      readonly kind: 'other'
      readonly place: Place
      /** What is added to the adapter's values: see {@link normOffset}. */
      readonly offset: number
    }

/**
 * All places of a whole tensor: a linear layer's weight or bias, an embedding, or what a norm reads.
 *
 * @param isConv1d whether the adapter's base stores weights (k, d)
 * @param isReplaced whether the adapter replaces a tensor of this name
 * @throws MismatchError for another shape; UnsupportedError for a tensor that has no certain place
 */
export async function placeReplacement(
  places: ModelPlaces,
  tensor: Replacement,
  isConv1d: boolean,
  isReplaced: (name: string) => boolean,
): Promise<StoredPlace[]> {
  const { graph } = places
  const { name, module, shape } = tensor
  const member = name.slice(module.length + 1)
  if (!isWeightDtype(tensor.dtype)) refuse(name, 'values of this type cannot take a place in the graph', tensor.dtype)
  const linears = ofModule(places.linears, module)
  if (linears.length > 0 && member === 'weight') {
    return linears.map((linear) => {
      const isInputMajor = isStoredInputMajor(linear, name, shape, isConv1d)
      return { kind: 'weight', linear, module, isInputMajor }
    })
  }
  if (linears.length > 0 && member === 'bias') {
    return linears.map((linear) => ({ kind: 'bias', linear, bias: ownBias(graph, linear, name, shape) }))
  }
  if (member === 'weight' && ofModule(places.embeddings, module).length > 0) {
    const found: StoredPlace[] = []
    for (const embedding of embeddingsOf(places, module, [shape[0], shape[1]])) {
      found.push({ kind: 'lookup', embedding })
      // A trained copy is the embedding's alone in PEFT; one that is only saved along is the base's own, which both uses read.
      const heads = tensor.isTrained ? [] : await headsTiedTo(embedding, places)
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
    refuse(
      name,
      'the graph has no tensor that is certain to be this one',
      ops.length === 0 ? 'no node' : ops.join(', '),
    )
  }
  const offset = normOffset(graph, places.config, name) ?? refuse(name, UNKNOWN_OFFSET, typeOf(places.config))
  return others.map((place) => ({ kind: 'other', place, offset }))
}

function typeOf({ model_type: type }: ModelPlaces['config']): string {
  return type === undefined ? 'no model_type in config.json' : String(type)
}

/**
 * All places of rows of an embedding, or of the head: the same tokens, in tied embeddings of both.
 *
 * @param isReplaced whether the adapter replaces rows of this module
 * @throws MismatchError for rows of another length, or beyond the vocabulary; UnsupportedError for a module that is not found
 */
export async function placeTokenRows(
  places: ModelPlaces,
  tensor: TokenRows,
  isReplaced: (module: string) => boolean,
): Promise<(WeightPlace | EmbeddingPlace)[]> {
  const { module, indices, shape } = tensor
  if (!isWeightDtype(tensor.dtype)) refuse(module, 'rows of this type cannot take a place in the graph', tensor.dtype)
  const inRange = (vocabulary: number) => {
    const outside = indices.find((token) => token >= vocabulary)
    if (outside === undefined) return
    throw new MismatchError({ where: module, what: `no row ${outside} to replace`, expected: `below ${vocabulary}` })
  }
  const ofHead = (linear: Linear): WeightPlace => {
    if (linear.k !== shape[1]) throw shapeError(module, [indices.length, linear.k], shape)
    inRange(linear.d)
    return { kind: 'weight', linear, module: linear.name, isInputMajor: false }
  }
  const heads = ofModule(places.linears, module)
  if (heads.length > 0) return heads.map(ofHead)
  const found: (WeightPlace | EmbeddingPlace)[] = []
  for (const embedding of embeddingsOf(places, module, [undefined, shape[1]])) {
    inRange(embedding.vocabulary)
    found.push({ kind: 'lookup', embedding })
    const tied = await headsTiedTo(embedding, places)
    found.push(...tied.filter(({ name }) => !isReplaced(name)).map(ofHead))
  }
  return found
}

/** Most adapters leave embeddings as they are: a page that has none that changes them fetches no code for this. */
async function headsTiedTo(embedding: Embedding, { model, graph, linears }: ModelPlaces): Promise<Linear[]> {
  return (await import('./tied.js')).tiedHeads(model, graph, embedding, linears)
}

/**
 * The embeddings of a module.
 *
 * @param shape what the adapter has; undefined: any
 * @throws UnsupportedError when the graph has none of this name, MismatchError for another shape
 */
export function embeddingsOf(
  { graph, embeddings }: ModelPlaces,
  module: string,
  [vocabulary, features]: readonly [number | undefined, number | undefined],
): Embedding[] {
  const found = ofModule(embeddings, module)
  if (found.length === 0) {
    const ops = graph.nodes.filter((node) => nodeScope(node) === module).map(({ opType }) => opType)
    const near = nearMisses(module, new Set(embeddings.map(({ name }) => name)))
    throw new UnsupportedError({
      where: module,
      what: 'the graph has no embedding of this name, or not in a form that lowrank reads',
      ...(ops.length > 0 && { got: ops.join(', ') }),
      ...(near.length > 0 && { hint: `Nearest: ${near.join(', ')}` }),
    })
  }
  for (const place of found) {
    const [v, d] = [vocabulary ?? place.vocabulary, features ?? place.features]
    if (v === place.vocabulary && d === place.features) continue
    throw shapeError(module, [place.vocabulary, place.features], [v, d])
  }
  return found
}

/** A bias that has to be that of the module, not only a constant that is added. */
function ownBias(graph: Graph, linear: Linear, name: string, shape: readonly number[]): BiasPlace {
  const bias = certainBias(graph, linear)
  if (bias === undefined) refuse(name, 'the linear layer has no bias that is certain to be this one', linear.node.name)
  if (shape.length !== 1 || shape[0] !== linear.d) throw shapeError(name, [linear.d], shape)
  return bias
}

/** Whether a replaced weight is (k, d), as Conv1D keeps it. */
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
