// Matrices and tensors: a flat row-major array with a shape. Shape letters: n rows, k in, d out, r rank.

import { ShapeError } from './errors.js'

/** Values in single or double precision. A result has the same precision as its inputs. */
export type FloatArray = Float32Array | Float64Array

/** A row-major matrix. */
export interface Matrix {
  /** rows · columns values */
  readonly data: FloatArray
  /** [rows, columns] */
  readonly shape: readonly [number, number]
}

/** A matrix in any form that public functions accept. Nested arrays become f64. */
export type MatrixLike = Matrix | readonly (readonly number[])[]

/** A row-major tensor of any number of dimensions. */
export interface Tensor<Data extends FloatArray = Float32Array> {
  /** The values, row-major: as many as the shape has elements. */
  readonly data: Data
  readonly shape: readonly number[]
}

export interface Shaped {
  readonly shape: readonly number[]
}

export const F64: FloatArray = new Float64Array()

/** Says whether no value is NaN or infinite. */
export function isAllFinite(values: FloatArray): boolean {
  // NaN and infinity times 0 give NaN. Four sums are faster than one, because they do not wait for each other.
  let [a, b, c, d] = [0, 0, 0, 0]
  const whole = values.length - (values.length % 4)
  for (let i = 0; i < whole; i += 4) {
    a += values[i] * 0
    b += values[i + 1] * 0
    c += values[i + 2] * 0
    d += values[i + 3] * 0
  }
  for (let i = whole; i < values.length; i++) a += values[i] * 0
  return a + b + c + d === 0
}

export function zeros(rows: number, columns: number, like: FloatArray): Matrix {
  const data = like instanceof Float64Array ? new Float64Array(rows * columns) : new Float32Array(rows * columns)
  return { data, shape: [rows, columns] }
}

/** Copies nested arrays into an f64 matrix, or returns a Matrix as it is. Throws ShapeError for anything else. */
export function toMatrix(value: MatrixLike, where: string): Matrix {
  return Array.isArray(value) ? fromRows(value, where) : checkedMatrix(value as Matrix, where)
}

function fromRows(rows: readonly (readonly number[])[], where: string): Matrix {
  if (!rows.every((row) => typeof row === 'object' && row !== null && isDim(row.length))) throw notAMatrix(where)
  const columns = rows.length === 0 ? 0 : rows[0].length
  const data = new Float64Array(rows.length * columns)
  rows.forEach((row, i) => {
    if (row.length !== columns) {
      throw new ShapeError({ where, what: `row ${i} has another length`, expected: `${columns}`, got: `${row.length}` })
    }
    data.set(row, i * columns)
  })
  return { data, shape: [rows.length, columns] }
}

function checkedMatrix(matrix: Matrix, where: string): Matrix {
  if (!hasValues(matrix)) throw notAMatrix(where)
  if (matrix.shape.length !== 2 || !isFilled(matrix)) throw disagreement(matrix, where)
  return matrix
}

/** Throws ShapeError if this is not a tensor, or if its data do not fill its shape. */
export function checkTensor(tensor: Tensor<FloatArray>, where: string): void {
  if (!hasValues(tensor)) {
    throw new ShapeError({ where, what: 'not a tensor', expected: '{data: Float32Array | Float64Array, shape}' })
  }
  if (!isFilled(tensor)) throw disagreement(tensor, where)
}

function hasValues(value: Partial<Tensor<FloatArray>> | undefined | null): value is Tensor<FloatArray> {
  const { data, shape } = value ?? {}
  return (data instanceof Float32Array || data instanceof Float64Array) && Array.isArray(shape)
}

function isFilled({ data, shape }: Tensor<FloatArray>): boolean {
  return shape.every(isDim) && elementCount(shape) === data.length
}

function disagreement({ data, shape }: Tensor<FloatArray>, where: string): ShapeError {
  return new ShapeError({
    where,
    what: 'data and shape disagree',
    expected: `${formatShape(shape)} elements`,
    got: `${data.length}`,
  })
}

function notAMatrix(where: string): ShapeError {
  return new ShapeError({
    where,
    what: 'not a matrix',
    expected: 'number[][] or {data: Float32Array | Float64Array, shape}',
  })
}

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

/** Rounds up to a multiple, for padded sizes and aligned offsets. */
export function roundUp(value: number, multiple: number): number {
  return Math.ceil(value / multiple) * multiple
}

/** Returns the number of elements of a shape; 1 for a scalar. */
export function elementCount(shape: readonly number[]): number {
  return shape.reduce((product, dim) => product * dim, 1)
}

export function joinedUp(lists: readonly ArrayLike<number>[]): Float32Array {
  const values = new Float32Array(lists.reduce((sum, { length }) => sum + length, 0))
  let at = 0
  for (const list of lists) {
    values.set(list, at)
    at += list.length
  }
  return values
}

function isDim(value: unknown): boolean {
  return Number.isInteger(value) && Number(value) >= 0
}

/** Rounds as in Python: halves go to the even neighbor. */
export function halfToEven(value: number): number {
  const floor = Math.floor(value)
  if (value - floor !== 0.5) return Math.round(value)
  return floor % 2 === 0 ? floor : floor + 1
}

export function transpose(matrix: Matrix): Matrix {
  return transposeAs(matrix, matrix.data)
}

export function transposeAs({ data, shape: [rows, columns] }: Matrix, like: FloatArray): Matrix {
  const result = zeros(columns, rows, like)
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) result.data[j * rows + i] = data[i * columns + j]
  }
  return result
}
