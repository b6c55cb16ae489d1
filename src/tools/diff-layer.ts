// How the changes of one layer differ in two adapters, from their factors alone.

import { F64, type Matrix, transpose } from '../base/tensor.js'
import { beside, inPrecisionOf, normOfProduct, product, stacked } from '../linalg/product.js'
import { type Svd, svd, svdOfProduct } from '../linalg/svd.js'
import { type FactorPair, scaled } from '../lora/delta.js'
import type { Change } from './factor-parts.js'

/** Two changes of one weight, ΔA and ΔB, in numbers. */
export interface AdapterDifference {
  /** ‖ΔA‖, Frobenius. */
  normA: number
  /** ‖ΔB‖ */
  normB: number
  /** ‖ΔB − ΔA‖ */
  normDifference: number
  /** ‖ΔB − ΔA‖/‖ΔA‖; 0 where they are equal. */
  relativeChange: number
  /** ⟨ΔA, ΔB⟩/(‖ΔA‖·‖ΔB‖): 1 for the same direction, −1 for opposite ones; null where one of them is 0. */
  cosine: number | null
  /**
   * Principal angles in degrees, smallest first, between the spaces that the changes write into (their left singular
   * vectors). 0: they share a direction; 90: they have none in common.
   */
  outputAngles: number[]
  /** The same for the spaces that they read from (their right singular vectors). */
  inputAngles: number[]
  /** Singular values of ΔB − ΔA, largest first. */
  singularValues: number[]
}

/** Directions with singular values below this share of the largest are noise, and turn angles into chance. */
const SIGNIFICANT = 1e-3

/** For several matrices (groups, experts): norms over all, angles and singular values of the first. */
export function compareChanges(a: Change, b: Change): AdapterDifference {
  const pairs = a.pairs.map((own, at) => [own, b.pairs[at]] as const)
  const normOf = (of: (own: FactorPair, other: FactorPair) => FactorPair) =>
    Math.hypot(
      ...pairs
        .map(([own, other]) => ({ ...of(own, other) }))
        .map(({ weightA, weightB }) => normOfProduct(weightB, weightA)),
    )
  const [normA, normB] = [normOf((own) => own), normOf((_, other) => other)]
  const isEqual = pairs.every(
    ([own, other]) => isSame(own.weightA, other.weightA) && isSame(own.weightB, other.weightB),
  )
  const normDifference = isEqual ? 0 : normOf(differencePair)
  const shared = pairs.reduce((sum, [own, other]) => sum + innerProduct(own, other), 0)
  const [first, second] = pairs[0].map(({ weightA, weightB }) => svdOfProduct(weightB, weightA))
  const between = differencePair(...pairs[0])
  return {
    normA,
    normB,
    normDifference,
    relativeChange: normDifference === 0 ? 0 : normDifference / normA,
    cosine: normA * normB === 0 ? null : Math.max(-1, Math.min(1, shared / (normA * normB))),
    outputAngles: principalAngles(leading(first, 'u'), leading(second, 'u')),
    inputAngles: principalAngles(leading(first, 'vt'), leading(second, 'vt')),
    singularValues: isEqual ? [] : Array.from(svdOfProduct(between.weightB, between.weightA).s),
  }
}

function differencePair(own: FactorPair, other: FactorPair): FactorPair {
  return {
    weightA: stacked([other.weightA, own.weightA]),
    weightB: beside([other.weightB, scaled(own.weightB, -1)]),
  }
}

/** ⟨B₁A₁, B₂A₂⟩ = tr((B₁ᵀB₂)·(A₂A₁ᵀ)) */
function innerProduct(own: FactorPair, other: FactorPair): number {
  const [b1, a1, b2, a2] = [own.weightB, own.weightA, other.weightB, other.weightA].map((one) =>
    inPrecisionOf(F64, one),
  )
  const left = product(b1, b2, { transposeA: true }) // (r1, d) @ (d, r2)
  const right = product(a1, a2, { transposeB: true }) // (r1, k) @ (k, r2)
  let sum = 0
  for (let i = 0; i < left.data.length; i++) sum += left.data[i] * right.data[i]
  return sum
}

function leading({ u, s, vt }: Svd, side: 'u' | 'vt'): Matrix {
  const count = s.findIndex((value) => value < SIGNIFICANT * s[0] || value === 0)
  const rank = count === -1 ? s.length : count
  const rows = side === 'u' ? transpose(u) : vt
  return { data: rows.data.subarray(0, rank * rows.shape[1]), shape: [rank, rows.shape[1]] }
}

/** Björck and Golub 1973: by cosines and, where these are near 1, by sines. */
function principalAngles(a: Matrix, b: Matrix): number[] {
  if (a.shape[0] === 0 || b.shape[0] === 0) return []
  const [small, large] = a.shape[0] <= b.shape[0] ? [a, b] : [b, a]
  const shared = product(small, large, { transposeB: true })
  const cosines = svd(shared).s
  // The part of the smaller space outside of the larger one: its singular values are the sines.
  const rest = product(shared, large, { scale: -1, addTo: { data: small.data.slice(), shape: small.shape } as Matrix })
  const sines = svd(rest).s.reverse()
  return Array.from(cosines, (cosine, i) => {
    const sine = Math.min(1, sines[i])
    return (180 / Math.PI) * (sine < Math.SQRT1_2 ? Math.asin(sine) : Math.acos(Math.min(1, cosine)))
  })
}

function isSame(a: Matrix, b: Matrix): boolean {
  return a.data.length === b.data.length && a.data.every((value, i) => value === b.data[i])
}
