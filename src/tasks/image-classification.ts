// Image classification: a label, several, or a number for a picture. Pictures are kept as bytes in the model's size.

import { DataError } from '../base/errors.js'
import { isObject } from '../base/options.js'
import { checkImageInputs, imageFeeds, PIXELS } from '../graph/inputs/images.js'
import type { Model } from '../graph/model-folder.js'
import { type ImageSource, type Pixels, readImage } from '../images/image.js'
import { isImageSource } from '../images/image-source.js'
import { type ImageProcessor, imageProcessor } from '../images/processor.js'
import type { Feeds } from '../runtime/runtime.js'
import { fieldsOf } from '../text/records.js'
import { LABEL_OPTIONS } from './gen/options.js'
import { findHead, requireHead } from './heads/head-forms.js'
import { checkHead, headBase } from './heads/trained-head.js'
import { type LabelOptions, type Target, targetOf } from './labels/label-problems.js'
import { LabelTask, labelBytes } from './labels/label-task.js'
import type { Examples, HeadOptions, OpenTask, Task } from './task.js'
import { ownLength } from './token-batch.js'

/** A row of data. */
export interface LabeledImage {
  readonly image: ImageSource | Pixels
  readonly label: Target
  readonly where: string
}

/** A picture in the model's size. */
export interface ImageExample {
  /** Red, green and blue of each pixel, row by row. */
  readonly pixels: Uint8Array
  readonly label: Target
  /** The record, for messages. */
  readonly where: string
}

/** PEFT has no task_type for pictures: its model for none takes all inputs. */
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
  headForm: (base) => findHead('image', base),
  options: LABEL_OPTIONS,

  check(model) {
    const base = headBase(model)
    checkImageInputs(base.graph)
    processorOf(model)
    checkHead(requireHead('image', base), base)
  },

  parse(row, where) {
    const { image, label: given, labels } = isObject(row) ? row : {}
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

  open: (model, examples, options = {}, heads = {}) => new ImageClassification(model, examples, options, heads),
}

function processorOf({ preprocessorConfig, config }: Model): ImageProcessor {
  return imageProcessor(preprocessorConfig, config.image_size)
}

const PROBED = [2, 5] as const

class ImageClassification extends LabelTask<ImageExample> {
  readonly probe: OpenTask['probe']
  readonly #processor: ImageProcessor
  readonly #tokens: number

  constructor(model: Model, examples: Examples<ImageExample>, options: LabelOptions, heads: HeadOptions) {
    super(model, requireHead('image', headBase(model)), examples, options, heads)
    this.#processor = processorOf(model)
    const { width, height } = this.#processor
    const patch = typeof model.config.patch_size === 'number' ? model.config.patch_size : 16
    this.#tokens = Math.floor(width / patch) * Math.floor(height / patch) + 1
    const feeds = (batch: number) => {
      const pixels = new Uint8Array(width * height * 3)
      return this.collate(Array(batch).fill({ pixels, label: this.anyTarget, where: 'probe' }))
    }
    const batch = ownLength('batch', PROBED, { input: PIXELS, axis: 0 })
    this.probe = { feeds: [feeds(PROBED[0]), feeds(PROBED[1])], lengths: [batch] }
  }

  cost(): number {
    return this.#tokens
  }

  collate(examples: readonly ImageExample[]): Feeds {
    const { width, height } = this.#processor
    const size = 3 * width * height
    const values = new Float32Array(examples.length * size)
    examples.forEach(({ pixels }, i) => {
      this.#processor.write(pixels, values.subarray(i * size, (i + 1) * size))
    })
    return { ...imageFeeds(values, examples.length, height, width), ...this.targetFeeds(examples) }
  }

  content({ pixels, label }: ImageExample): Uint8Array[] {
    return [pixels, labelBytes(label)]
  }
}
