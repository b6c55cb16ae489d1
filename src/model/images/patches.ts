// Patches for Qwen2-VL and its successors, in transformers' sizes and order (image_processing_pil_qwen2_vl.py).

import { DataError } from '../../core/base/errors.js'
import { objectOf } from '../../core/base/options.js'
import { halfToEven } from '../../core/base/tensor.js'
import type { Pixels } from './image.js'
import { isCount, type PreprocessorConfig, refuse, type Size, scalingOf, writePlanes } from './preprocessor-config.js'
import { filterOf, resize } from './resample.js'

/** Defaults: Pillow's bicubic filter, and the sizes of Qwen2-VL. */
const DEFAULTS = {
  resample: 3,
  patch_size: 14,
  temporal_patch_size: 2,
  merge_size: 2,
  least: 56 * 56,
  most: 28 * 28 * 1280,
}

/** How many times as long as the shorter edge the longer edge may be. */
const MOST_ASPECT = 200

/**
 * Patches (rows · columns, width), and their grid by time, rows and columns. Patches that the model merges into one
 * token follow one another.
 */
export function patchesOf(image: Pixels, config: PreprocessorConfig, where: string) {
  const resample = filterOf(config, DEFAULTS.resample)
  const count = (name: 'patch_size' | 'temporal_patch_size' | 'merge_size') => {
    const value = config[name] ?? DEFAULTS[name]
    if (!isCount(value)) throw refuse(`${name} is not known`, 'an integer of at least 1', JSON.stringify(value))
    return value
  }
  const [patch, times, merge] = [count('patch_size'), count('temporal_patch_size'), count('merge_size')]
  const isResized = config.do_resize !== false
  const size = isResized ? sizeOf(image, patch * merge, config, where) : image
  if (size.width % (patch * merge) !== 0 || size.height % (patch * merge) !== 0) {
    throw new DataError({
      where,
      what: 'the picture has another size than patches fill, and the model’s files say that pictures are not resized',
      expected: `multiples of ${patch * merge} pixels`,
      got: `${image.width} x ${image.height}`,
    })
  }
  const { data } = resize(image, size.width, size.height, resample)
  const planes = new Float32Array(data.length)
  writePlanes(data, scalingOf(config), planes)
  const [rows, columns] = [size.height / patch, size.width / patch]
  const width = 3 * times * patch * patch
  const pixels = new Float32Array(rows * columns * width)
  let to = 0
  // Order: (row, column) of merged patches, then of each patch within them, then (color, time, y, x).
  for (let top = 0; top < rows; top += merge) {
    for (let left = 0; left < columns; left += merge) {
      for (let i = 0; i < merge * merge; i++) {
        const [row, column] = [top + Math.floor(i / merge), left + (i % merge)]
        for (let c = 0; c < 3; c++) {
          for (let time = 0; time < times; time++) {
            for (let y = 0; y < patch; y++) {
              const from = (c * size.height + row * patch + y) * size.width + column * patch
              pixels.set(planes.subarray(from, from + patch), to)
              to += patch
            }
          }
        }
      }
    }
  }
  return { pixels, dims: [rows * columns, width], grid: [1, rows, columns] }
}

function sizeOf({ width, height }: Size, factor: number, config: PreprocessorConfig, where: string): Size {
  if (Math.max(width, height) / Math.min(width, height) > MOST_ASPECT) {
    throw new DataError({
      where,
      what: 'the picture is too long for its width',
      expected: `at most ${MOST_ASPECT} times as long as wide`,
      got: `${width} x ${height} pixels`,
    })
  }
  const size = objectOf(config.size)
  const least = config.min_pixels ?? size.shortest_edge ?? size.min_pixels ?? DEFAULTS.least
  const most = config.max_pixels ?? size.longest_edge ?? size.max_pixels ?? DEFAULTS.most
  if (!isCount(least) || !isCount(most)) {
    throw refuse('size is not known', '{ shortest_edge, longest_edge }', JSON.stringify(config.size))
  }
  const near = (length: number) => halfToEven(length / factor) * factor
  const nearest = { width: near(width), height: near(height) }
  const area = nearest.width * nearest.height
  if (area > most) {
    const beta = Math.sqrt((height * width) / most)
    const down = (length: number) => Math.max(factor, Math.floor(length / beta / factor) * factor)
    return { width: down(width), height: down(height) }
  }
  if (area < least) {
    const beta = Math.sqrt(least / (height * width))
    const up = (length: number) => Math.ceil((length * beta) / factor) * factor
    return { width: up(width), height: up(height) }
  }
  return nearest
}
