// Resizes pictures to exactly the bytes that Pillow gives, because transformers uses Pillow: integer filters along rows
// and then along columns, as wide as the step between pixels.
// https://github.com/python-pillow/Pillow/blob/main/src/libImaging/Resample.c

import type { Pixels } from './image.js'
import { type PreprocessorConfig, refuse, type Size } from './preprocessor-config.js'

interface Filter {
  readonly support: number
  weight(x: number): number
}

const sinc = (x: number) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI))

/** The filters by Pillow's numbers; 0 takes the nearest pixel. */
const FILTERS: Readonly<Record<number, Filter>> = {
  1: { support: 3, weight: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
  2: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  // Bicubic, with a = −1/2
  3: {
    support: 2,
    weight(signed) {
      const x = Math.abs(signed)
      if (x < 1) return (1.5 * x - 2.5) * x * x + 1
      return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0
    },
  },
  4: { support: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  5: { support: 1, weight: (x) => (Math.abs(x) >= 1 ? 0 : sinc(x) * (0.54 + 0.46 * Math.cos(x * Math.PI))) },
}

/** Pillow's number of the filter that the settings name. */
export function filterOf({ resample }: PreprocessorConfig, fallback: number): number {
  const value = resample ?? fallback
  if (value === 0 || (typeof value === 'number' && Object.hasOwn(FILTERS, value))) return value
  throw refuse('a filter that is not known', '0 to 5', `resample ${String(value)}`)
}

/** Weights are integers with 22 bits after the binary point. */
const PRECISION = 2 ** 22

interface Window {
  readonly start: number
  readonly weights: Float64Array
}

function windowsOf(from: number, to: number, { support, weight }: Filter): Window[] {
  const scale = from / to
  const stretch = Math.max(1, scale)
  const [reach, shrink] = [support * stretch, 1 / stretch]
  return Array.from({ length: to }, (_, i) => {
    const center = (i + 0.5) * scale
    const start = Math.max(0, Math.trunc(center - reach + 0.5))
    const end = Math.min(from, Math.trunc(center + reach + 0.5))
    const weights = Float64Array.from({ length: end - start }, (_, j) => weight((j + start - center + 0.5) * shrink))
    const sum = weights.reduce((total, value) => total + value, 0)
    const scaled = weights.map((value) => (sum === 0 ? value : value / sum) * PRECISION)
    return { start, weights: scaled.map((value) => Math.trunc(value + (value < 0 ? -0.5 : 0.5))) }
  })
}

/** Cuts out a part of a picture. Beyond the picture's edges the result is black. */
export function cropped({ data, width, height }: Pixels, top: number, left: number, size: Size): Pixels {
  const result = new Uint8Array(size.width * size.height * 3)
  for (let y = Math.max(0, -top); y < size.height && y + top < height; y++) {
    const from = Math.max(0, -left)
    const to = Math.min(size.width, width - left)
    const row = (y + top) * width + left
    result.set(data.subarray((row + from) * 3, (row + to) * 3), (y * size.width + from) * 3)
  }
  return { data: result, ...size }
}

/** @param resample Pillow's number of the filter */
export function resize(image: Pixels, width: number, height: number, resample: number): Pixels {
  const windows = (from: number, to: number) => {
    return resample === 0 ? nearest(from, to) : windowsOf(from, to, FILTERS[resample])
  }
  const inWidth = (from: Pixels): Pixels => {
    if (from.width === width) return from
    return { ...from, data: along(from.data, from.height, 3, windows(from.width, width)), width }
  }
  const inHeight = (from: Pixels): Pixels => {
    if (from.height === height) return from
    return { ...from, data: along(from.data, 1, from.width * 3, windows(from.height, height)), height }
  }
  const shrinks = image.height - height
  // Pillow resizes the height first in this case from version 13 on: https://github.com/python-pillow/Pillow/pull/9549
  const isHeightFirst = shrinks > 0 && shrinks > 2 * (image.width - width)
  return isHeightFirst ? inWidth(inHeight(image)) : inHeight(inWidth(image))
}

/** Resamples the middle axis of data (outer, length, inner). */
function along(data: Uint8Array, outer: number, inner: number, windows: readonly Window[]): Uint8Array {
  const length = data.length / (outer * inner)
  const result = new Uint8Array(outer * windows.length * inner)
  for (let o = 0; o < outer; o++) {
    windows.forEach(({ start, weights }, at) => {
      for (let c = 0; c < inner; c++) {
        let sum = PRECISION / 2
        for (let i = 0; i < weights.length; i++) sum += data[(o * length + start + i) * inner + c] * weights[i]
        result[(o * windows.length + at) * inner + c] = Math.min(255, Math.max(0, Math.floor(sum / PRECISION)))
      }
    })
  }
  return result
}

/** Returns windows that hold only the nearest pixel. */
function nearest(from: number, to: number): Window[] {
  const step = from / to
  let at = step / 2
  return Array.from({ length: to }, () => {
    const start = Math.min(from - 1, Math.trunc(at))
    at += step
    return { start, weights: Float64Array.of(PRECISION) }
  })
}
