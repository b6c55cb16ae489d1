// The matrices that a layer's factors are made of: one pair, or one for each expert of a parameter and each group of a convolution.

import { elementCount, type FloatArray, type Matrix, type Tensor } from '../base/tensor.js'
import type { FactorPair } from './init/decomposed.js'
import { expertColumns } from './kinds/experts.js'
import { rowsOf } from './kinds/groups.js'

/**
 * @param weightA (r, k), of a convolution (r, in, *kernel), of a parameter (E·r, k)
 * @param weightB (d, r), of a convolution (d, r/groups, 1…), of a parameter (d, r·E)
 * @param experts E of a parameter
 */
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
  // Outputs of a group see the rows of A that are its own.
  const groups = a.shape[0] / b.shape[1]
  return Array.from({ length: groups }, (_, g) => {
    return { weightA: rowsOf(a, g, groups), weightB: rowsOf(b, g, groups) }
  })
}
