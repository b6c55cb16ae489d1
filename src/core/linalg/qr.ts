// Thin QR by Householder reflections, in f64. Panels of columns are kept as compact WY blocks I − V·T·Vᵀ (Schreiber and
// Van Loan 1989), so that nearly all of the work is in matrix products. Signs are LAPACK's.

import { F64, type Matrix, transpose, zeros } from '../base/tensor.js'
import { gemm } from '../kernels/index.js'
import { inPrecisionOf, product } from './product.js'

/** How many columns are reflected one by one before products update the rest. */
const PANEL = 32

/** A block of reflectors, I − V·T·Vᵀ, that changes row `start` and the rows below. */
interface Panel {
  start: number
  count: number
  /** The reflectors Vᵀ of the panel, (count, m − start). */
  vectors: Float64Array
  /** The factor T of the block reflector I − V·T·Vᵀ, (count, count), upper triangular. */
  factor: Float64Array
}

/**
 * Writes a matrix (m, n) as q·r with p = min(m, n). The columns of q (m, p) are orthonormal even if the matrix has a
 * lower rank. r (p, n) is upper triangular, and its diagonal may be negative.
 */
export function qr(matrix: Matrix): { q: Matrix; r: Matrix } {
  const [m, n] = matrix.shape
  const columns = Float64Array.from(transpose(matrix).data)
  const p = Math.min(m, n)
  const panels = reflect(columns, n, m)
  const r = zeros(p, n, F64)
  for (let j = 0; j < n; j++) for (let i = 0; i < Math.min(j + 1, p); i++) r.data[i * n + j] = columns[j * m + i]
  return { q: transpose({ data: thinQ(panels, p, m), shape: [p, m] }), r }
}

/**
 * Orthonormal rows (n, m), n ≤ m, and the diagonal of R. If an element of it is tiny, the direction of that row is
 * noise.
 */
export function orthonormalRows(rows: Matrix): { rows: Matrix; diagonal: Float64Array } {
  const [n, m] = rows.shape
  const columns = Float64Array.from(rows.data)
  const panels = reflect(columns, n, m)
  const diagonal = Float64Array.from({ length: n }, (_, j) => columns[j * m + j])
  return { rows: { data: thinQ(panels, n, m), shape: [n, m] }, diagonal }
}

/** Turns n contiguous columns of length m into the columns of R. What remains below the diagonal has no meaning. */
function reflect(columns: Float64Array, n: number, m: number): Panel[] {
  const panels: Panel[] = []
  const p = Math.min(m, n)
  for (let start = 0; start < p; start += PANEL) {
    const panel = reflectPanel(columns, m, start, Math.min(PANEL, p - start))
    panels.push(panel)
    reflectColumns(columns, m, panel, 'forward', start + panel.count, n)
  }
  return panels
}

function reflectPanel(columns: Float64Array, m: number, start: number, count: number): Panel {
  const length = m - start
  const vectors = new Float64Array(count * length)
  const factor = new Float64Array(count * count)
  for (let c = 0; c < count; c++) {
    const at = (start + c) * m + start
    const vector = vectors.subarray(c * length, (c + 1) * length)
    const tau = reflector(columns, at, vector, c)
    for (let next = c + 1; next < count; next++) {
      const to = (start + next) * m + start
      let dot = 0
      for (let i = c; i < length; i++) dot += vector[i] * columns[to + i]
      dot *= tau
      for (let i = c; i < length; i++) columns[to + i] -= dot * vector[i]
    }
    addToFactor(factor, vectors, count, c, tau)
  }
  return { start, count, vectors, factor }
}

/** LAPACK's dlarfg: turns a column's elements from `first` on into a multiple of the first one. */
function reflector(columns: Float64Array, at: number, vector: Float64Array, first: number): number {
  let sum = 0
  for (let i = first + 1; i < vector.length; i++) sum += columns[at + i] * columns[at + i]
  vector[first] = 1
  if (sum === 0) return 0
  const alpha = columns[at + first]
  const beta = alpha > 0 ? -Math.sqrt(alpha * alpha + sum) : Math.sqrt(alpha * alpha + sum)
  for (let i = first + 1; i < vector.length; i++) vector[i] = columns[at + i] / (alpha - beta)
  columns[at + first] = beta
  return (beta - alpha) / beta
}

