// Tiles for Idefics3 and SmolVLM, in transformers' sizes (image_processing_pil_idefics3.py).

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

/** The longest edge that a picture may have before it is cut into tiles. */
const LONGEST = 4096
/** Pillow's number of the Lanczos filter. */
const RESAMPLE = 1

/**
 * Tiles (1, count, 3, edge, edge), row by row, and the whole picture last. Rows and columns are 0 if the picture is a
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
  return { pixels, dims: [1, tiles.length, 3, edge, edge], rows, columns }
}

/** The size with the longer edge that is asked for. The shorter edge is even. */
function fitted(image: Size, size: unknown): Size {
  const longest = isObject(size) ? size.longest_edge : undefined
  if (!isCount(longest)) return squareOf(size, 'size')
  const even = (length: number) => Math.trunc(length) + (Math.trunc(length) % 2)
  const wanted = withLongest(image, longest, even)
  return longest > LONGEST ? withLongest(wanted, LONGEST, Math.trunc) : wanted
}

/** The next larger size that tiles of this edge fill exactly. */
function multiples(size: Size, edge: number): Size {
  const up = (length: number) => Math.ceil(length / edge) * edge
  return withLongest(size, up(Math.max(size.width, size.height)), (length) => up(Math.trunc(length)))
}

/** A size of the same aspect. `longest` is its longer edge, and `rounded` rounds the shorter one. */
function withLongest({ width, height }: Size, longest: number, rounded: (length: number) => number): Size {
  const aspect = width / height
  return width >= height
    ? { width: longest, height: Math.max(1, rounded(longest / aspect)) }
    : { width: Math.max(1, rounded(longest * aspect)), height: longest }
}
