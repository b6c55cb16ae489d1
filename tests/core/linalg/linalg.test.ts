import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { type Matrix, NumericError } from '../../../src/api/node.js'
import { transpose } from '../../../src/core/base/tensor.js'
import { symmetricEigen } from '../../../src/core/linalg/eigen.js'
import { product } from '../../../src/core/linalg/product.js'
import { orthonormalRows, qr } from '../../../src/core/linalg/qr.js'
import { type Svd, singularValuesOfProduct, svd, truncatedSvd } from '../../../src/core/linalg/svd.js'
import { maxDifference } from '../../lora/matrices.js'
import { some, THOROUGH } from '../../thorough.js'
import { energy, falling, identity, uniform, unionWeight } from './matrices.js'

interface Leading {
  energies: Record<string, number>
  values: number[]
}
type Sized<T> = T & { rows: number; columns: number; seed: number }

const golden: {
  qr: Sized<{ q: number[]; r: number[] }>[]
  values: Sized<{ ratio: number; values: number[] }>[]
  products: { d: number; r: number; k: number; seed: number; values: number[] }[]
  flat: Sized<Leading>[]
  truncated: Sized<{ ratio: number; rank: number; probeSeed: number; values: number[]; image: number[] }>
  real: (Leading & { tensor: string })[]
} = JSON.parse(readFileSync(new URL('../../golden/linalg.json', import.meta.url), 'utf8'))

function expectOrthonormal(u: Matrix, vt: Matrix): void {
  expect(maxDifference(product(u, u, { transposeA: true }), identity(u.shape[1]))).toBeLessThan(1e-12)
  expect(maxDifference(product(vt, vt, { transposeB: true }), identity(vt.shape[0]))).toBeLessThan(1e-12)
}

function composed({ u, s, vt }: Svd): Matrix {
  const scaled = { data: u.data.map((value, i) => value * s[i % s.length]), shape: u.shape }
  return product(scaled, vt)
}

/** Returns the largest difference of singular values, relative to the largest. */
function distance(values: Float64Array, expected: readonly number[]): number {
  expect(values.length).toBe(expected.length)
  return Math.max(...expected.map((value, i) => Math.abs(values[i] - value))) / expected[0]
}

test.each(golden.qr)('qr of ($rows, $columns) is LAPACK’s, signs included', ({ rows, columns, seed, q, r }) => {
  const result = qr(uniform(rows, columns, seed))
  const p = Math.min(rows, columns)
  expect(result.q.shape).toEqual([rows, p])
  expect(result.r.shape).toEqual([p, columns])
  expect(maxDifference(result.q, [q])).toBeLessThan(1e-13)
  expect(maxDifference(result.r, [r])).toBeLessThan(1e-13)
})

test('qr of a matrix with columns of zeros and equal columns has an orthonormal q', () => {
  const matrix = uniform(50, 40, 1)
  for (let i = 0; i < 50; i++) {
    matrix.data[i * 40 + 3] = 0
    matrix.data[i * 40 + 8] = matrix.data[i * 40 + 2]
    matrix.data[i * 40 + 39] = matrix.data[i * 40 + 2]
  }
  const { q, r } = qr(matrix)
  expectOrthonormal(q, identity(1))
  expect(maxDifference(product(q, r), matrix)).toBeLessThan(1e-13)
})

test('orthonormal rows span the rows', () => {
  const matrix = uniform(40, 90, 2)
  const { rows, diagonal } = orthonormalRows(matrix)
  expectOrthonormal(identity(1), rows)
  const back = product(product(matrix, rows, { transposeB: true }), rows)
  expect(maxDifference(back, matrix)).toBeLessThan(1e-13)
  expect(Math.min(...diagonal.map(Math.abs))).toBeGreaterThan(0.1)
})

test('eigenvalues and eigenvectors of a symmetric matrix', () => {
  const half = uniform(30, 70, 3)
  const gram = product(half, half, { transposeB: true })
  const { values, vectors } = symmetricEigen(gram)
  expectOrthonormal(identity(1), vectors)
  const turned = product(product(vectors, gram), vectors, { transposeB: true })
  expect(maxDifference(turned, diagonalOf(values))).toBeLessThan(1e-12)
  expect([...values].sort((a, b) => b - a)).toEqual([...values])
})

function diagonalOf(values: Float64Array): Matrix {
  const result = identity(values.length)
  values.forEach((value, i) => {
    result.data[i * values.length + i] = value
  })
  return result
}

