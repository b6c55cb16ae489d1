// Tiles for Idefics3 and SmolVLM, in transformers' sizes (image_processing_pil_idefics3.py).

import { isObject } from '../base/options.js'
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

/** The longest edge that a picture may have before it is cut into tiles. */
const LONGEST = 4096
/** Pillow's number of the Lanczos filter. */
const RESAMPLE = 1

/**
 * Tiles (count, 3, edge, edge), row by row, and the whole picture last. Rows and columns are 0 if the picture is a
 * single tile.
 */
export function tilesOf(image: Pixels, config: PreprocessorConfig) {
  const resample = filterOf(config, RESAMPLE)
  const { max_image_size: largest } = config
  const edge = isObject(largest) ? largest.longest_edge : undefined
  if (!isCount(edge))
    throw refuse('max_image_size is not known', '{ longest_edge }', JSON.stringify(largest) ?? 'nothing')
  const tile = { width: edge, height: edge }
  const to = (from: Pixels, { width, height }: Size) => resize(from, width, height, resample)
  const sized = config.do_resize === false ? image : to(image, fitted(image, config.size))
  const isSplit = config.do_image_splitting !== false
  const whole = to(sized, isSplit ? multiples(sized, edge) : tile)
  const isOne = whole.width === edge && whole.height === edge
  const [rows, columns] = isOne ? [0, 0] : [whole.height / edge, whole.width / edge]
  const parts = Array.from({ length: rows * columns }, (_, i) => {
    return cropped(whole, Math.floor(i / columns) * edge, (i % columns) * edge, tile)
  })
  const tiles = [...parts, to(whole, tile)]
  const size = 3 * edge * edge
  const pixels = new Float32Array(tiles.length * size)
  const scaling = scalingOf(config)
  tiles.forEach(({ data }, i) => void writePlanes(data, scaling, pixels.subarray(i * size, (i + 1) * size)))
  return { pixels, count: tiles.length, edge, rows, columns }
}

/** The size with the longer edge that is asked for. The shorter edge is even. */
function fitted({ width, height }: Size, size: unknown): Size {
  const longest = isObject(size) ? size.longest_edge : undefined
  if (!isCount(longest)) return squareOf(size, 'size')
  const aspect = width / height
  const even = (length: number) => Math.trunc(length) + (Math.trunc(length) % 2)
  const wanted =
    width >= height
      ? { width: longest, height: even(longest / aspect) }
      : { width: even(longest * aspect), height: longest }
  const bounded = (wanted: Size): Size => {
    const ratio = wanted.width / wanted.height
    if (wanted.width >= wanted.height && wanted.width > LONGEST)
      return { width: LONGEST, height: Math.trunc(LONGEST / ratio) }
    if (wanted.height > wanted.width && wanted.height > LONGEST)
      return { width: Math.trunc(LONGEST * ratio), height: LONGEST }
    return wanted
  }
  const least = ({ width, height }: Size): Size => ({ width: Math.max(1, width), height: Math.max(1, height) })
  return least(bounded(least(wanted)))
}

/** The next larger size that tiles of this edge fill exactly. */
function multiples({ width, height }: Size, edge: number): Size {
  const up = (length: number) => Math.ceil(length / edge) * edge
  const aspect = width / height
  if (width >= height) return { width: up(width), height: up(Math.trunc(up(width) / aspect)) }
  return { width: up(Math.trunc(up(height) * aspect)), height: up(height) }
}
