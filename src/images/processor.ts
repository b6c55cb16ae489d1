// What a model takes for a picture: preprocessor_config.json, as transformers reads it. Resize, cut out the middle, scale, normalize.

import { DataError, UnsupportedError } from '../base/errors.js'
import { isObject } from '../base/options.js'
import type { Pixels } from './image.js'
import { isResample, resize } from './resample.js'

/** Makes a model's input of pictures. */
export interface ImageProcessor {
  /** Pixels of all results. */
  readonly width: number
  readonly height: number
  /**
   * The picture in this size, one byte for each of red, green and blue: `width * height * 3`.
   *
   * @throws DataError naming a picture of another size, where the model's files do not resize
   */
  fit(image: Pixels, where: string): Uint8Array
  /** The input (3, height, width) of a picture in this size, written to `output`. */
  write(fitted: Uint8Array, output: Float32Array): void
}

type Config = Readonly<Record<string, unknown>>

const FILE = 'preprocessor_config.json'
/** PIL's bilinear, and ImageNet's usual halves: transformers' own defaults for ViT. */
const DEFAULTS = { resample: 2, scale: 1 / 255, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5] }

/**
 * Reads preprocessor_config.json.
 *
 * @param config undefined where the folder has none
 * @param size the model's own, from config.json: where pictures are not resized
 * @throws UnsupportedError for what is not known here, or what gives pictures of different sizes
 */
export function imageProcessor(config: Config | undefined, size: unknown): ImageProcessor {
  if (config === undefined) throw refuse('missing', 'the file beside config.json', 'no such file')
  const { do_resize, do_center_crop, do_rescale, do_normalize, crop_pct } = config
  if (crop_pct !== undefined && crop_pct !== null)
    throw refuse('crop_pct is not known', 'size and crop_size', String(crop_pct))
  const resizes = do_resize !== false
  const crop = do_center_crop === true ? squareOf(config.crop_size ?? config.size, 'crop_size') : undefined
  const target = resizes ? targetOf(config.size, crop) : undefined
  const resample = config.resample ?? DEFAULTS.resample
  if (resizes && !isResample(resample))
    throw refuse('a filter that is not known', '0 to 5', `resample ${String(resample)}`)
  const final = crop ?? (target === undefined ? squareOf(config.size ?? size, 'size') : target.square)
  if (final === undefined) {
    throw refuse(
      'it gives pictures of different sizes',
      'a size with height and width, or a crop_size',
      JSON.stringify(config.size),
    )
  }
  const scale = do_rescale === false ? 1 : numberOf(config.rescale_factor, DEFAULTS.scale)
  const isNormal = do_normalize !== false
  const mean = isNormal ? listOf(config.image_mean, DEFAULTS.mean, 'image_mean') : [0, 0, 0]
  const std = isNormal ? listOf(config.image_std, DEFAULTS.std, 'image_std') : [1, 1, 1]
  const { width, height } = final
  return {
    width,
    height,
    fit(image, where) {
      const sized = target === undefined ? image : resize(image, ...target.of(image), resample as number)
      const cut = crop === undefined ? sized : centered(sized, crop)
      if (cut.width === width && cut.height === height) return cut.data
      throw new DataError({
        where,
        what: 'the picture has another size than the model, whose files say that pictures are not resized',
        expected: `${width} x ${height} pixels`,
        got: `${image.width} x ${image.height}`,
      })
    },
    write(fitted, output) {
      const count = width * height
      for (let c = 0; c < 3; c++) {
        for (let i = 0; i < count; i++) output[c * count + i] = (fitted[i * 3 + c] * scale - mean[c]) / std[c]
      }
    },
  }
}

interface Size {
  readonly width: number
  readonly height: number
}

/** How large pictures become, and the size that all get; undefined where it depends on the picture. */
interface Target {
  of(image: Size): [width: number, height: number]
  readonly square: Size | undefined
}

function targetOf(size: unknown, crop: Size | undefined): Target {
  const edge = isObject(size) ? size.shortest_edge : crop === undefined ? undefined : size
  if (isCount(edge) && !(isObject(size) && 'longest_edge' in size)) {
    // As transformers' get_resize_output_image_size.
    const of = ({ width, height }: Size): [number, number] =>
      width <= height ? [edge, Math.trunc((edge * height) / width)] : [Math.trunc((edge * width) / height), edge]
    return { of, square: undefined }
  }
  const square = squareOf(size, 'size')
  return { of: () => [square.width, square.height], square }
}

/** The middle of a picture, filled up with black where it is smaller. */
function centered({ data, width, height }: Pixels, crop: Size): Pixels {
  const result = new Uint8Array(crop.width * crop.height * 3)
  const top = Math.floor((height - crop.height) / 2)
  const left = Math.floor((width - crop.width) / 2)
  for (let y = Math.max(0, -top); y < crop.height && y + top < height; y++) {
    const from = Math.max(0, -left)
    const to = Math.min(crop.width, width - left)
    const row = (y + top) * width + left
    result.set(data.subarray((row + from) * 3, (row + to) * 3), (y * crop.width + from) * 3)
  }
  return { data: result, ...crop }
}

function squareOf(size: unknown, where: string): Size {
  if (isCount(size)) return { width: size, height: size }
  if (Array.isArray(size) && size.length === 2 && size.every(isCount)) return { height: size[0], width: size[1] }
  if (isObject(size) && isCount(size.height) && isCount(size.width)) return { width: size.width, height: size.height }
  throw refuse(`${where} is not known`, '{ height, width }', JSON.stringify(size) ?? 'nothing')
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) > 0
}

function numberOf(value: unknown, fallback: number): number {
  return typeof value === 'number' ? value : fallback
}

function listOf(value: unknown, fallback: readonly number[], where: string): readonly number[] {
  if (value === undefined || value === null) return fallback
  if (Array.isArray(value) && value.length === 3 && value.every((one) => typeof one === 'number')) return value
  throw refuse(`${where} is not known`, 'a list of 3 numbers', JSON.stringify(value))
}

function refuse(what: string, expected: string, got: string): UnsupportedError {
  return new UnsupportedError({ where: FILE, what, expected, got })
}