describe('svd', () => {
  test.each(golden.values)('of ($rows, $columns), columns × $ratio: LAPACK’s values', ({ values, ...of }) => {
    const matrix = falling(of.rows, of.columns, of.seed, of.ratio)
    const result = svd(matrix)
    expect(distance(result.s, values)).toBeLessThan(1e-14)
    expectOrthonormal(result.u, result.vt)
    expect(maxDifference(composed(result), matrix)).toBeLessThan(1e-13)
  })

  test.each([
    [9, 14],
    [80, 70],
  ])('of a matrix (%i, %i) of rank 3, and of zeros', (d, k) => {
    const low = product(uniform(d, 3, 1), uniform(3, k, 2))
    const result = svd(low)
    expectOrthonormal(result.u, result.vt)
    expect(maxDifference(composed(result), low)).toBeLessThan(1e-13)
    expect(Math.max(...result.s.slice(3))).toBeLessThan(1e-13)
    const nothing = svd({ data: new Float64Array(d * k), shape: [d, k] })
    expectOrthonormal(nothing.u, nothing.vt)
    expect([...nothing.s].every((value) => value === 0)).toBe(true)
  })

  test('refuses what is not finite', () => {
    expect(() => svd({ data: Float64Array.of(1, Number.NaN), shape: [1, 2] })).toThrow(NumericError)
  })
})

test.each(golden.products)('singular values of b·a, ($d, $r)·($r, $k)', ({ d, r, k, seed, values }) => {
  const result = singularValuesOfProduct(uniform(d, r, seed), uniform(r, k, seed + 100))
  expect(distance(result, values)).toBeLessThan(1e-14)
})

describe('truncatedSvd', () => {
  test.each(golden.flat.slice(THOROUGH ? 0 : -1))(
    '($rows, $columns), flat: the energy is optimal to 1e-12',
    ({ energies, ...of }) => {
      const matrix = uniform(of.rows, of.columns, of.seed)
      for (const [rank, best] of Object.entries(energies).slice(THOROUGH ? 0 : -1)) {
        const result = truncatedSvd(matrix, Number(rank))
        expectOrthonormal(result.u, result.vt)
        expect(energy(result.s) / best).toBeGreaterThan(1 - 1e-12)
        expect(energy(result.s) / best).toBeLessThan(1 + 1e-12)
        // The vectors capture as much as the result claims.
        const image = product(product(result.u, matrix, { transposeA: true }), result.vt, { transposeB: true })
        expect(maxDifference(image, diagonalOf(result.s))).toBeLessThan(1e-10)
      }
    },
  )

  test.each(some(golden.real))('$tensor: the energy is optimal to 1e-12', async ({ tensor, energies, values }) => {
    const weight = await unionWeight(tensor)
    for (const [rank, best] of Object.entries(energies)) {
      const { s } = truncatedSvd(weight, Number(rank))
      expect(Math.abs(energy(s) / best - 1)).toBeLessThan(1e-12)
      if (rank === '8') expect(Math.abs(s[0] / values[0] - 1)).toBeLessThan(1e-6)
    }
  })

  test('finds the subspace where the next singular value is 10 % smaller', () => {
    const { rows, columns, seed, ratio, rank, probeSeed, values, image } = golden.truncated
    expect(values[rank] / values[rank - 1]).toBeLessThan(0.9)
    const matrix = falling(rows, columns, seed, ratio)
    const probe = uniform(columns, 1, probeSeed)
    const found = truncatedSvd(matrix, rank)
    expect(maxDifference(product(composed(found), probe), [image])).toBeLessThan(1e-6)
  })

  test('is the transposed one’s transpose in energy, repeats, and takes f32', () => {
    const matrix = uniform(150, 260, 4)
    const result = truncatedSvd(matrix, 5)
    expect(maxDifference(truncatedSvd(matrix, 5).u, result.u)).toBe(0)
    const other = truncatedSvd(transpose(matrix), 5)
    expect(Math.abs(energy(other.s) / energy(result.s) - 1)).toBeLessThan(1e-6)
    const f32 = { data: Float32Array.from(matrix.data), shape: matrix.shape }
    expect(Math.abs(energy(truncatedSvd(f32, 5).s) / energy(result.s) - 1)).toBeLessThan(1e-6)
  })

  test('copes with equal singular values, a lower rank and zeros', () => {
    const spread = qr(uniform(260, 200, 5)).q // 200 singular values of 1
    const equal = truncatedSvd(spread, 10)
    expectOrthonormal(equal.u, equal.vt)
    expect(Math.abs(energy(equal.s) - 10)).toBeLessThan(1e-10)
    const low = product(uniform(200, 4, 6), uniform(4, 210, 7))
    const found = truncatedSvd(low, 9)
    expectOrthonormal(found.u, found.vt)
    expect(maxDifference(composed(found), low)).toBeLessThan(1e-10)
    const nothing = truncatedSvd({ data: new Float64Array(200 * 210), shape: [200, 210] }, 3)
    expectOrthonormal(nothing.u, nothing.vt)
    expect(energy(nothing.s)).toBe(0)
  })

  test('refuses values that are not finite', () => {
    const broken = uniform(4, 6, 1)
    broken.data[3] = Number.POSITIVE_INFINITY
    expect(() => truncatedSvd(broken, 2)).toThrow(NumericError)
  })
})
