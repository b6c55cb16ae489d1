// Tests for every kernel of merges, compared with the definition: each sum in order and in f32, the scale
// after the product, and a single rounding, found by searching the values of the type.

import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import type { FloatArray, WeightDtype } from '../../../src/api/node.js'
import type { MergeJob, RightBlock } from '../../../src/core/kernels/merge-kernel.js'
import type { Kernel } from './reference-merge.js'

const DTYPES: WeightDtype[] = ['bf16', 'fp16', 'fp32', 'fp64']
const CHUNK = 1 << 16

/** Lists all positive values of a 16-bit float type in order, as f64. The last is infinity. */
function valuesOf(exponentBits: number): Float64Array {
  const mantissaBits = 15 - exponentBits
  const bias = 2 ** (exponentBits - 1) - 1
  const count = (2 ** exponentBits - 1) * 2 ** mantissaBits + 1
  return Float64Array.from({ length: count }, (_, bits) => {
    const exponent = bits >> mantissaBits
    const mantissa = bits & (2 ** mantissaBits - 1)
    if (exponent === 2 ** exponentBits - 1) return Number.POSITIVE_INFINITY
    if (exponent === 0) return mantissa * 2 ** (1 - bias - mantissaBits)
    return (1 + mantissa / 2 ** mantissaBits) * 2 ** (exponent - bias)
  })
}

const VALUES = { bf16: valuesOf(8), fp16: valuesOf(5) }

/** Returns the bits of the nearest stored value, ties to even. Infinity counts as the next power of two. */
function roundHalf(value: number, dtype: 'bf16' | 'fp16'): number {
  if (Number.isNaN(value)) return dtype === 'bf16' ? 0x7fc0 : 0x7e00
  const values = VALUES[dtype]
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0
  const magnitude = Math.abs(value)
  const last = values.length - 1
  let [low, high] = [0, last]
  while (low < high) {
    const middle = (low + high + 1) >> 1
    if (values[middle] <= magnitude) low = middle
    else high = middle - 1
  }
  if (low === last) return sign | last
  const above = low + 1 === last ? 2 * values[low] - values[low - 1] : values[low + 1]
  const [down, up] = [magnitude - values[low], above - magnitude]
  return sign | (down < up || (down === up && low % 2 === 0) ? low : low + 1)
}

function decodeHalf(bits: number, dtype: 'bf16' | 'fp16'): number {
  const magnitude = VALUES[dtype][bits & 0x7fff] ?? Number.NaN
  return (bits & 0x8000) === 0 ? magnitude : -magnitude
}

/** Returns the weights of a chunk as an array of bits or values of their type. */
function arrayOf(dtype: WeightDtype, bytes: Uint8Array) {
  const copy = bytes.slice().buffer
  if (dtype === 'fp64') return new Float64Array(copy)
  return dtype === 'fp32' ? new Float32Array(copy) : new Uint16Array(copy)
}

function define(bytes: Uint8Array, right: FloatArray, width: number, job: MergeJob) {
  const { dtype, rows, column, columns, left, terms } = job
  const round = dtype === 'fp64' ? (x: number) => x : Math.fround
  const rank = terms.reduce((sum, term) => sum + term.rank, 0)
  const weights = arrayOf(dtype, bytes)
  const result = weights.slice()
  let [overflows, firstOverflow, baseSquares, deltaSquares] = [0, -1, 0, 0]
  for (let i = 0; i < rows * columns; i++) {
    const [row, j] = [Math.floor(i / columns), column + (i % columns)]
    let delta: number | undefined
    let start = 0
    for (const term of terms) {
      if (term.rank === 0) continue
      let sum = 0
      for (let p = start; p < start + term.rank; p++) {
        const product = round(left[row * rank + p] * right[p * width + j])
        sum = round(sum + product)
      }
      const change = round(round(term.scale) * sum)
      delta = delta === undefined ? change : round(delta + change)
      start += term.rank
    }
    const isHalf = dtype === 'bf16' || dtype === 'fp16'
    const base = isHalf ? decodeHalf(weights[i], dtype) : weights[i]
    const value = round(base + (delta ?? 0))
    result[i] = isHalf ? roundHalf(value, dtype) : value
    const stored = isHalf ? decodeHalf(result[i], dtype) : result[i]
    if (!Number.isFinite(base)) continue
    baseSquares += base * base
    deltaSquares += (delta ?? 0) ** 2
    if (!Number.isFinite(stored) && overflows++ === 0) firstOverflow = i
  }
  return { bytes: new Uint8Array(result.buffer), overflows, firstOverflow, baseSquares, deltaSquares }
}

