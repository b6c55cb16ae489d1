// Computes the singular values of a layer's change s·B·A, and how many of them matter.

import { elementCount, type FloatArray, isAllFinite, type Matrix, type Tensor } from '../core/base/tensor.js'
import { rowsOf } from '../core/linalg/product.js'
import { singularValuesOfProduct } from '../core/linalg/svd.js'
import type { FactorPair } from './delta.js'
import { expertColumns } from './kinds/experts.js'

/** How the change of a layer is spread over directions. */
export interface Spectrum {
  /** The singular values of s·B·A, the largest first. Empty if A or B contains a value that is not finite. */
  singularValues: number[]
  /**
   * The effective rank, exp of the entropy of σᵢ/Σσ: 1 if the layer changes along a single direction, r if it changes
   * equally along r directions (Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality",
   * EUSIPCO). 0 if the layer changes nothing, NaN if there are no singular values.
   */
  effectiveRank: number
  /** How many of the largest singular values hold 99 % of the energy Σσ². 0 or NaN as above. */
  rank99: number
}

const ENERGY = 0.99

/** Returns a pair of factors for each expert of a parameter, or each group of a convolution; otherwise one pair. */
export function factorPairs(
  weightA: Tensor<FloatArray>,
  weightB: Tensor<FloatArray>,
  experts: number | undefined,
): FactorPair[] {
  const a: Matrix = { data: weightA.data, shape: [weightA.shape[0], elementCount(weightA.shape.slice(1))] }
  const b: Matrix = { data: weightB.data, shape: [weightB.shape[0], elementCount(weightB.shape.slice(1))] }
  if (experts !== undefined) {
    return Array.from({ length: experts }, (_, e) => {
      return { weightA: rowsOf(a, e, experts), weightB: expertColumns(b, e, experts) }
    })
  }
  // The outputs of a group read only that group's rows of A.
  const groups = a.shape[0] / b.shape[1]
  return Array.from({ length: groups }, (_, g) => {
    return { weightA: rowsOf(a, g, groups), weightB: rowsOf(b, g, groups) }
  })
}

export function spectrumOf({ weightA, weightB }: FactorPair, scaling: number): Spectrum {
  if (!isAllFinite(weightA.data) || !isAllFinite(weightB.data)) {
    return { singularValues: [], effectiveRank: Number.NaN, rank99: Number.NaN }
  }
  const singularValues = Array.from(singularValuesOfProduct(weightB, weightA), (value) => scaling * value)
  const rank99 = rankOfEnergy(singularValues, ENERGY, energyOf(singularValues))
  return { singularValues, effectiveRank: effectiveRankOf(singularValues), rank99 }
}

/** Averages spectra: the root mean square of each singular value, and the mean of the ranks. */
export function meanSpectrum(spectra: readonly Spectrum[]): Spectrum {
  if (spectra.length === 1) return spectra[0]
  const mean = (of: (spectrum: Spectrum) => number) =>
    spectra.reduce((sum, spectrum) => sum + of(spectrum), 0) / spectra.length
  const hasValues = spectra.every(({ singularValues }) => singularValues.length > 0)
  const indexes = hasValues ? spectra[0].singularValues.keys() : []
  return {
    singularValues: Array.from(indexes, (i) => Math.sqrt(mean(({ singularValues }) => singularValues[i] ** 2))),
    effectiveRank: mean(({ effectiveRank }) => effectiveRank),
    rank99: mean(({ rank99 }) => rank99),
  }
}

/** Returns ‖s·B·A‖, or NaN if there are no singular values. */
export function normOfSpectrum({ singularValues, effectiveRank }: Spectrum): number {
  return Number.isNaN(effectiveRank) ? Number.NaN : Math.sqrt(energyOf(singularValues))
}

function effectiveRankOf(singularValues: readonly number[]): number {
  const sum = singularValues.reduce((total, value) => total + value, 0)
  if (sum === 0) return 0
  let entropy = 0
  for (const value of singularValues) if (value > 0) entropy -= (value / sum) * Math.log(value / sum)
  return Math.exp(entropy)
}

/** The number of the largest singular values that hold a share of the energy `total`. */
export function rankOfEnergy(s: ArrayLike<number>, share: number, total: number): number {
  if (total === 0) return 0
  // The lost energy is summed from the smallest value, because a sum from the largest would round it away.
  let rest = Math.max(0, total - energyOf(s))
  let count = s.length
  while (count > 0 && rest + s[count - 1] ** 2 <= (1 - share) * total) {
    rest += s[count - 1] ** 2
    count--
  }
  return count
}

/** Σσ² from the value at `first` on. */
export function energyOf(s: ArrayLike<number>, first = 0): number {
  let sum = 0
  for (let i = s.length - 1; i >= first; i--) sum += s[i] ** 2
  return sum
}
