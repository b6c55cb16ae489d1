// TIES merging (Yadav et al. 2023, arXiv 2306.01708, section 4): trim each tensor to its largest values, elect a sign for each value,
// and average the values of that sign. The steps are those of PEFT's merge_utils.

import type { FloatArray } from '../base/tensor.js'

/** A tensor with its weight. */
export interface WeightedTensor {
  readonly data: FloatArray
  readonly weight: number
}

/**
 * One tensor out of several of the same size.
 *
 * @param density the share of the largest values of each that is kept, in (0, 1]
 * @param sign a value's sign is that of the unweighted sum, or that of most tensors
 */
export function ties(tensors: readonly WeightedTensor[], density: number, sign: 'total' | 'frequency'): Float64Array {
  const size = tensors[0].data.length
  const trimmed = tensors.map(({ data }) => largestValues(data, density))
  const result = new Float64Array(size)
  for (let i = 0; i < size; i++) {
    let vote = 0
    for (const values of trimmed) vote += sign === 'total' ? values[i] : Math.sign(values[i])
    const elected = vote >= 0 ? 1 : -1
    let [sum, count] = [0, 0]
    for (let t = 0; t < trimmed.length; t++) {
      if (Math.sign(trimmed[t][i]) !== elected) continue
      sum += tensors[t].weight * trimmed[t][i]
      count++
    }
    result[i] = count === 0 ? 0 : sum / count
  }
  return result
}

/** The floor(density · n) values of the largest size, and zeros for the others. Of equal ones at the edge, the first are kept. */
function largestValues(values: FloatArray, density: number): FloatArray {
  if (density >= 1) return values
  const kept = Math.floor(density * values.length)
  const result = values.slice().fill(0)
  if (kept === 0) return result
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
