// The singular value decomposition in f64, by one-sided Jacobi rotations of a triangular factor (Drmač and Veselić
// 2008), which finds small singular values to high relative accuracy. The smaller side should be at most a few hundred.

import { NumericError } from '../base/errors.js'
import { F64, isAllFinite, type Matrix, transpose, zeros } from '../base/tensor.js'
import { rotate, symmetricEigen } from './eigen.js'
import { columnsOf, copyAs, identity, product } from './product.js'
import { orthonormalRows, qr, triangularFactor } from './qr.js'

/** matrix (d, k) = u·diag(s)·vt, p = min(d, k). */
export interface Svd {
  /** (d, p), orthonormal columns. */
  u: Matrix
  /** (p), largest first, none negative. */
  s: Float64Array
  /** (p, k), orthonormal rows. */
  vt: Matrix
}

/** About ten sweeps are enough, unless a value is not finite. */
const MAX_SWEEPS = 60

/** From this size on, the eigenvectors of the Gram matrix are applied first: then two or three sweeps are enough. */
const MIN_TURNED = 48

/** Each pair of singular vectors may have either sign. Throws NumericError if an element is not finite. */
export function svd(matrix: Matrix): Svd {
  checkFinite(matrix)
  const [d, k] = matrix.shape
  if (d < k) return transposed(svd(transpose(matrix)))
  const { q, r } = qr(matrix)
  // r = Wᵀ·diag(s)·Z with orthonormal rows of W and Z
  const { turns, s, rows } = orthogonalize(r)
  return { u: product(q, turns, { transposeB: true }), s, vt: rows } // (d, k) @ (k, k) → (d, k)
}

/** For sides up to this size the full SVD is as fast. */
const SMALL = 128

/** The first `rank` ≤ min(d, k) singular values and vectors, by the eigenvectors of the smaller of W·Wᵀ and Wᵀ·W. */
export function truncatedSvd(weight: Matrix, rank: number): Svd {
  const [d, k] = weight.shape
  const side = Math.min(d, k)
  if (side <= SMALL) return truncated(svd(weight), rank)
  if (d > k) return transposed(truncatedSvd(transpose(weight), rank))
  checkFinite(weight)
  const w = copyAs(weight, F64)
  const { vectors } = symmetricEigen(product(w, w, { transposeB: true })) // (d, k) @ (k, d)
  const rows: Matrix = { data: vectors.data.slice(0, rank * d), shape: [rank, d] }
  const { u, s, vt } = svd(product(rows, w)) // (rank, d) @ (d, k)
  return { u: product(rows, u, { transposeA: true }), s, vt } // (d, rank) @ (rank, rank)
}

export function truncated({ u, s, vt }: Svd, rank: number): Svd {
  const k = vt.shape[1]
  return { u: columnsOf(u, 0, rank), s: s.slice(0, rank), vt: { data: vt.data.slice(0, rank * k), shape: [rank, k] } }
}

function transposed({ u, s, vt }: Svd): Svd {
  return { u: transpose(vt), s, vt: transpose(u) }
}

/**
 * The min(d, r, k) singular values of b·a for b (d, r) and a (r, k), without forming b·a: r²·(d + k) multiplications,
 * then an SVD of (r, r).
 */
export function singularValuesOfProduct(b: Matrix, a: Matrix): Float64Array {
  checkFinite(b)
  checkFinite(a)
  const left = triangularFactor(b) // (min(d, r), r)
  const right = triangularFactor(transpose(a)) // (min(k, r), r)
  const { s } = svd(product(left, right, { transposeB: true }))
  return s
}

/** For b (d, r) and a (r, k), without forming b·a: u (d, p), s, vt (p, k) with p = min(d, r, k). */
export function svdOfProduct(b: Matrix, a: Matrix): Svd {
  checkFinite(b)
  checkFinite(a)
  const left = qr(b) // (d, min(d, r)), (min(d, r), r)
  const right = qr(transpose(a)) // (k, min(k, r)), (min(k, r), r)
  const { u, s, vt } = svd(product(left.r, right.r, { transposeB: true }))
  return { u: product(left.q, u), s, vt: product(vt, right.q, { transposeB: true }) }
}

