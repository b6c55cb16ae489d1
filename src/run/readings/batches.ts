// Puts texts of similar length into batches. Padding is masked, so the result of a text does not depend on the others.

import { DataError } from '../../core/base/errors.js'
import { anyOf, checkArgument, isObject, kind, STRING } from '../../core/base/options.js'
import { type DecodeImage, type ImageSource, readImage } from '../../model/images/image.js'
import { checkImageInputs } from '../../model/inputs/images.js'
import { type EncodedTexts, encoderFeeds, encodeTexts } from '../../model/inputs/token-batch.js'
import type { Model } from '../../model/model-folder.js'
import { pictureFeeds, processorOf } from '../../model/pictures/fitted.js'
import type { Feeds } from '../../onnx/runtime/runtime.js'
import type { Graph } from '../../onnx/view/graph.js'
import type { BatchOptions, TextOrPair } from '../session.js'

const PAIR = kind('an object with text and textPair', (value) => {
  if (!isObject(value)) return false
  const { text, textPair, ...others } = value
  const isPair = textPair === undefined || typeof textPair === 'string'
  return typeof text === 'string' && isPair && Object.keys(others).length === 0
})

export const TEXT_OR_PAIR = anyOf(STRING, PAIR)

export function listOfTexts<T>(texts: T | readonly T[], expected: Parameters<typeof checkArgument>[1]): readonly T[] {
  const list = Array.isArray(texts) ? (texts as readonly T[]) : [texts as T]
  list.forEach((text, i) => void checkArgument(text, expected, Array.isArray(texts) ? `texts[${i}]` : 'texts'))
  return list
}

export function encodeAll(
  model: Model,
  texts: readonly TextOrPair[],
  limit = Number.POSITIVE_INFINITY,
): EncodedTexts[] {
  const most = Math.min(limit, model.contextLength ?? limit)
  return texts.map((input, i) => {
    const { text, textPair } = typeof input === 'string' ? { text: input, textPair: undefined } : input
    const encoded = encodeTexts(model, text, textPair, most)
    if (encoded.inputIds.length > 0) return encoded
    throw new DataError({ where: `texts[${i}]`, what: 'it has no tokens, and the tokenizer adds none' })
  })
}

/** The indices of the inputs that run together, and their feeds. */
interface Batch {
  readonly inputs: readonly number[]
  readonly feeds: Feeds
}

export async function* batchesOf(
  order: readonly number[],
  feedsOf: (inputs: readonly number[]) => Feeds | Promise<Feeds>,
  { batchSize = 8, signal }: BatchOptions,
): AsyncGenerator<Batch, void> {
  for (let from = 0; from < order.length; from += batchSize) {
    signal?.throwIfAborted()
    const inputs = order.slice(from, from + batchSize)
    yield { inputs, feeds: await feedsOf(inputs) }
  }
}

export function textBatches(
  model: Model,
  graph: Graph,
  texts: readonly Omit<EncodedTexts, 'isTruncated'>[],
  options: BatchOptions,
): AsyncGenerator<Batch, void> {
  const feeds = encoderFeeds(model, graph)
  const lengthOf = (text: number) => texts[text].inputIds.length
  const order = [...texts.keys()].sort((a, b) => lengthOf(a) - lengthOf(b))
  const textsOf = (chosen: readonly number[]) => chosen.map((text) => texts[text])
  return batchesOf(order, (batch) => feeds(textsOf(batch), Math.max(...batch.map(lengthOf))), options)
}

export function imageBatches(
  { model, decodeImage }: { readonly model: Model; readonly decodeImage: DecodeImage | undefined },
  graph: Graph,
  images: readonly ImageSource[],
  options: BatchOptions,
): AsyncGenerator<Batch, void> {
  checkImageInputs(graph)
  const processor = processorOf(model)
  const feedsOf = async (batch: readonly number[]) => {
    const pictures: Uint8Array[] = []
    for (const i of batch) {
      const where = `image ${i + 1}`
      pictures.push(processor.fit(await readImage(images[i], decodeImage, where), where))
    }
    return pictureFeeds(processor, pictures)
  }
  return batchesOf([...images.keys()], feedsOf, options)
}
