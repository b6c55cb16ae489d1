// Batches of texts padded on the right, their predictions, and the two small runs that measure shapes.

import type { TokenBatch } from '../graph/inputs/roles.js'
import { encoderInputs } from '../graph/inputs/tokens.js'
import { chunkOf } from '../graph/lower/chunks.js'
import { type Model, requireTokenizer } from '../graph/model-folder.js'
import type { RunLength } from '../graph/shapes/plain-shapes.js'
import type { Length } from '../graph/training/objective-graph.js'
import type { Graph } from '../graph/view/graph.js'
import type { Feeds } from '../runtime/runtime.js'
import type { Span } from '../text/added-tokens.js'
import { checkVocabulary } from '../text/tokenizer.js'
import { encodeWords } from '../text/words.js'

function padded(lists: readonly ArrayLike<number>[], length: number, fill: number): Int32Array {
  const result = new Int32Array(lists.length * length).fill(fill)
  lists.forEach((list, row) => void result.set(list, row * length))
  return result
}

/** `typeIds`: 1 for tokens of the second text of a pair, else 0. */
export function tokenBatch(
  ids: readonly ArrayLike<number>[],
  length: number,
  padTokenId: number,
  typeIds?: readonly ArrayLike<number>[],
): TokenBatch {
  const attentionMask = new Int32Array(ids.length * length)
  ids.forEach((list, row) => void attentionMask.fill(1, row * length, row * length + list.length))
  return {
    batch: ids.length,
    sequence: length,
    inputIds: padded(ids, length, padTokenId),
    attentionMask,
    tokenTypeIds: typeIds && padded(typeIds, length, 0),
  }
}

/** Returns the rows of the predictions, which are the only output with two axes. */
export function predictedRows(outputs: Readonly<Feeds>): Float32Array[] {
  const { data, dims } = Object.values(outputs).find((output) => output.dims.length === 2)!
  const [rows, width] = dims
  return Array.from({ length: rows }, (_, row) => (data as Float32Array).slice(row * width, (row + 1) * width))
}

/** Tokens of a text or a pair of texts, as an encoder reads them. */
export interface EncodedTexts {
  readonly inputIds: Int32Array
  /** 1 for tokens of the second text. */
  readonly tokenTypeIds: Int32Array
  readonly isTruncated: boolean
}

export function encodeTexts(model: Model, text: string, textPair: string | undefined, length: number): EncodedTexts {
  return plain(model, requireTokenizer(model).encodeTexts(text, textPair, length))
}

export function encodeTagged(model: Model, text: string, words: readonly Span[], length: number) {
  const encoded = encodeWords(requireTokenizer(model), text, words, length)
  return { ...plain(model, encoded), firsts: encoded.firsts }
}

function plain(
  model: Model,
  { ids, typeIds, isTruncated }: { ids: readonly number[]; typeIds: readonly number[]; isTruncated: boolean },
): EncodedTexts {
  checkVocabulary(ids, { tokenizer: requireTokenizer(model), vocabularySize: model.vocabularySize })
  return { inputIds: Int32Array.from(ids), tokenTypeIds: Int32Array.from(typeIds), isTruncated }
}

export function encoderFeeds({ padTokenId }: Model, graph: Graph) {
  const inputs = encoderInputs(graph)
  return (texts: readonly Omit<EncodedTexts, 'isTruncated'>[], length: number): Feeds => {
    const types = texts.map(({ tokenTypeIds }) => tokenTypeIds)
    const ids = texts.map(({ inputIds }) => inputIds)
    return inputs.feeds(tokenBatch(ids, length, padTokenId, types))
  }
}

/** Lengths are rounded up to a multiple of this, so that the runtime's memory pool sees few sizes. */
const LENGTH_MULTIPLE = 8

export function roundUp(length: number): number {
  return Math.ceil(length / LENGTH_MULTIPLE) * LENGTH_MULTIPLE
}

/**
 * The two runs that show how the shapes of a graph depend on batch and sequence. The numbers are chosen so that no
 * length can arise in two ways in both runs.
 */
export const PROBE_BATCHES = [
  { batch: 2, sequence: 3 },
  { batch: 5, sequence: 7 },
] as const

const IDS = 'input_ids'

export function tokenLengths(sequences: readonly [number, number] = [3, 7]): Length[] {
  const [batch, sequence] = [batchLength(IDS), ownLength('sequence', sequences, { input: IDS, axis: 1 })]
  return [batch, sequence, productLength('rows', batch, sequence)]
}

export interface TokenProbe {
  readonly batches: readonly [ProbeBatch, ProbeBatch]
  readonly lengths: readonly Length[]
}

interface ProbeBatch {
  readonly batch: number
  readonly sequence: number
}

/** Returns {@link PROBE_BATCHES}; for a graph that reads tokens in chunks, runs of one and of two chunks. */
export function tokenProbe(graph: Graph): TokenProbe {
  const chunk = chunkOf(graph)
  if (chunk === undefined) return { batches: PROBE_BATCHES, lengths: tokenLengths() }
  const [first, second] = PROBE_BATCHES
  const sequence = second.sequence + chunk - 1
  const of = (feeds: Feeds) => Math.ceil(feeds[IDS].dims[1] / chunk)
  const chunks: Length = { name: 'chunks', probed: [1, 2], of, tokens: chunk }
  return { batches: [first, { ...second, sequence }], lengths: [...tokenLengths([first.sequence, sequence]), chunks] }
}

export function batchLength(input: string): Length {
  return ownLength('batch', [PROBE_BATCHES[0].batch, PROBE_BATCHES[1].batch], { input, axis: 0 })
}

export function ownLength(name: string, probed: readonly [number, number], source: RunLength): Length {
  return { name, probed, of: (feeds) => feeds[source.input].dims[source.axis], source }
}

export function productLength(name: string, first: Length, second: Length): Length {
  const [a, b] = second.probed
  return { name, probed: [first.probed[0] * a, first.probed[1] * b], of: (feeds) => first.of(feeds) * second.of(feeds) }
}
