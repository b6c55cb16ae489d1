// The matrices that a layer's factors are made of: one pair, or one for each expert of a parameter and each group of a convolution.

import { elementCount, type FloatArray, type Matrix, type Tensor } from '../base/tensor.js'
import { expertColumns } from './experts.js'

/** A (r, k) and B (d, r). */
export interface FactorPair {
  readonly weightA: Matrix
  readonly weightB: Matrix
}

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
      return { weightA: rowBlock(a, e, experts), weightB: expertColumns(b, e, experts) }
    })
  }
  // Outputs of a group see the rows of A that are its own.
  const groups = a.shape[0] / b.shape[1]
  return Array.from({ length: groups }, (_, g) => {
    return { weightA: rowBlock(a, g, groups), weightB: rowBlock(b, g, groups) }
  })
}

function rowBlock({ data, shape: [rows, columns] }: Matrix, index: number, count: number): Matrix {
  const own = rows / count
  return { data: data.subarray(index * own * columns, (index + 1) * own * columns), shape: [own, columns] }
}
