// Pictures in batches, for models that read them.

import { kind } from '../base/options.js'
import { checkImageInputs, imageFeeds } from '../graph/inputs/images.js'
import type { Model } from '../graph/model-folder.js'
import type { Graph } from '../graph/view/graph.js'
import { type DecodeImage, type ImageSource, readImage } from '../images/image.js'
import { isImageSource } from '../images/image-source.js'
import type { Feeds } from '../runtime/runtime.js'
import type { BatchOptions } from './session.js'

/** Pictures in a run where nothing else is asked for. */
const BATCH_SIZE = 8

/** One picture as a call gives it. */
export const IMAGE = kind('a picture: a path, the bytes of a file, or { data, width, height }', isImageSource)

/** A batch of pictures. */
export interface ImageBatch {
  /** Numbers of the pictures. */
  readonly texts: readonly number[]
  readonly feeds: Feeds
}

/**
 * All pictures, in their order.
 *
 * @throws UnsupportedError when the graph reads more than pictures, or the model's files do not tell how; DataError for a picture that
 *   cannot be read; the signal's reason
 */
export async function* imageBatches(
  { model, decodeImage }: { readonly model: Model; readonly decodeImage: DecodeImage | undefined },
  graph: Graph,
  images: readonly ImageSource[],
  { batchSize = BATCH_SIZE, signal }: BatchOptions,
): AsyncGenerator<ImageBatch, void> {
  checkImageInputs(graph)
  const { imageProcessor } = await import('../images/processor.js')
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