/** Fills an array with numbers of many magnitudes, most of them near 0.02. */
function fill<T extends FloatArray>(array: T, seed: number): T {
  let state = seed * 2654435761 + 1
  const next = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 2 ** 31 - 1
  }
  for (let i = 0; i < array.length; i++) array[i] = next() * (next() > 0.9 ? 2 ** Math.floor(next() * 12) : 0.02)
  return array
}

const SPECIAL_HALVES: Record<'bf16' | 'fp16', number[]> = {
  // 0, −0, subnormals, the smallest normal, 1, the largest, infinities, NaNs of both signs.
  bf16: [0, 0x8000, 1, 0x8001, 0x7f, 0x80, 0x3f80, 0x7f7f, 0xff7f, 0x7f80, 0xff80, 0x7fc0, 0x7f81, 0xffff],
  fp16: [0, 0x8000, 1, 0x8001, 0x3ff, 0x400, 0x3c00, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e00, 0x7c01, 0xffff],
}
const SPECIAL = [0, -0, 1e-45, -1e-40, 2 ** -126, 1, 3.4e38, -3.4e38, Infinity, -Infinity, NaN, 5e-324, 1.7e308]

function specialBytes(dtype: WeightDtype, count: number): Uint8Array {
  const pick = <T>(list: readonly T[]) => Array.from({ length: count }, (_, i) => list[i % list.length])
  if (dtype === 'fp64') return new Uint8Array(Float64Array.from(pick(SPECIAL)).buffer)
  if (dtype === 'fp32') return new Uint8Array(Float32Array.from(pick(SPECIAL)).buffer)
  return new Uint8Array(Uint16Array.from(pick(SPECIAL_HALVES[dtype])).buffer)
}

function randomBytes(dtype: WeightDtype, count: number, seed: number): Uint8Array {
  const values = fill(new Float64Array(count), seed)
  if (dtype === 'fp64') return new Uint8Array(values.buffer)
  if (dtype === 'fp32') return new Uint8Array(Float32Array.from(values).buffer)
  return new Uint8Array(Uint16Array.from(values, (value) => roundHalf(value, dtype)).buffer)
}

