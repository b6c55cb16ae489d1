// Matrices as values: a flat row-major array and its shape. Shape letters: n rows, k in, d out, r rank.

import { ShapeError } from './errors.js'

export type FloatArray = Float32Array | Float64Array

/** A row-major matrix. */
export interface Matrix {
  readonly data: FloatArray
  /** [rows, columns] */
  readonly shape: readonly [number, number]
}

/** What every public function accepts as a matrix; nested arrays become f64. */
export type MatrixLike = Matrix | readonly (readonly number[])[]

/** A row-major tensor of any number of dimensions; f32 where nothing else is said, as in files. */
export interface Tensor<Data extends FloatArray = Float32Array> {
  readonly data: Data
  readonly shape: readonly number[]
}

/** A matrix of zeros in the precision of `like`. */
export function zeros(rows: number, columns: number, like: FloatArray): Matrix {
  const data = like instanceof Float64Array ? new Float64Array(rows * columns) : new Float32Array(rows * columns)
  return { data, shape: [rows, columns] }
}

/**
 * Checks a value and gives it the form of a Matrix. Nested arrays are copied into an f64 matrix; a Matrix is returned
 * as it is.
 *
 * @throws ShapeError when rows differ in length, or the data does not have rows · columns elements.
 */
export function toMatrix(value: MatrixLike, where: string): Matrix {
  if (Array.isArray(value)) {
    const rows = value as readonly (readonly number[])[]
    const columns = rows.length === 0 ? 0 : rows[0].length
    const data = new Float64Array(rows.length * columns)
    rows.forEach((row, i) => {
      if (row.length !== columns) {
        throw new ShapeError({
          where,
          what: `row ${i} has another length`,
          expected: `${columns}`,
          got: `${row.length}`,
        })
      }
      data.set(row, i * columns)
    })
    return { data, shape: [rows.length, columns] }
  }
  const matrix = value as Matrix
  const [rows, columns] = matrix.shape ?? []
  if (!(matrix.data instanceof Float32Array || matrix.data instanceof Float64Array)) {
    throw new ShapeError({
      where,
      what: 'not a matrix',
      expected: 'number[][] or {data: Float32Array | Float64Array, shape}',
    })
  }
  if (matrix.shape.length !== 2 || !isDim(rows) || !isDim(columns) || rows * columns !== matrix.data.length) {
    throw new ShapeError({
      where,
      what: 'data and shape disagree',
      expected: `${formatShape(matrix.shape)} elements`,
      got: `${matrix.data.length}`,
    })
  }
  return matrix
}

/** Throws ShapeError unless `matrix` is (rows, columns). */
export function checkShape(matrix: Matrix, rows: number, columns: number, where: string): void {
  if (matrix.shape[0] !== rows || matrix.shape[1] !== columns) {
    throw new ShapeError({
      where,
      what: 'wrong shape',
      expected: formatShape([rows, columns]),
      got: formatShape(matrix.shape),
    })
  }
}

export function formatShape(shape: readonly (number | bigint | string)[]): string {
  return `(${shape.join(', ')})`
}

/** Number of elements of a shape; 1 for a scalar's. */
export function elementCount(shape: readonly number[]): number {
  return shape.reduce((product, dim) => product * dim, 1)
}

function isDim(value: unknown): value is number {
  return Number.isInteger(value) && (value as number) >= 0
}
