// Matrix products through the kernels, and the few other operations on matrices that a layer needs.

import type { Random } from '../base/random.js'
import { F64, type FloatArray, type Matrix, transpose, zeros } from '../base/tensor.js'
import { gemm } from '../kernels/index.js'

export interface ProductOptions {
  transposeA?: boolean
  transposeB?: boolean
  scale?: number | undefined
  /** A matrix to which scale · a·b is added in place, and which is returned. Default: a new matrix. */
  addTo?: Matrix | undefined
}

/** scale · op(a) (m, k) @ op(b) (k, n) → (m, n), in a's precision. The caller has checked the shapes. */
export function product(a: Matrix, b: Matrix, options: ProductOptions = {}): Matrix {
  const { transposeA = false, transposeB = false, scale = 1, addTo } = options
  const [m, k] = transposeA ? [a.shape[1], a.shape[0]] : a.shape
  const n = b.shape[transposeB ? 0 : 1]
  const out = addTo ?? zeros(m, n, a.data)
  const operands = { a: a.data, transposeA, b: b.data, transposeB }
  gemm({ m, n, k, ...operands, out: out.data, alpha: scale, accumulates: addTo !== undefined })
  return out
}

export function copyAs(matrix: Matrix, like: FloatArray): Matrix {
  const data = like instanceof Float64Array ? new Float64Array(matrix.data) : new Float32Array(matrix.data)
  return { data, shape: [matrix.shape[0], matrix.shape[1]] }
}

export function inPrecisionOf(like: FloatArray, matrix: Matrix): Matrix {
  return matrix.data.BYTES_PER_ELEMENT === like.BYTES_PER_ELEMENT ? matrix : copyAs(matrix, like)
}

/** target += scale · matrix, in place, and returned. */
export function addScaled(target: Matrix, { data }: Matrix, scale: number): Matrix {
  for (let i = 0; i < data.length; i++) target.data[i] += scale * data[i]
  return target
}

/** The Frobenius norm. */
export function norm({ data }: Pick<Matrix, 'data'>): number {
  let sum = 0
  for (let i = 0; i < data.length; i++) sum += data[i] * data[i]
  return Math.sqrt(sum)
}

/** ‖b·a‖ for b (d, r) and a (r, k) as √Σ (bᵀb ∘ a·aᵀ), in f64, with r²·(d + k) multiplications instead of r·d·k. */
export function normOfProduct(b: Matrix, a: Matrix): number {
  const [b64, a64] = [inPrecisionOf(F64, b), inPrecisionOf(F64, a)]
  const left = product(b64, b64, { transposeA: true }) // (r, d) @ (d, r) → (r, r)
  const right = product(a64, a64, { transposeB: true }) // (r, k) @ (k, r) → (r, r)
  let sum = 0
  for (let i = 0; i < left.data.length; i++) sum += left.data[i] * right.data[i]
  // Rounding can leave a tiny negative sum where b·a is zero.
  return Math.sqrt(Math.max(sum, 0))
}

/** Stacks matrices (rᵢ, n) to (Σrᵢ, n), in the precision of the first. */
export function stacked(matrices: readonly Matrix[]): Matrix {
  const rows = matrices.reduce((sum, { shape }) => sum + shape[0], 0)
  const result = zeros(rows, matrices[0].shape[1], matrices[0].data)
  let at = 0
  for (const { data } of matrices) {
    result.data.set(data, at)
    at += data.length
  }
  return result
}

/** Puts matrices (d, rᵢ) side by side: (d, Σrᵢ). */
export function beside(matrices: readonly Matrix[]): Matrix {
  return transpose(stacked(matrices.map(transpose)))
}

/** Returns a copy of `count` columns. */
export function columnsOf({ data, shape: [rows, columns] }: Matrix, first: number, count: number): Matrix {
  const result = zeros(rows, count, data)
  for (let i = 0; i < rows; i++) {
    result.data.set(data.subarray(i * columns + first, i * columns + first + count), i * count)
  }
  return result
}

export function identity(n: number): Matrix {
  const result = zeros(n, n, F64)
  for (let i = 0; i < n; i++) result.data[i * n + i] = 1
  return result
}

/** Draws a matrix of numbers from the normal distribution N(0, 1). */
export function normals(random: Random, rows: number, columns: number): Matrix {
  const result = zeros(rows, columns, F64)
  for (let i = 0; i < result.data.length; i++) result.data[i] = random.normal()
  return result
}

/** A view of one of `groups` equal ranges of rows; the values are not copied. */
export function rowsOf({ data, shape: [rows, columns] }: Matrix, part: number, groups: number): Matrix {
  const count = rows / groups
  return { data: data.subarray(part * count * columns, (part + 1) * count * columns), shape: [count, columns] }
}