export function mergeKernelSuite(name: string, create: (byteLength: number) => Kernel): void {
  const kernel = create(CHUNK)

  /** Makes a view that is not aligned for SIMD, with NaN around it. */
  function factor(dtype: WeightDtype, length: number, seed: number): FloatArray {
    const whole = dtype === 'fp64' ? new Float64Array(length + 2) : new Float32Array(length + 2)
    return fill(whole.fill(Number.NaN).subarray(1, length + 1), seed)
  }

  /** Packs a factor in one block, by rows, or by columns, as `way` says. */
  function putRight(right: FloatArray, rank: number, width: number, way: number): void {
    kernel.begin(rank, width, right instanceof Float64Array ? 'fp64' : 'fp32')
    const block = { row: 0, column: 0, rows: rank, columns: width, isTransposed: false }
    const put = (values: FloatArray, part: Partial<RightBlock>) => kernel.putRight({ ...block, values, ...part })
    if (way === 0) {
      put(right, {})
      return
    }
    if (way === 1) {
      const rows = Array.from({ length: rank }, (_, row) => row).reverse()
      for (const row of rows) put(right.slice(row * width, (row + 1) * width), { row, rows: 1 })
      return
    }
    for (let column = 0; column < width; column += 8) {
      const columns = Math.min(8, width - column)
      const values = right
        .slice(0, columns * rank)
        .map((_, i) => right[(i % rank) * width + column + Math.floor(i / rank)])
      put(values, { column, columns, isTransposed: true })
    }
  }

  function check(job: MergeJob, bytes: Uint8Array, right: FloatArray, width: number): void {
    const { rows } = job
    const rank = job.terms.reduce((sum, term) => sum + term.rank, 0)
    if (rank > 0) putRight(right, rank, width, (rows + width) % 3)
    kernel.chunk.fill(0x55)
    kernel.chunk.set(bytes)
    const expected = define(bytes, right, width, job)
    const result = kernel.merge(job)
    const merged = kernel.chunk.slice(0, bytes.length)
    if (Buffer.compare(merged, expected.bytes) !== 0) {
      expect(arrayOf(job.dtype, merged)).toEqual(arrayOf(job.dtype, expected.bytes))
      expect(merged).toEqual(expected.bytes)
    }
    expect(kernel.chunk.subarray(bytes.length, bytes.length + 64).every((byte) => byte === 0x55)).toBe(true)
    expect({ overflows: result.overflows, first: result.firstOverflow }).toEqual({
      overflows: expected.overflows,
      first: expected.firstOverflow,
    })
    if (expected.baseSquares < 1e38)
      expect(result.baseSquares / (expected.baseSquares || 1)).toBeCloseTo(expected.baseSquares ? 1 : 0, 5)
    if (expected.deltaSquares < 1e38)
      expect(result.deltaSquares / (expected.deltaSquares || 1)).toBeCloseTo(expected.deltaSquares ? 1 : 0, 5)
  }

  describe.each(DTYPES)(`${name} merge, %s`, (dtype) => {
    test('gives the bytes of the definition for any shape, columns and adapters', () => {
      fc.assert(
        fc.property(
          fc.integer({ min: 1, max: 11 }),
          fc.integer({ min: 1, max: 40 }),
          fc.integer({ min: 0, max: 2 }),
          fc.array(fc.record({ rank: fc.integer({ min: 0, max: 9 }), scale: fc.constantFrom(1, 2, 0.7, -1.3) }), {
            minLength: 1,
            maxLength: 3,
          }),
          fc.integer({ min: 1, max: 1000 }),
          (rows, columns, skipped, terms, seed) => {
            const rank = terms.reduce((sum, term) => sum + term.rank, 0)
            if (rank === 0) return
            const column = 8 * skipped
            const width = column + columns + (seed % 5)
            const job = { dtype, rows, column, columns, left: factor(dtype, rows * rank, seed), terms }
            check(job, randomBytes(dtype, rows * columns, seed + 2), factor(dtype, rank * width, seed + 1), width)
          },
        ),
        { numRuns: 60 },
      )
    })

    test.each([
      [5, 1030, 3],
      [3, 513, 70],
      [9, 520, 1],
      [1, 7, 300],
      [1, 16, 9000],
    ])('tails: %i rows, %i columns, rank %i', (rows, columns, rank) => {
      const job = {
        dtype,
        rows,
        column: 0,
        columns,
        left: factor(dtype, rows * rank, 1),
        terms: [{ rank, scale: 0.3 }],
      }
      check(job, randomBytes(dtype, rows * columns, 3), factor(dtype, rank * columns, 2), columns)
    })

    test('zeros, subnormals, infinities and NaN, with no delta and with a small one', () => {
      for (const size of [0, 1e-3]) {
        const terms = [{ rank: 2, scale: 1 }]
        const job = { dtype, rows: 3, column: 0, columns: 31, left: factor(dtype, 6, 1).fill(size), terms }
        check(job, specialBytes(dtype, 93), factor(dtype, 62, 2).fill(size), 31)
      }
    })

    test('counts what overflows, and only where the base was finite', () => {
      const large = dtype === 'fp64' ? 1.7e308 : dtype === 'fp16' ? 65504 : 3.3e38
      const terms = [{ rank: 1, scale: 1 }]
      for (const columns of [5, 24]) {
        const left = factor(dtype, 2, 1).fill(1)
        const right = factor(dtype, columns, 2).fill(0)
        right[3] = large
        const bytes = specialBytes(dtype, 2 * columns)
        check({ dtype, rows: 2, column: 0, columns, left, terms }, bytes, right, columns)
        right[3] = dtype === 'fp16' ? 16 : large / 2 ** 20
        check({ dtype, rows: 2, column: 0, columns, left, terms }, bytes, right, columns)
      }
    })
  })

  test(`${name}: without any rank nothing changes`, () => {
    kernel.begin(0, 4, 'fp32')
    const bytes = specialBytes('bf16', 8)
    kernel.chunk.set(bytes)
    const job: MergeJob = { dtype: 'bf16', rows: 2, column: 0, columns: 4, left: new Float32Array(), terms: [] }
    expect(kernel.merge(job)).toMatchObject({ baseSquares: 0, deltaSquares: 0, overflows: 0, firstOverflow: -1 })
    expect(kernel.chunk.slice(0, 16)).toEqual(bytes)
  })

  test(`${name}: the same chunk lies in place when factors of another size come`, () => {
    kernel.chunk.set([1, 2, 3])
    kernel.begin(256, 4096, 'fp32')
    expect([...kernel.chunk.subarray(0, 3)]).toEqual([1, 2, 3])
  })
}
