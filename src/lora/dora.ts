// DoRA (Liu et al. 2024, arXiv 2402.09353, equation 5): W' = m ⊙ (W + s·B·A) / ‖W + s·B·A‖, row by row of a weight (d,
// k), however the base stores it.

import type { FloatArray, Matrix } from '../base/tensor.js'

/** The norm of each output feature's weights, summed in f64 from blocks of a weight as it is stored. */
export class OutputNorms {
  /** Σ w² of each output feature (d). */
  readonly squares: Float64Array

  constructor(d: number) {
    this.squares = new Float64Array(d)
  }

  /** Rows of a weight (d, k), or of one that is stored input-major, (k, d), from `first` on. */
  add({ data, shape: [rows, columns] }: Matrix, first: number, isInputMajor: boolean): this {
    const { squares } = this
    for (let i = 0, at = 0; i < rows; i++) {
      for (let j = 0; j < columns; j++, at++) squares[isInputMajor ? j : first + i] += data[at] * data[at]
    }
    return this
  }

  /** ‖row‖ (d) */
  norms(): Float64Array {
    return this.squares.map(Math.sqrt)
  }

  /** m / ‖row‖ (d). A row of zeros gives infinity or NaN, which merging refuses. */
  scales(magnitude: FloatArray): Float64Array {
    return this.squares.map((square, i) => magnitude[i] / Math.sqrt(square))
  }
}

/** In f64. */
export function rowNorms(matrix: Matrix): Float64Array {
  return new OutputNorms(matrix.shape[0]).add(matrix, 0, false).norms()
}

/** m / ‖row‖ for each row of W + s·B·A (d, k). */
export function magnitudeScales(magnitude: FloatArray, adapted: Matrix): Float64Array {
  return new OutputNorms(adapted.shape[0]).add(adapted, 0, false).scales(magnitude)
}

/** Multiplies each row or column by its scale, in place. */
export function scale(matrix: Matrix, lines: 'rows' | 'columns', scales: FloatArray): Matrix {
  const { data, shape } = matrix
  const [rows, columns] = shape
  for (let i = 0, at = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++, at++) data[at] *= scales[lines === 'rows' ? i : j]
  }
  return matrix
}
