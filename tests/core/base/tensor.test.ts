// What counts as a matrix.

import { describe, expect, test } from 'vitest'
import { type MatrixLike, ShapeError } from '../../../src/api/node.js'
import { toMatrix } from '../../../src/core/base/tensor.js'

describe('toMatrix', () => {
  test('copies nested arrays in f64 and leaves a matrix as it is', () => {
    const rows = [
      [1, 2, 3],
      [4, 5, 6],
    ]
    expect(toMatrix(rows, 'x')).toEqual({ data: Float64Array.of(1, 2, 3, 4, 5, 6), shape: [2, 3] })
    expect(toMatrix([], 'x')).toEqual({ data: new Float64Array(), shape: [0, 0] })
    const matrix = { data: new Float32Array(6), shape: [3, 2] } as const
    expect(toMatrix(matrix, 'x')).toBe(matrix)
  })

  test.each([
    ['nothing', undefined],
    ['null', null],
    ['numbers in one row', [1, 2, 3]],
    ['a row that is not there', [[1], null]],
    ['a row of text', ['12', '34']],
    ['data alone', { data: new Float32Array(4) }],
    ['data of another type', { data: new Int32Array(4), shape: [2, 2] }],
    ['a shape that is no list', { data: new Float32Array(4), shape: 4 }],
  ])('refuses %s', (_, value) => {
    const check = () => toMatrix(value as unknown as MatrixLike, 'x')
    expect(check).toThrow(ShapeError)
    expect(check).toThrow('x: not a matrix; expected number[][]')
  })

  test.each([[[3, 2]], [[4]], [[1, 2, 2]], [[-2, -2]], [[0.5, 8]]])('refuses 4 elements as %j', (shape) => {
    const check = () => toMatrix({ data: new Float32Array(4), shape } as unknown as MatrixLike, 'x')
    expect(check).toThrow(/x: data and shape disagree; expected \(.*\) elements, got 4/)
  })

  test('refuses rows of different lengths', () => {
    expect(() => toMatrix([[1, 2], [3]], 'x')).toThrow('x: row 1 has another length; expected 2, got 1')
  })
})
