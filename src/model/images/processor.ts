// Turns a picture into a model's input, as preprocessor_config.json says: resize, crop the middle, scale, normalize.

import { DataError } from '../../core/base/errors.js'
import { isObject } from '../../core/base/options.js'
import type { Pixels } from './image.js'
import {
  isCount,
  type PreprocessorConfig,
  refuse,
  type Size,
  scalingOf,
  squareOf,
  writePlanes,
} from './preprocessor-config.js'
import { cropped, filterOf, resize } from './resample.js'

export type ImageProcessor = ReturnType<typeof imageProcessor>

/** Pillow's number for bilinear, the default of transformers for ViT. */
const RESAMPLE = 2

/** `size` is the model's size from config.json. It counts if pictures are not resized. */
export function imageProcessor(config: PreprocessorConfig | undefined, size: unknown) {
  if (config === undefined) throw refuse('missing', 'the file beside config.json', 'no such file')
  const { do_resize, do_center_crop, crop_pct } = config
  if (crop_pct !== undefined && crop_pct !== null)
    throw refuse('crop_pct is not known', 'size and crop_size', String(crop_pct))
  const resizes = do_resize !== false
  const crop = do_center_crop === true ? squareOf(config.crop_size ?? config.size, 'crop_size') : undefined
  const target = resizes ? targetOf(config.size, crop) : undefined
  const resample = resizes ? filterOf(config, RESAMPLE) : RESAMPLE
  const final = crop ?? (target === undefined ? squareOf(config.size ?? size, 'size') : target.square)
  if (final === undefined) {
    throw refuse(
      'it gives pictures of different sizes',
      'a size with height and width, or a crop_size',
      JSON.stringify(config.size),
    )
  }
  const scaling = scalingOf(config)
  const { width, height } = final
  return {
    width,
    height,
    /** One byte for each of red, green and blue: `width * height * 3`. */
    fit(image: Pixels, where: string): Uint8Array {
      const sized = target === undefined ? image : resize(image, ...target.of(image), resample)
      const [top, left] = [sized.height - height, sized.width - width].map((over) => Math.floor(over / 2))
      const cut = crop === undefined ? sized : cropped(sized, top, left, crop)
      if (cut.width === width && cut.height === height) return cut.data
      throw new DataError({
        where,
        what: 'the picture has another size than the model, whose files say that pictures are not resized',
        expected: `${width} x ${height} pixels`,
        got: `${image.width} x ${image.height}`,
      })
    },
    write: (fitted: Uint8Array, output: Float32Array) => writePlanes(fitted, scaling, output),
  }
}

function targetOf(size: unknown, crop: Size | undefined) {
  const edge = isObject(size) ? size.shortest_edge : crop === undefined ? undefined : size
  if (isCount(edge) && !(isObject(size) && 'longest_edge' in size)) {
    // As transformers' get_resize_output_image_size.
    const of = ({ width, height }: Size): [number, number] =>
      width <= height ? [edge, Math.trunc((edge * height) / width)] : [Math.trunc((edge * width) / height), edge]
    return { of, square: undefined }
  }
  const square = squareOf(size, 'size')
  return { of: (_: Size): [number, number] => [square.width, square.height], square }
}
