// Pictures in the size that a model reads, for models that see nothing else.

import type { Feeds } from '../../onnx/runtime/runtime.js'
import { type ImageProcessor, imageProcessor } from '../images/processor.js'
import { imageFeeds } from '../inputs/images.js'
import type { Model } from '../model-folder.js'

export function processorOf({
  preprocessorConfig,
  config,
}: Pick<Model, 'preprocessorConfig' | 'config'>): ImageProcessor {
  return imageProcessor(preprocessorConfig, config.image_size)
}

/** Feeds pictures that already have the model's size. */
export function pictureFeeds(processor: ImageProcessor, pictures: readonly Uint8Array[]): Feeds {
  const { width, height } = processor
  const size = 3 * width * height
  const values = new Float32Array(pictures.length * size)
  pictures.forEach((pixels, i) => void processor.write(pixels, values.subarray(i * size, (i + 1) * size)))
  return imageFeeds(values, pictures.length, height, width)
}