/** T's column c = −τ·T·(Vᵀ·v), and τ on the diagonal. */
function addToFactor(factor: Float64Array, vectors: Float64Array, count: number, c: number, tau: number): void {
  const length = vectors.length / count
  const dots = new Float64Array(c)
  for (let j = 0; j < c; j++) {
    for (let i = c; i < length; i++) dots[j] += vectors[j * length + i] * vectors[c * length + i]
  }
  for (let i = 0; i < c; i++) {
    let sum = 0
    for (let j = i; j < c; j++) sum += factor[i * count + j] * dots[j]
    factor[i * count + c] = -tau * sum
  }
  factor[c * count + c] = tau
}

/** (I − V·Tᵀ·Vᵀ)·column on the way to R, or back (I − V·T·Vᵀ)·column, in place. */
function reflectColumns(
  columns: Float64Array,
  m: number,
  { start, count, vectors, factor }: Panel,
  direction: 'forward' | 'back',
  from: number,
  to: number,
): void {
  const [n, length] = [to - from, m - start]
  if (n <= 0) return
  const block = new Float64Array(n * length)
  for (let i = 0; i < n; i++) {
    const at = (from + i) * m
    block.set(columns.subarray(at + start, at + m), i * length)
  }
  const dots = new Float64Array(n * count)
  gemm({ m: n, n: count, k: length, a: block, b: vectors, transposeB: true, out: dots }) // (n, length) @ (length, count)
  const combined = new Float64Array(n * count)
  gemm({ m: n, n: count, k: count, a: dots, b: factor, transposeB: direction === 'back', out: combined }) // (n, count) @ (count, count)
  gemm({ m: n, n: length, k: count, a: combined, b: vectors, out: block, alpha: -1, accumulates: true }) // (n, count) @ (count, length)
  for (let i = 0; i < n; i++) {
    columns.set(block.subarray(i * length, (i + 1) * length), (from + i) * m + start)
  }
}

/** Computes Qᵀ (p, m): applies the reflectors to the first p unit vectors, the last panel first. */
function thinQ(panels: readonly Panel[], p: number, m: number): Float64Array {
  const columns = new Float64Array(p * m)
  for (let i = 0; i < p; i++) columns[i * m + i] = 1
  for (const panel of [...panels].reverse()) reflectColumns(columns, m, panel, 'back', panel.start, p)
  return columns
}

/** Relative errors of Cholesky are about ε·κ² (Higham 2002, Accuracy and Stability of Numerical Algorithms, 10.1). */
const WELL_CONDITIONED = 1e-3

/**
 * R (min(m, n), n) with RᵀR = MᵀM, whose rows may have either sign: by Cholesky from the Gram matrix if that is
 * accurate, otherwise by Householder reflections.
 */
export function triangularFactor(matrix: Matrix): Matrix {
  const [rows, columns] = matrix.shape
  if (rows < columns) return qr(matrix).r
  const matrixF64 = inPrecisionOf(F64, matrix)
  const gram = product(matrixF64, matrixF64, { transposeA: true }) // (n, m) @ (m, n) → (n, n)
  return cholesky(gram) ?? qr(matrix).r
}

/** Returns undefined if the result would be inaccurate. */
function cholesky({ data: gram, shape: [n] }: Matrix): Matrix | undefined {
  const result = zeros(n, n, F64)
  const r = result.data
  let [smallest, largest] = [Number.POSITIVE_INFINITY, 0]
  for (let i = 0; i < n; i++) {
    for (let j = i; j < n; j++) {
      let sum = gram[i * n + j]
      for (let k = 0; k < i; k++) sum -= r[k * n + i] * r[k * n + j]
      if (j > i) r[i * n + j] = sum / r[i * n + i]
      else if (sum > 0) r[i * n + i] = Math.sqrt(sum)
      else return undefined
    }
    smallest = Math.min(smallest, r[i * n + i])
    largest = Math.max(largest, r[i * n + i])
  }
  return smallest >= WELL_CONDITIONED * largest ? result : undefined
}
