// Matrix products in plain loops: they define what faster kernels must compute. Sums are kept in f64 and rounded once.

import type { FloatArray } from '../base/tensor.js'

/** Products of row-major arrays, all of one precision. Sums are taken in at least that. No argument may alias `out`. */
export interface Kernels {
  readonly name: string
  /** out (m, n) = alpha · op(a) (m, k) @ op(b) (k, n), added to out's old content if `accumulates`. */
  gemm(options: GemmOptions): void
}

export interface GemmOptions {
  m: number
  n: number
  k: number
  a: FloatArray
  /** True if a is stored transposed, as (k, m). Default false. */
  transposeA?: boolean
  b: FloatArray
  /** True if b is stored transposed, as (n, k). Default false. */
  transposeB?: boolean
  out: FloatArray
  /** The factor of the product. Default 1. */
  alpha?: number
  /** True if the product is added to `out`. Default false: its old content is not read. */
  accumulates?: boolean
}

export const referenceKernels: Kernels = { name: 'reference', gemm }

function gemm(product: GemmOptions): void {
  const { m, n, k, a, transposeA = false, b, transposeB = false, out, alpha = 1, accumulates = false } = product
  const row = new Float64Array(n)
  const [aRow, aColumn] = transposeA ? [1, m] : [k, 1]
  for (let i = 0; i < m; i++) {
    if (transposeB) dotRows(row, a, i * aRow, aColumn, b, k)
    else combineRows(row, a, i * aRow, aColumn, b, k)
    const start = i * n
    for (let j = 0; j < n; j++) out[start + j] = alpha * row[j] + (accumulates ? out[start + j] : 0)
  }
}

/** row[j] = Σ_p a[p] · b[j, p], for b stored (n, k). */
function dotRows(row: Float64Array, a: FloatArray, aStart: number, aStride: number, b: FloatArray, k: number): void {
  for (let j = 0; j < row.length; j++) {
    let sum = 0
    for (let p = 0; p < k; p++) sum += a[aStart + p * aStride] * b[j * k + p]
    row[j] = sum
  }
}

/** row[j] = Σ_p a[p] · b[p, j], for b stored (k, n): whole rows of b at a time, so that memory is read in order. */
function combineRows(
  row: Float64Array,
  a: FloatArray,
  aStart: number,
  aStride: number,
  b: FloatArray,
  k: number,
): void {
  const n = row.length
  row.fill(0)
  for (let p = 0; p < k; p++) {
    const scale = a[aStart + p * aStride]
    for (let j = 0; j < n; j++) row[j] += scale * b[p * n + j]
  }
}
