// Products of a grouped convolution: each group's columns of the left matrix meet its own rows of the weight. One group is an
// ordinary product.

import { type Matrix, zeros } from '../../base/tensor.js'
import { type ProductOptions, product } from '../../linalg/product.js'

type Scaled = Pick<ProductOptions, 'scale' | 'addTo'>

/** left (n, groups·k), weight (d, k) → (n, d), rows times rows. */
export function groupProduct(left: Matrix, weight: Matrix, groups: number, options: Scaled = {}): Matrix {
  const part = (own: Matrix, rows: Matrix, scaled: Scaled) => product(own, rows, { ...scaled, transposeB: true })
  return byColumns(left, weight, groups, weight.shape[0], part, options)
}

/** left (n, d), weight (d, k) → (n, groups·k): what goes back through groupProduct to its left matrix. */
export function groupProductToLeft(left: Matrix, weight: Matrix, groups: number, options: Scaled = {}): Matrix {
  return byColumns(left, weight, groups, groups * weight.shape[1], product, options)
}

/** gradient (n, d), left (n, groups·k) → (d, k): what goes back through groupProduct to its weight. */
export function groupProductToWeight(gradient: Matrix, left: Matrix, groups: number, scale: number): Matrix {
  if (groups === 1) return product(gradient, left, { transposeA: true, scale })
  const result = zeros(gradient.shape[1], left.shape[1] / groups, left.data)
  for (let g = 0; g < groups; g++) {
    const addTo = rowsOf(result, g, groups)
    product(columnsOf(gradient, g, groups), columnsOf(left, g, groups), { transposeA: true, scale, addTo })
  }
  return result
}

/** Each group's columns of the result from its columns of the left matrix and its rows of the weight. */
function byColumns(
  left: Matrix,
  weight: Matrix,
  groups: number,
  columns: number,
  part: (left: Matrix, weight: Matrix, scaled: Scaled) => Matrix,
  { scale, addTo }: Scaled,
): Matrix {
  if (groups === 1) return part(left, weight, { scale, addTo })
  const result = addTo ?? zeros(left.shape[0], columns, left.data)
  for (let g = 0; g < groups; g++) {
    const own = addTo && columnsOf(addTo, g, groups)
    putColumns(result, g, groups, part(columnsOf(left, g, groups), rowsOf(weight, g, groups), { scale, addTo: own }))
  }
  return result
}

/** The rows of one of `groups` equal parts, not copied. */
export function rowsOf({ data, shape: [rows, columns] }: Matrix, part: number, groups: number): Matrix {
  const count = rows / groups
  return { data: data.subarray(part * count * columns, (part + 1) * count * columns), shape: [count, columns] }
}

function columnsOf({ data, shape: [rows, columns] }: Matrix, part: number, groups: number): Matrix {
  const count = columns / groups
  const result = zeros(rows, count, data)
  for (let i = 0, at = part * count; i < rows; i++, at += columns) {
    result.data.set(data.subarray(at, at + count), i * count)
  }
  return result
}

function putColumns({ data, shape: [rows, columns] }: Matrix, part: number, groups: number, values: Matrix): void {
  const count = columns / groups
  for (let i = 0, at = part * count; i < rows; i++, at += columns) {
    data.set(values.data.subarray(i * count, (i + 1) * count), at)
  }
}
