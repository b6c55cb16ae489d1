// Computes initial factors from a decomposition of the weight, as PEFT does (tuners/lora/layer.py, 0.21). Everything is
// in f64. The weight is (d, k), A (r, k), B (d, r).

import { F64, type Matrix, zeros } from '../../core/base/tensor.js'
import { columnsOf, copyAs, product } from '../../core/linalg/product.js'
import { qr } from '../../core/linalg/qr.js'
import { type Svd, truncatedSvd } from '../../core/linalg/svd.js'
import type { FactorPair } from '../delta.js'

/**
 * PiSSA (arXiv 2404.02948): s·B·A is W's best approximation of that rank, with A = √(S/s)·Vᵀ and B = U·√(S/s). Signs of
 * pairs are free.
 */
export function pissaFactors(weight: Matrix, rank: number, scaling: number): FactorPair {
  return balancedFactors(truncatedSvd(weight, rank), scaling)
}

/** Equally large factors with scaling·B·A = U·S·Vᵀ, so that neither overflows in a 16-bit type. */
export function balancedFactors({ u, s, vt }: Svd, scaling = 1): FactorPair {
  const roots = s.map((value) => Math.sqrt(value / scaling))
  const k = vt.shape[1]
  return {
    weightA: { data: vt.data.map((value, at) => value * roots[Math.floor(at / k)]), shape: vt.shape },
    weightB: { data: u.data.map((value, at) => value * roots[at % roots.length]), shape: u.shape },
  }
}

/** OLoRA (arXiv 2406.01775): the first r columns of Q and rows of R. Only the first r columns of W are decomposed. */
export function oloraFactors(weight: Matrix, rank: number): FactorPair {
  const w = copyAs(weight, F64)
  const k = w.shape[1]
  const { q, r } = qr(columnsOf(w, 0, rank))
  const rows = product(q, w, { transposeA: true }) // (r, d) @ (d, k) → (r, k)
  for (let i = 0; i < rank; i++) rows.data.set(r.data.subarray(i * rank, (i + 1) * rank), i * k)
  return { weightA: rows, weightB: q }
}

/**
 * Makes orthogonal factors (datta0.github.io/posts/rethink-lora-init). `square` (r, r), `right` (k, r/2) and `left`
 * (r/2, d) are drawn from N(0, 1). With square = Q·R, A = (right·Q[even rows])ᵀ/10 and B = leftᵀ·Q[odd rows]/10, so
 * that B·A = 0.
 */
export function orthogonalFactors(square: Matrix, right: Matrix, left: Matrix): FactorPair {
  const { q } = qr(square)
  const rank = q.shape[1]
  const everyOther = (first: 0 | 1): Matrix => {
    const rows = zeros(rank / 2, rank, F64)
    for (let i = 0; i < rank / 2; i++) {
      const from = (2 * i + first) * rank
      rows.data.set(q.data.subarray(from, from + rank), i * rank)
    }
    return rows
  }
  return {
    weightA: product(everyOther(0), right, { transposeA: true, transposeB: true, scale: 0.1 }), // (r, r/2) @ (r/2, k)
    weightB: product(left, everyOther(1), { transposeA: true, scale: 0.1 }), // (d, r/2) @ (r/2, r)
  }
}
