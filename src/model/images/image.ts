// Pictures in memory, and where they come from.

import { DataError, LowrankError, messageOf } from '../../core/base/errors.js'
import { objectOf } from '../../core/base/options.js'

/** A picture: rows from the top, pixels from the left, and red, green and blue of each pixel, from 0 to 255. */
export interface RgbImage {
  /** `width * height * 3` numbers; `* 4` with an alpha value after each pixel's colors, `* 1` for gray alone. */
  readonly data: ArrayLike<number>
  /** The number of pixels in a row. */
  readonly width: number
  /** The number of rows of pixels. */
  readonly height: number
}

/**
 * A picture in memory, or a picture file: its path (not in browsers), its bytes, or `{ bytes, path }` as in data sets
 * on the Hub.
 */
export type ImageSource = RgbImage | string | Uint8Array | { readonly bytes: Uint8Array; readonly path?: string | null }

/** Reads a picture file, given as a path or as bytes. */
export type DecodeImage = (file: string | Uint8Array) => Promise<RgbImage> | RgbImage

/** Red, green and blue of each pixel, one byte each. */
export interface Pixels {
  readonly data: Uint8Array
  readonly width: number
  readonly height: number
}

export function pixelsOf(image: unknown, where: string): Pixels {
  const { data, width, height } = objectOf(image) as unknown as RgbImage
  const isLength = (value: unknown) => Number.isSafeInteger(value) && (value as number) > 0
  const channels = isLength(width) && isLength(height) && data ? data.length / (width * height) : 0
  const isList = Array.isArray(data) || ArrayBuffer.isView(data)
  if (!isList || ![1, 3, 4].includes(channels)) {
    throw new DataError({
      where,
      what: 'not a picture',
      expected: '{ data, width, height }: 3 numbers from 0 to 255 for each pixel (4 with alpha, 1 for gray)',
      got: channels > 0 ? `${width} x ${height} pixels with ${data.length} numbers` : typeof image,
    })
  }
  const pixels = new Uint8Array(width * height * 3)
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) {
      const value = data[i * channels + (channels === 1 ? 0 : c)]
      if (!(value >= 0 && value <= 255)) {
        throw new DataError({
          where,
          what: 'a number of a pixel is out of range',
          expected: '0 to 255',
          got: String(value),
        })
      }
      pixels[i * 3 + c] = value
    }
  }
  return { data: pixels, width, height }
}

/** Reads a picture. Without `decode`, files are an error. */
export async function readImage(source: ImageSource, decode: DecodeImage | undefined, where: string): Promise<Pixels> {
  if (typeof source === 'object' && 'data' in source) return pixelsOf(source, where)
  const [file, name] =
    typeof source === 'string' || source instanceof Uint8Array
      ? [source, typeof source === 'string' ? source : undefined]
      : [source.bytes, source.path ?? undefined]
  const place = name === undefined ? where : `${where}, ${name}`
  if (decode === undefined) {
    throw new DataError({
      where: place,
      what: 'nothing here reads files of pictures',
      expected: '{ data, width, height }, or the option decodeImage',
    })
  }
  try {
    return pixelsOf(await decode(file), place)
  } catch (cause) {
    if (cause instanceof LowrankError) throw cause
    throw new DataError({ where: place, what: `the picture cannot be read (${messageOf(cause)})`, cause })
  }
}