function checkFinite(matrix: Matrix): void {
  if (isAllFinite(matrix.data)) return
  throw new NumericError({ where: 'svd', what: 'the matrix has an element that is not finite' })
}

/** Finds turns · x = diag(s) · rows for x (n, n), with orthogonal `turns` and `rows`. */
function orthogonalize(x: Matrix): { turns: Matrix; s: Float64Array; rows: Matrix } {
  const n = x.shape[0]
  let turns = identity(n)
  let rows = copyAs(x, F64)
  if (n >= MIN_TURNED) {
    turns = symmetricEigen(product(x, x, { transposeB: true })).vectors // (n, n) @ (n, n)
    rows = product(turns, x)
  }
  jacobi(rows.data as Float64Array, turns.data as Float64Array, n)
  const norms = Float64Array.from({ length: n }, (_, i) => Math.sqrt(dot(rows.data, i * n, i * n, n)))
  const order = Array.from(norms.keys()).sort((i, j) => norms[j] - norms[i])
  const sorted = { turns: zeros(n, n, F64), rows: zeros(n, n, F64) }
  const s = Float64Array.from(order, (i) => norms[i])
  // A row that is not longer than this limit is rounding error, so its direction means nothing.
  const rank = s.findIndex((value) => value <= s[0] * Number.EPSILON * n * 1e-3)
  order.forEach((from, to) => {
    sorted.turns.data.set(turns.data.subarray(from * n, (from + 1) * n), to * n)
    for (let j = 0; j < n; j++) sorted.rows.data[to * n + j] = s[to] === 0 ? 0 : rows.data[from * n + j] / s[to]
  })
  return { turns: sorted.turns, s, rows: rank === -1 ? sorted.rows : completed(sorted.rows, rank) }
}

/** Keeps the first `rank` rows, which are orthonormal, and completes them with rows orthogonal to them. */
function completed(rows: Matrix, rank: number): Matrix {
  const n = rows.shape[1]
  const known = copyAs(rows, F64)
  known.data.fill(0, rank * n)
  const { rows: result } = orthonormalRows(known)
  result.data.set(rows.data.subarray(0, rank * n))
  return result
}

/** Sweeps over all pairs of rows until each pair is orthogonal; `turns` follows. */
function jacobi(rows: Float64Array, turns: Float64Array, n: number): void {
  const tolerance = Number.EPSILON * Math.sqrt(n)
  let largest = 0
  for (let i = 0; i < n; i++) largest = Math.max(largest, dot(rows, i * n, i * n, n))
  // The square of a length that is only rounding error.
  const negligible = largest * (Number.EPSILON * n * 1e-3) ** 2
  const squares = new Float64Array(n)
  /** Makes a pair of rows orthogonal if they are not yet. */
  const turn = (i: number, j: number): boolean => {
    const [x, y] = [i * n, j * n]
    const [xx, yy] = [squares[i], squares[j]]
    if (!(xx > negligible && yy > negligible)) return false
    const off = dot(rows, x, y, n)
    if (Math.abs(off) <= tolerance * Math.sqrt(xx) * Math.sqrt(yy)) return false
    const zeta = (yy - xx) / (2 * off)
    const t = (zeta < 0 ? -1 : 1) / (Math.abs(zeta) + Math.hypot(1, zeta))
    const c = 1 / Math.hypot(1, t)
    rotate(rows, x, y, n, c, c * t)
    rotate(turns, x, y, n, c, c * t)
    squares[i] -= t * off
    squares[j] += t * off
    return true
  }
  for (let sweep = 0; sweep < MAX_SWEEPS; sweep++) {
    for (let i = 0; i < n; i++) squares[i] = dot(rows, i * n, i * n, n)
    let turned = 0
    for (let i = 0; i < n - 1; i++) for (let j = i + 1; j < n; j++) if (turn(i, j)) turned++
    if (turned === 0) return
  }
  throw new NumericError({ where: 'svd', what: 'does not converge' })
}

function dot(values: ArrayLike<number>, x: number, y: number, length: number): number {
  let sum = 0
  for (let k = 0; k < length; k++) sum += values[x + k] * values[y + k]
  return sum
}
