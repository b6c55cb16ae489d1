// Texts in batches of like length: what is filled up is masked, so that a text's result does not depend on the others.

import { DataError } from '../../base/errors.js'
import { anyOf, checkArgument, isObject, kind, STRING } from '../../base/options.js'
import { checkImageInputs, imageFeeds } from '../../graph/inputs/images.js'
import { encoderInputs } from '../../graph/inputs/tokens.js'
import { type Model, requireTokenizer } from '../../graph/model-folder.js'
import type { Graph } from '../../graph/view/graph.js'
import { type DecodeImage, type ImageSource, readImage } from '../../images/image.js'
import { imageProcessor } from '../../images/processor.js'
import type { Feeds } from '../../runtime/runtime.js'
import { soundFeeds, soundSize } from '../../tasks/audio-classification.js'
import { checkSize, featuresOf } from '../../tasks/features.js'
import { tokenBatch } from '../../tasks/token-batch.js'
import { checkVocabulary } from '../../text/records.js'
import type { BatchOptions, SoundInput, TextOrPair } from '../session.js'

const BATCH_SIZE = 8

const PAIR = kind('an object with text and textPair', (value) => {
  if (!isObject(value)) return false
  const { text, textPair, ...others } = value
  const isPair = textPair === undefined || typeof textPair === 'string'
  return typeof text === 'string' && isPair && Object.keys(others).length === 0
})

export const TEXT_OR_PAIR = anyOf(STRING, PAIR)

export interface EncodedText {
  readonly ids: readonly number[]
  readonly typeIds: readonly number[]
  readonly isTruncated: boolean
}

export function listOfTexts<T>(texts: T | readonly T[], expected: Parameters<typeof checkArgument>[1]): readonly T[] {
  const list = Array.isArray(texts) ? (texts as readonly T[]) : [texts as T]
  list.forEach((text, i) => void checkArgument(text, expected, Array.isArray(texts) ? `texts[${i}]` : 'texts'))
  return list
}

export function encodeTexts(
  model: Model,
  texts: readonly TextOrPair[],
  limit = Number.POSITIVE_INFINITY,
): EncodedText[] {
  const { vocabularySize, contextLength = Number.POSITIVE_INFINITY } = model
  const tokenizer = requireTokenizer(model)
  return texts.map((input, i) => {
    const { text, textPair } = typeof input === 'string' ? { text: input, textPair: undefined } : input
    const encoded = tokenizer.encodeTexts(text, textPair, Math.min(limit, contextLength))
    if (encoded.ids.length === 0) {
      throw new DataError({ where: `texts[${i}]`, what: 'it has no tokens, and the tokenizer adds none' })
    }
    checkVocabulary(encoded.ids, { tokenizer, vocabularySize })
    return encoded
  })
}

export interface TextBatch {
  readonly texts: readonly number[]
  readonly sequence: number
  readonly feeds: Feeds
}

export function* batchesOf(
  { padTokenId }: Pick<Model, 'padTokenId'>,
  graph: Graph,
  encoded: readonly EncodedText[],
  { batchSize = BATCH_SIZE, signal }: BatchOptions,
): Generator<TextBatch, void> {
  const inputs = encoderInputs(graph)
  const order = [...encoded.keys()].sort((a, b) => encoded[a].ids.length - encoded[b].ids.length)
  for (let from = 0; from < order.length; from += batchSize) {
    signal?.throwIfAborted()
    const texts = order.slice(from, from + batchSize)
    const ids = texts.map((i) => encoded[i].ids)
    const types = texts.map((i) => encoded[i].typeIds)
    const sequence = Math.max(...ids.map(({ length }) => length))
    const feeds = inputs.feeds(tokenBatch(ids, sequence, padTokenId, types))
    yield { texts, sequence, feeds }
  }
}

export interface ImageBatch {
  readonly texts: readonly number[]
  readonly feeds: Feeds
}

export async function* imageBatches(
  { model, decodeImage }: { readonly model: Model; readonly decodeImage: DecodeImage | undefined },
  graph: Graph,
  images: readonly ImageSource[],
  { batchSize = BATCH_SIZE, signal }: BatchOptions,
): AsyncGenerator<ImageBatch, void> {
  checkImageInputs(graph)
  const processor = imageProcessor(model.preprocessorConfig, model.config.image_size)
  const { width, height } = processor
  const size = 3 * width * height
  for (let from = 0; from < images.length; from += batchSize) {
    signal?.throwIfAborted()
    const own = images.slice(from, from + batchSize)
    const pixels = new Float32Array(own.length * size)
    for (const [i, image] of own.entries()) {
      const where = `image ${from + i + 1}`
      const fitted = processor.fit(await readImage(image, decodeImage, where), where)
      processor.write(fitted, pixels.subarray(i * size, (i + 1) * size))
    }
    yield { texts: own.map((_, i) => from + i), feeds: imageFeeds(pixels, own.length, height, width) }
  }
}

export function* soundBatches(
  model: Model,
  sounds: readonly SoundInput[],
  { batchSize = BATCH_SIZE, signal }: BatchOptions,
): Generator<ImageBatch, void> {
  const size = soundSize(model)
  for (let from = 0; from < sounds.length; from += batchSize) {
    signal?.throwIfAborted()
    const own = sounds.slice(from, from + batchSize).map(({ input_features: features }, i) => {
      const where = `sound ${from + i + 1}`
      return checkSize(featuresOf(features, where), size, where)
    })
    yield { texts: own.map((_, i) => from + i), feeds: soundFeeds(own, size) }
  }
}
