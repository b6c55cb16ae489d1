// Sums of tensors after dropping some of their values, with the steps of PEFT's merge_utils. TIES (Yadav et al. 2023,
// arXiv 2306.01708, section 4) keeps the largest values of each tensor, elects a sign for each place, and averages the
// values with that sign. DARE (Yu et al. 2024, arXiv 2311.03099) keeps random values, and divides them by the share
// that is kept.

import type { Random } from '../base/random.js'
import type { FloatArray } from '../base/tensor.js'

interface WeightedTensor {
  readonly data: FloatArray
  readonly weight: number
}

export interface SparseSum {
  readonly keep: 'largest' | 'random' | 'all'
  /** The share of each tensor's values that is kept, in (0, 1]. */
  readonly density: number
  /** Of each place, only values with the sign of the unweighted sum count. */
  readonly electsSigns: boolean
}

export function sparseSum(
  tensors: readonly WeightedTensor[],
  { keep, density, electsSigns }: SparseSum,
  random: (index: number) => Random,
): Float64Array {
  const kept = tensors.map(({ data, weight }, index) => {
    if (keep === 'all' || density >= 1) return { data, weight }
    return {
      data: keep === 'largest' ? largestValues(data, density) : randomValues(data, density, random(index)),
      weight,
    }
  })
  return electsSigns ? electedMean(kept) : weightedSum(kept)
}

function weightedSum(tensors: readonly WeightedTensor[]): Float64Array {
  const result = new Float64Array(tensors[0].data.length)
  for (const { data, weight } of tensors) for (let i = 0; i < data.length; i++) result[i] += weight * data[i]
  return result
}

function electedMean(tensors: readonly WeightedTensor[]): Float64Array {
  const size = tensors[0].data.length
  const result = new Float64Array(size)
  for (let i = 0; i < size; i++) {
    let vote = 0
    for (const { data } of tensors) vote += data[i]
    const elected = vote >= 0 ? 1 : -1
    let [sum, count] = [0, 0]
    for (const { data, weight } of tensors) {
      if (Math.sign(data[i]) !== elected) continue
      sum += weight * data[i]
      count++
    }
    result[i] = count === 0 ? 0 : sum / count
  }
  return result
}

/** Keeps each value with the probability `density`, and divides by it, so that the expected result is the tensor. */
function randomValues(values: FloatArray, density: number, random: Random): FloatArray {
  const result = values.slice().fill(0)
  const edge = density * 2 ** 32
  for (let i = 0; i < values.length; i++) if (random.uint32() < edge) result[i] = values[i] / density
  return result
}

/** Keeps the largest values. If equal values compete for the last places, the first ones win. */
function largestValues(values: FloatArray, density: number): FloatArray {
  const kept = Math.floor(density * values.length)
  const result = values.slice().fill(0)
  const sizes = values.map(Math.abs).sort()
  const edge = sizes[sizes.length - kept]
  let atEdge = 0
  for (let i = sizes.length - kept; i < sizes.length && sizes[i] === edge; i++) atEdge++
  for (let i = 0; i < values.length; i++) {
    const size = Math.abs(values[i])
    if (size > edge || (size === edge && atEdge-- > 0)) result[i] = values[i]
  }
  return result
}
