// Singular values of s·B·A, computed without the product, compared with an SVD of the product. Also numbers that follow
// from them.

import { describe, expect, test } from 'vitest'
import type { Matrix } from '../../src/api/node.js'
import { product } from '../../src/core/linalg/product.js'
import { triangularFactor } from '../../src/core/linalg/qr.js'
import { svd } from '../../src/core/linalg/svd.js'
import { meanSpectrum, normOfSpectrum, spectrumOf } from '../../src/lora/spectrum.js'
import { random } from './matrices.js'

/** Multiplies column j by steps[j]. */
function scaled(matrix: Matrix, steps: readonly number[]): Matrix {
  const [, columns] = matrix.shape
  return { data: matrix.data.map((value, i) => value * steps[i % columns]), shape: matrix.shape }
}

const steep = Array.from({ length: 8 }, (_, i) => 10 ** -i)

describe.each<[string, Matrix, Matrix]>([
  ['well conditioned', random(40, 8, 1), random(8, 30, 2)],
  ['a B of very different columns', scaled(random(40, 8, 3), steep), random(8, 30, 4)],
  ['a B with a column of zeros', scaled(random(40, 8, 5), [1, 1, 0, 1, 1, 1, 1, 1]), random(8, 30, 6)],
  ['a rank above both sides', random(6, 8, 7), random(8, 5, 8)],
])('%s', (_, weightB, weightA) => {
  test('singular values are those of the product', () => {
    const { singularValues, ...ranks } = spectrumOf({ weightA, weightB }, 2)
    const expected = svd(product(weightB, weightA, { scale: 2 })).s
    singularValues.forEach((value, i) => {
      expect(Math.abs(value - expected[i])).toBeLessThan(1e-12 * expected[0])
    })
    expect(singularValues).toHaveLength(Math.min(weightB.shape[0], weightA.shape[0], weightA.shape[1]))
    expect(normOfSpectrum({ singularValues, ...ranks })).toBeCloseTo(Math.hypot(...expected), 10)
  })

  test('the triangular factor keeps them', () => {
    const expected = svd(weightB).s
    svd(triangularFactor(weightB)).s.forEach((value, i) => {
      expect(Math.abs(value - expected[i])).toBeLessThan(1e-9 * Math.max(expected[i], 1e-6 * expected[0]))
    })
  })
})

/** Makes B and A such that B·A is a diagonal matrix of these singular values. */
function diagonal(values: readonly number[]) {
  const n = values.length
  const matrix = (of: (i: number) => number): Matrix => {
    const data = new Float64Array(n * n)
    for (let i = 0; i < n; i++) data[i * n + i] = of(i)
    return { data, shape: [n, n] }
  }
  return { weightA: matrix(() => 1), weightB: matrix((i) => values[i]) }
}

describe('ranks', () => {
  test.each<[string, number[], effectiveRank: number, rank99: number]>([
    ['one direction', [0, 5, 0], 1, 1],
    ['three alike', [2, 2, 2], 3, 3],
    ['no change', [0, 0, 0], 0, 0],
    // Entropy in bits of (½, ¼, ¼) is 1.5; energy 4, 1, 1 of 6.
    ['halves', [2, 1, 1], 2 ** 1.5, 3],
    ['a tail without energy', [10, 0.5, 0.5], Math.exp((10 / 11) * Math.log(1.1) + (1 / 11) * Math.log(22)), 1],
  ])('%s', (_, values, effectiveRank, rank99) => {
    const spectrum = spectrumOf(diagonal(values), 1)
    expect(spectrum.effectiveRank).toBeCloseTo(effectiveRank, 10)
    expect(spectrum.rank99).toBe(rank99)
  })

  test('without values where one is not finite', () => {
    const spectrum = spectrumOf(diagonal([1, Number.NaN]), 1)
    expect(spectrum).toEqual({ singularValues: [], effectiveRank: Number.NaN, rank99: Number.NaN })
    expect(normOfSpectrum(spectrum)).toBeNaN()
  })

  test('of several matrices are means', () => {
    const { singularValues, effectiveRank, rank99 } = meanSpectrum([
      spectrumOf(diagonal([3, 0]), 1),
      spectrumOf(diagonal([4, 4]), 1),
    ])
    expect(singularValues).toEqual([expect.closeTo(Math.sqrt(12.5), 12), expect.closeTo(Math.sqrt(8), 12)])
    expect([effectiveRank, rank99]).toEqual([expect.closeTo(1.5, 12), 1.5])
  })
})
