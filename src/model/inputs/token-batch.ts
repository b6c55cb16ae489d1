// Batches of texts, padded on the right.

import type { Feeds } from '../../onnx/runtime/runtime.js'
import type { Graph } from '../../onnx/view/graph.js'
import { type Model, requireTokenizer, type TextModel } from '../model-folder.js'
import type { Span } from '../text/added-tokens.js'
import { checkVocabulary } from '../text/tokenizer.js'
import { encodeWords } from '../text/words.js'
import type { TokenBatch } from './roles.js'
import { encoderInputs } from './tokens.js'

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

/** Tokens of a text or a pair of texts, as an encoder reads them. */
export interface EncodedTexts {
  readonly inputIds: Int32Array
  /** 1 for tokens of the second text. */
  readonly tokenTypeIds: Int32Array
  readonly isTruncated: boolean
}

export function encodeTexts(
  model: TextModel,
  text: string,
  textPair: string | undefined,
  length: number,
): EncodedTexts {
  return plain(model, requireTokenizer(model).encodeTexts(text, textPair, length))
}

export function encodeTagged(model: TextModel, text: string, words: readonly Span[], length: number) {
  const encoded = encodeWords(requireTokenizer(model), text, words, length)
  return { ...plain(model, encoded), firsts: encoded.firsts }
}

function plain(
  model: TextModel,
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
