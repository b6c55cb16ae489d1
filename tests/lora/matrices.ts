// Matrices for tests, and the formula of a layer by definition.

import fc from 'fast-check'
import { type FloatArray, type LoraConfigInput, LoraLayer, type Matrix } from '../../src/api/node.js'
import { Random } from '../../src/core/base/random.js'

export type Precision = 'f32' | 'f64'

export const precisions = fc.constantFrom<Precision>('f32', 'f64')

export function array(length: number, precision: Precision): FloatArray {
  return precision === 'f32' ? new Float32Array(length) : new Float64Array(length)
}

/** Makes values in (−1, 1) that only depend on the seed. */
export function random(rows: number, columns: number, seed: number, precision: Precision = 'f64'): Matrix {
  const source = new Random(seed, 'test')
  const data = array(rows * columns, precision)
  for (let i = 0; i < data.length; i++) data[i] = 2 * source.uniform() - 1
  return { data, shape: [rows, columns] }
}

export function rows({ data, shape }: Matrix): number[][] {
  return Array.from({ length: shape[0] }, (_, i) => [...data.subarray(i * shape[1], (i + 1) * shape[1])])
}

export function multiply(a: number[][], b: number[][]): number[][] {
  return a.map((row) => b[0].map((_, j) => row.reduce((sum, value, p) => sum + value * b[p][j], 0)))
}

export function transpose(a: number[][]): number[][] {
  return a[0].map((_, j) => a.map((row) => row[j]))
}

/** Computes W + s·B·A as the paper defines it. */
export function adapted(w: Matrix, b: Matrix, a: Matrix, scaling: number): number[][] {
  const delta = multiply(rows(b), rows(a))
  return rows(w).map((row, i) => row.map((value, j) => value + scaling * delta[i][j]))
}

/** Σ a ∘ b */
export function dot(a: Matrix, b: Matrix): number {
  let sum = 0
  for (let i = 0; i < a.data.length; i++) sum += a.data[i] * b.data[i]
  return sum
}

export function maxDifference(a: Matrix, b: Matrix | number[][]): number {
  const flat = Array.isArray(b) ? b.flat() : b.data
  if (a.data.length !== flat.length) return Number.POSITIVE_INFINITY
  let worst = 0
  for (let i = 0; i < flat.length; i++) worst = Math.max(worst, Math.abs(a.data[i] - flat[i]))
  return Number.isNaN(worst) ? Number.POSITIVE_INFINITY : worst
}

/** Makes a layer (d, k) with nonzero A and B. */
export function trained(
  d = 5,
  k = 7,
  config: LoraConfigInput = { rank: 3 },
  precision: Precision = 'f64',
  seed = 1,
): LoraLayer {
  const layer = new LoraLayer(random(d, k, seed, precision), config)
  layer.weightB = random(d, layer.rank, seed + 1)
  return layer
}
