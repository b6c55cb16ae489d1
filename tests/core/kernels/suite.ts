// Tests for every implementation of Kernels: shapes with odd tails, transposes, strides of views, alpha, sums with
// the old content, and NaN.

import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import type { FloatArray } from '../../../src/api/node.js'
import type { GemmOptions, Kernels } from '../../../src/core/kernels/reference.js'

const PRECISIONS = [
  { name: 'f32', make: (length: number): FloatArray => new Float32Array(length), epsilon: 2 ** -23 },
  { name: 'f64', make: (length: number): FloatArray => new Float64Array(length), epsilon: 2 ** -52 },
]

/** Computes the product by its definition in f64, and the magnitude of its terms as the scale for errors. */
function define({ m, n, k, a, transposeA, b, transposeB, out, alpha = 1, accumulates = false }: GemmOptions) {
  const values = new Float64Array(m * n)
  const scales = new Float64Array(m * n)
  for (let i = 0; i < m; i++) {
    for (let j = 0; j < n; j++) {
      let sum = 0
      let scale = 0
      for (let p = 0; p < k; p++) {
        const term = a[transposeA ? p * m + i : i * k + p] * b[transposeB ? j * k + p : p * n + j]
        sum += term
        scale += Math.abs(term)
      }
      const old = accumulates ? out[i * n + j] : 0
      values[i * n + j] = alpha * sum + old
      scales[i * n + j] = Math.abs(alpha) * scale + Math.abs(old)
    }
  }
  return { values, scales }
}

function fill(array: FloatArray, seed: number): FloatArray {
  let state = seed * 2654435761 + 1
  for (let i = 0; i < array.length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    array[i] = state / 2 ** 31 - 1
  }
  return array
}

export function kernelSuite(kernels: Kernels): void {
  describe.each(PRECISIONS)(`${kernels.name} gemm, $name`, ({ make, epsilon }) => {
    function check(options: GemmOptions): void {
      const { values, scales } = define(options)
      kernels.gemm(options)
      for (let i = 0; i < values.length; i++) {
        const error = Math.abs(options.out[i] - values[i])
        if (!(error <= epsilon * (options.k + 2) * scales[i])) expect(options.out[i], `element ${i}`).toBe(values[i])
      }
    }

    test('agrees with the definition for any shape, transposes and alpha, with and without the old content', () => {
      const dim = fc.integer({ min: 1, max: 40 })
      fc.assert(
        fc.property(
          fc.record({ m: dim, n: dim, k: dim, transposeA: fc.boolean(), transposeB: fc.boolean() }),
          fc.constantFrom(1, 2, -0.37),
          fc.boolean(),
          fc.integer({ min: 1, max: 1000 }),
          (shape, alpha, accumulates, seed) => {
            const a = fill(make(shape.m * shape.k), seed)
            const b = fill(make(shape.k * shape.n), seed + 1)
            check({ ...shape, a, b, out: fill(make(shape.m * shape.n), seed + 2), alpha, accumulates })
          },
        ),
      )
    })

    test.each([
      [1, 1, 1],
      [5, 7, 300],
      [3, 130, 65],
      [67, 2, 129],
      [4, 1100, 3],
    ])('tails: %i × %i × %i', (m, n, k) => {
      for (const transposeA of [false, true]) {
        for (const transposeB of [false, true]) {
          check({ m, n, k, transposeA, transposeB, a: fill(make(m * k), 1), b: fill(make(k * n), 2), out: make(m * n) })
        }
      }
    })

    test('views at any element offset, and nothing written outside of out', () => {
      for (const offset of [1, 2, 3, 5]) {
        const whole = make(6 * 5 + offset + 2).fill(7)
        const out = whole.subarray(offset, offset + 30)
        const a = fill(make(6 * 9 + offset), 1).subarray(offset)
        const b = fill(make(9 * 5 + offset), 2).subarray(offset)
        check({ m: 6, n: 5, k: 9, a, b, out })
        expect([...whole.subarray(0, offset), ...whole.subarray(offset + 30)]).toEqual(Array(offset + 2).fill(7))
      }
    })

    test('without accumulating the old content is not read', () => {
      const out = make(4).fill(Number.NaN)
      kernels.gemm({ m: 2, n: 2, k: 1, a: make(2).fill(1), b: make(2).fill(2), out })
      expect([...out]).toEqual([2, 2, 2, 2])
    })

    test('NaN and infinity go where they belong and nowhere else', () => {
      const a = make(9).fill(1)
      a[4] = Number.NaN
      const b = make(9).fill(1)
      b[2] = Number.POSITIVE_INFINITY
      const out = make(9)
      kernels.gemm({ m: 3, n: 3, k: 3, a, b, out })
      expect([...out]).toEqual([3, 3, Infinity, NaN, NaN, NaN, 3, 3, Infinity])
    })

    test('subnormals are kept, and sums begin at +0', () => {
      const tiny = epsilon === 2 ** -52 ? 5e-324 : 2 ** -149
      const a = make(30).fill(tiny)
      a.fill(-0, 20)
      const out = make(9).fill(1)
      kernels.gemm({ m: 3, n: 3, k: 10, a, b: make(30).fill(1), out })
      expect([...out]).toEqual([...Array(6).fill(10 * tiny), 0, 0, 0])
    })

    test('empty dimensions: k = 0 adds nothing to the old content, m = 0 or n = 0 does nothing', () => {
      const out = make(4).fill(3)
      kernels.gemm({ m: 2, n: 2, k: 0, a: make(0), b: make(0), out, accumulates: true })
      expect([...out]).toEqual([3, 3, 3, 3])
      kernels.gemm({ m: 2, n: 2, k: 0, a: make(0), b: make(0), out })
      expect([...out]).toEqual([0, 0, 0, 0])
      kernels.gemm({ m: 0, n: 2, k: 2, a: make(0), b: make(4), out: make(0) })
      kernels.gemm({ m: 2, n: 0, k: 2, a: make(4), b: make(0), out: make(0) })
    })
  })
}
