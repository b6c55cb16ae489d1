// Adds s·B·A to a weight in place (Hu et al. 2021, arXiv 2106.09685, section 4.1), or to blocks of a stored weight.

import { type FloatArray, type Matrix, transpose, zeros } from '../core/base/tensor.js'
import { inPrecisionOf, product } from '../core/linalg/product.js'

export interface FactorPair {
  /** (r, k) */
  readonly weightA: Matrix
  /** (d, r) */
  readonly weightB: Matrix
}

/** Adds s·B·A to base (d, k) in place, and returns it. */
export function addDelta(base: Matrix, { weightA, weightB }: FactorPair, scaling: number): Matrix {
  return product(weightB, weightA, { scale: scaling, addTo: base }) // (d, r) @ (r, k) → (d, k)
}

/** Fills factors up to a rank with zero rows of A and zero columns of B, which do not change B·A. */
export function padded({ weightA, weightB }: FactorPair, rank: number): FactorPair {
  const [r, k] = weightA.shape
  if (r === rank) return { weightA, weightB }
  const a = zeros(rank, k, weightA.data)
  a.data.set(weightA.data)
  const d = weightB.shape[0]
  const b = zeros(d, rank, weightB.data)
  for (let i = 0; i < d; i++) b.data.set(weightB.data.subarray(i * r, (i + 1) * r), i * rank)
  return { weightA: a, weightB: b }
}

/** Returns scale·matrix as a new matrix of the same precision, or the matrix itself if the scale is 1. */
export function scaled(matrix: Matrix, scale: number): Matrix {
  if (scale === 1) return matrix
  return { data: matrix.data.map((value) => scale * value) as FloatArray, shape: matrix.shape }
}

/** Adds s·B·A to a weight block by block, for weights that do not fit in memory as a whole. */
export class StoredDelta {
  readonly #scaling: number
  /** (rows, r): B, or Aᵀ if the weight is stored input-major, as (k, d). */
  readonly #left: Matrix
  /** (r, columns): A, or Bᵀ. */
  readonly #right: Matrix

  constructor({ weightA, weightB }: FactorPair, scaling: number, isInputMajor: boolean) {
    const [a, b] = [weightA, weightB].map((factor) => inPrecisionOf(new Float32Array(), factor))
    this.#scaling = scaling
    this.#left = isInputMajor ? transpose(a) : b
    this.#right = isInputMajor ? transpose(b) : a
  }

  /** Adds the block's rows of s·B·A in place, and returns the block. It is in f32, and `first` is its first row. */
  addTo(block: Matrix, first: number): Matrix {
    const [, rank] = this.#left.shape
    const rows = block.shape[0]
    const left: Matrix = { data: this.#left.data.subarray(first * rank, (first + rows) * rank), shape: [rows, rank] }
    return product(left, this.#right, { scale: this.#scaling, addTo: block }) // (rows, r) @ (r, columns)
  }
}

/**
 * Computes the norm of each output feature's weights for DoRA (Liu et al. 2024, arXiv 2402.09353, equation 5): W' = m ⊙
 * (W + s·B·A) / ‖W + s·B·A‖, row by row of a weight (d, k). The norms are summed in f64 over blocks of the stored
 * weight.
 */
export class OutputNorms {
  /** Σ w² of each output feature (d). */
  readonly squares: Float64Array

  constructor(d: number) {
    this.squares = new Float64Array(d)
  }

  /** Adds a block of rows of a weight (d, k) or, input-major, (k, d). Its first row is row `first` of the weight. */
  add({ data, shape: [rows, columns] }: Matrix, first: number, isInputMajor: boolean): this {
    const { squares } = this
    for (let i = 0, at = 0; i < rows; i++) {
      for (let j = 0; j < columns; j++, at++) squares[isInputMajor ? j : first + i] += data[at] * data[at]
    }
    return this
  }

  /** Returns ‖row‖ (d). */
  norms(): Float64Array {
    return this.squares.map(Math.sqrt)
  }

  /** Returns m / ‖row‖ (d). A row of zeros gives infinity or NaN, which merging refuses. */
  scales(magnitude: FloatArray): Float64Array {
    return this.squares.map((square, i) => magnitude[i] / Math.sqrt(square))
  }
}

/** Returns the norm of each row, in f64. */
export function rowNorms(matrix: Matrix): Float64Array {
  return new OutputNorms(matrix.shape[0]).add(matrix, 0, false).norms()
}

/** Returns m / ‖row‖ for each row of W + s·B·A (d, k). */
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
