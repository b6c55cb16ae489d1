// The triangular factor of a tall matrix alone, where Q is not needed: by Cholesky from the Gram matrix, which is one product, where
// that is accurate; else by Householder reflections.

import { F64, type Matrix, zeros } from '../base/tensor.js'
import { inPrecisionOf, product } from './product.js'
import { qr } from './qr.js'

/**
 * Singular values of Cholesky's factor have relative errors of about ε·κ² (Higham 2002, "Accuracy and Stability of Numerical
 * Algorithms", 10.1): with a diagonal above this share of its largest, some 1e-10.
 */
const WELL_CONDITIONED = 1e-3

/** R (min(m, n), n) with RᵀR = MᵀM for M (m, n); M and R have the same singular values. Signs of its rows are any. */
export function triangularFactor(matrix: Matrix): Matrix {
  const [rows, columns] = matrix.shape
  if (rows < columns) return qr(matrix).r
  const own = inPrecisionOf(F64, matrix)
  const gram = product(own, own, { transposeA: true }) // (n, m) @ (m, n) → (n, n)
  return cholesky(gram) ?? qr(matrix).r
}

/** Upper R with RᵀR = gram (n, n); undefined where that would be inaccurate. */
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
