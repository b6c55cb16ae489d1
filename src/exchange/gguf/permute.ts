// The order of rows in q and k. transformers turns pairs (i, i + hd/2) of a head, Llama's own code and llama.cpp turn (2i, 2i + 1), so
// converted weights have their rows in another order (LlamaModel.permute in llama.cpp's conversion/llama.py). Of s·B·A only B has rows.

import { ShapeError } from '../../base/errors.js'
import { formatShape, type Matrix, zeros } from '../../base/tensor.js'

/** The rows of B (d, r) as llama.cpp has them: row 2i + h of a head is row h·hd/2 + i here. */
export function toGgufOrder(weightB: Matrix, heads: number, where: string): Matrix {
  return reordered(weightB, heads, where, (own, foreign) => [foreign, own])
}

/** The inverse of {@link toGgufOrder}. */
export function fromGgufOrder(weightB: Matrix, heads: number, where: string): Matrix {
  return reordered(weightB, heads, where, (own, foreign) => [own, foreign])
}

/** @param rows from transformers' row and llama.cpp's, the row that is written and the one that is read */
function reordered(
  { data, shape: [d, r] }: Matrix,
  heads: number,
  where: string,
  rows: (own: number, foreign: number) => [to: number, from: number],
): Matrix {
  const half = d / heads / 2
  if (!Number.isInteger(half)) {
    throw new ShapeError({ where, what: `rows that are no ${heads} heads of an even size`, got: formatShape([d, r]) })
  }
  const result = zeros(d, r, data)
  for (let head = 0; head < heads; head++) {
    for (let part = 0; part < 2; part++) {
      for (let i = 0; i < half; i++) {
        const [to, from] = rows(head * 2 * half + part * half + i, head * 2 * half + 2 * i + part)
        result.data.set(data.subarray(from * r, (from + 1) * r), to * r)
      }
    }
  }
  return result
}
