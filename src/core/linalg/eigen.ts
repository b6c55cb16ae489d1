// Eigenvalues of symmetric matrices in f64: Householder tridiagonalization, then the QL algorithm with implicit shifts
// (Golub and Van Loan, Matrix Computations, 8.3). Vectors are rows, so that every loop is contiguous.

import { NumericError } from '../base/errors.js'
import type { Matrix } from '../base/tensor.js'
import { identity } from './product.js'

/** QL needs two or three passes for an eigenvalue. If this many are not enough, some element is not finite. */
const MAX_PASSES = 60

/** Eigenvalues, largest first. Row i of the vectors (n, n) belongs to value i. All elements must be finite. */
export function symmetricEigen(matrix: Matrix): { values: Float64Array; vectors: Matrix } {
  const n = matrix.shape[0]
  const reduced = tridiagonal(Float64Array.from(matrix.data), n)
  const { diagonal, below } = reduced
  const vectors = accumulate(reduced, n)
  implicitQl(diagonal, below, vectors)
  const order = Array.from(diagonal.keys()).sort((i, j) => diagonal[j] - diagonal[i])
  const data = new Float64Array(n * n)
  order.forEach((from, to) => {
    data.set(vectors.subarray(from * n, (from + 1) * n), to * n)
  })
  return { values: Float64Array.from(order, (i) => diagonal[i]), vectors: { data, shape: [n, n] } }
}

/**
 * Changes `a` in place; both triangles are kept up to date, so that products read whole rows. Element i of `below` is
 * at (i + 1, i). Row i of `reflectors` has reflector i, from element i + 1 on.
 */
function tridiagonal(a: Float64Array, n: number) {
  const diagonal = new Float64Array(n)
  const below = new Float64Array(n)
  const taus = new Float64Array(n)
  const w = new Float64Array(n)
  for (let k = 0; k < n; k++) {
    diagonal[k] = a[k * n + k]
    if (k === n - 1) break
    const v = a.subarray(k * n, (k + 1) * n)
    let sum = 0
    for (let i = k + 2; i < n; i++) sum += v[i] * v[i]
    const alpha = v[k + 1]
    below[k] = alpha
    if (sum === 0) continue
    const beta = alpha > 0 ? -Math.sqrt(alpha * alpha + sum) : Math.sqrt(alpha * alpha + sum)
    const tau = (beta - alpha) / beta
    for (let i = k + 2; i < n; i++) v[i] /= alpha - beta
    v[k + 1] = 1
    below[k] = beta
    taus[k] = tau
    // A ← H·A·H = A − v·wᵀ − w·vᵀ with p = τ·A·v and w = p − (τ/2)·(pᵀ·v)·v
    let dot = 0
    for (let i = k + 1; i < n; i++) {
      let product = 0
      for (let j = k + 1, at = i * n + j; j < n; j++, at++) product += a[at] * v[j]
      w[i] = tau * product
      dot += w[i] * v[i]
    }
    for (let i = k + 1; i < n; i++) w[i] -= (tau / 2) * dot * v[i]
    for (let i = k + 1; i < n; i++) {
      const [vi, wi] = [v[i], w[i]]
      for (let j = k + 1, at = i * n + j; j < n; j++, at++) a[at] -= vi * w[j] + wi * v[j]
    }
  }
  return { diagonal, below, reflectors: a, taus }
}

/** Qᵀ of A = Q·T·Qᵀ. */
function accumulate({ reflectors, taus }: ReturnType<typeof tridiagonal>, n: number): Float64Array {
  const result = identity(n).data as Float64Array
  for (let k = n - 3; k >= 0; k--) {
    const tau = taus[k]
    if (tau === 0) continue
    const v = reflectors.subarray(k * n, (k + 1) * n)
    for (let i = k + 1; i < n; i++) {
      let dot = 0
      for (let j = k + 1, at = i * n + j; j < n; j++, at++) dot += result[at] * v[j]
      dot *= tau
      for (let j = k + 1, at = i * n + j; j < n; j++, at++) result[at] -= dot * v[j]
    }
  }
  return result
}

/** Turns the tridiagonal matrix (`d`, `e`) into a diagonal one by rotations, which also turn the rows of `vectors`. */
function implicitQl(d: Float64Array, e: Float64Array, vectors: Float64Array): void {
  const n = d.length
  let largest = 0
  for (let i = 0; i < n; i++) largest = Math.max(largest, Math.abs(d[i]) + Math.abs(e[i]))
  // Measured against the largest element. Against the neighbors, a matrix of rounding errors would never be done.
  const negligible = Number.EPSILON * largest
  for (let first = 0; first < n; first++) {
    for (let pass = 0; ; pass++) {
      let last = first
      while (last < n - 1 && Math.abs(e[last]) > negligible) last++
      if (last === first) break
      if (pass === MAX_PASSES) throw new NumericError({ where: 'symmetricEigen', what: 'does not converge' })
      qlPass(d, e, first, last, vectors)
    }
  }
}

/**
 * One pass of the QL algorithm, with the names of EISPACK's imtql2. The shift is the eigenvalue of the first two rows
 * that is nearer to the first diagonal element.
 */
function qlPass(d: Float64Array, e: Float64Array, first: number, last: number, vectors: Float64Array): void {
  const n = d.length
  const ratio = (d[first + 1] - d[first]) / (2 * e[first])
  let g = d[last] - d[first] + e[first] / (ratio + (ratio < 0 ? -1 : 1) * Math.hypot(ratio, 1))
  let [s, c, p] = [1, 1, 0]
  for (let i = last - 1; i >= first; i--) {
    const f = s * e[i]
    const b = c * e[i]
    const h = Math.hypot(f, g)
    e[i + 1] = h
    if (h === 0) {
      // The block splits here: the next pass works on a smaller one.
      d[i + 1] -= p
      e[last] = 0
      return
    }
    s = f / h
    c = g / h
    g = d[i + 1] - p
    const r = (d[i] - g) * s + 2 * c * b
    p = s * r
    d[i + 1] = g + p
    g = c * r - b
    rotate(vectors, i * n, (i + 1) * n, n, c, s)
  }
  d[first] -= p
  e[first] = g
  e[last] = 0
}

/** Rotates two rows: x, y ← c·x − s·y, s·x + c·y. */
export function rotate(rows: Float64Array, x: number, y: number, length: number, c: number, s: number): void {
  for (let k = 0; k < length; k++) {
    const [f, g] = [rows[x + k], rows[y + k]]
    rows[x + k] = c * f - s * g
    rows[y + k] = s * f + c * g
  }
}
