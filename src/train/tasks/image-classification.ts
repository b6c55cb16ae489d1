// Image classification: labels or a number for a picture. Examples hold the bytes of pictures in the model's size.

import { DataError } from '../../core/base/errors.js'
import { objectOf } from '../../core/base/options.js'
import type { HeadBase } from '../../model/heads/heads.js'
import { type ImageSource, type Pixels, readImage } from '../../model/images/image.js'
import { isImageSource } from '../../model/images/image-source.js'
import { PIXELS } from '../../model/inputs/family.js'
import { checkImageInputs } from '../../model/inputs/images.js'
import type { Model } from '../../model/model-folder.js'
import { pictureFeeds, processorOf } from '../../model/pictures/fitted.js'
import { fieldsOf } from '../../model/text/records.js'
import { type Labeled, type LabelOptions, targetOf } from './labels/label-problems.js'
import { type Inputs, labelParts } from './labels/label-task.js'
import type { Task } from './task.js'
import { batchLength } from './token-probe.js'

export interface LabeledImage extends Labeled {
  readonly image: ImageSource | Pixels
}

/** A picture in the model's size. */
export interface ImageExample extends Labeled {
  /** Red, green and blue of each pixel, row by row. */
  readonly pixels: Uint8Array
}

/** PEFT has no task_type for pictures, but its model without a type accepts any inputs. */
export const imageClassification: Task<LabeledImage, ImageExample, LabelOptions> = {
  name: 'image-classification',
  peftType: undefined,
  learns: 'to give pictures labels',
  records: [{ image: 'sea.jpg', label: 'calm' }],
  use: {
    command: ['classify', '--image', 'photo.jpg'],
    pipeline: 'image-classification',
    autoClass: 'AutoModelForImageClassification',
    onlyMerged: true,
  },
  page: {
    lesson: 'The adapter will learn labels for pictures.',
    unit: 'pictures',
    settings: { maxSteps: 100, learningRate: 0.002, batchSize: 8 },
  },
  learningRate: 1e-3,
  ...labelParts('image', imageInputs),

  parse(row, where) {
    const { image, label: given, labels } = objectOf(row)
    const label = targetOf(given ?? labels)
    if (isImageSource(image) && label !== undefined) return { image, label, where }
    throw new DataError({
      where,
      what: 'not a picture with a label',
      expected: '"image": a path, the bytes of a file, or { data, width, height }; and "label"',
      got: fieldsOf(row),
      hint: 'If the fields have other names, give them with `columns: { image: …, label: … }`',
    })
  },

  async load(row, { decodeImage }) {
    const where = `${row.where}, image`
    return { ...row, image: await readImage(row.image, decodeImage, where) }
  },

  encode({ image, label, where }, { model }) {
    const pixels = processorOf(model).fit(image as Pixels, `${where}, image`)
    return { examples: [{ pixels, label, where }], isTruncated: false }
  },
}

function imageInputs(model: Model, { graph }: HeadBase): Inputs<ImageExample> {
  checkImageInputs(graph)
  const processor = processorOf(model)
  const { width, height } = processor
  const patch = typeof model.config.patch_size === 'number' ? model.config.patch_size : 16
  const tokens = Math.floor(width / patch) * Math.floor(height / patch) + 1
  return {
    lengths: [batchLength(PIXELS)],
    zeros: (label) => ({ pixels: new Uint8Array(width * height * 3), label }),
    feeds(examples) {
      const pictures = examples.map(({ pixels }) => pixels)
      return pictureFeeds(processor, pictures)
    },
    cost: () => tokens,
  }
}
