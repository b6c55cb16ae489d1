// DoRA (Liu et al. 2024, arXiv 2402.09353, equation 5): W' = m ⊙ (W + s·B·A) / ‖W + s·B·A‖, row by row of a weight (d, k). PEFT
// takes the norm over the input features of each output feature, however the base stores its weight.

import type { FloatArray, Matrix } from '../base/tensor.js'

/** ‖row‖ of each row, summed in f64. */
export function rowNorms({ data, shape: [rows, columns] }: Matrix): Float64Array {
  const norms = new Float64Array(rows)
  for (let i = 0; i < rows; i++) {
    let sum = 0
    for (let at = i * columns, end = at + columns; at < end; at++) sum += data[at] * data[at]
    norms[i] = Math.sqrt(sum)
  }
  return norms
}

/** m / ‖row‖ for each row of W + s·B·A (d, k). A row of zeros gives infinity or NaN, which merging refuses. */
export function magnitudeScales(magnitude: FloatArray, adapted: Matrix): Float64Array {
  const scales = rowNorms(adapted)
  for (let i = 0; i < scales.length; i++) scales[i] = magnitude[i] / scales[i]
  return scales
}

/** Multiplies each row by its scale, in place. */
export function scaleRows(matrix: Matrix, scales: FloatArray): Matrix {
  const { data, shape } = matrix
  const [rows, columns] = shape
  for (let i = 0, at = 0; i < rows; i++) for (let j = 0; j < columns; j++, at++) data[at] *= scales[i]
  return matrix
}

/** Multiplies each column by its scale, in place. */
export function scaleColumns(matrix: Matrix, scales: FloatArray): Matrix {
  const { data, shape } = matrix
  const [rows, columns] = shape
  for (let i = 0, at = 0; i < rows; i++) for (let j = 0; j < columns; j++, at++) data[at] *= scales[j]
  return matrix
}
