// The order of rows in q and k. transformers turns pairs (i, i + hd/2) of a head, Llama's own code and llama.cpp turn
// (2i, 2i + 1), so converted weights have their rows in another order (LlamaModel.permute in llama.cpp's
// conversion/llama.py). Of s·B·A only B has rows.

import { ShapeError } from '../../base/errors.js'
import type { FloatArray } from '../../base/tensor.js'

/** Row 2i + h of a head is row h·hd/2 + i here. `d` rows of B, or of its bytes; in a new array. */
export function toGgufOrder<T extends FloatArray | Uint8Array>(data: T, d: number, heads: number, where: string): T {
  return reordered(data, d, heads, where, (own, foreign) => [foreign, own])
}

export function fromGgufOrder(data: FloatArray, d: number, heads: number, where: string): FloatArray {
  return reordered(data, d, heads, where, (own, foreign) => [own, foreign])
}

function reordered<T extends FloatArray | Uint8Array>(
  data: T,
  d: number,
  heads: number,
  where: string,
  rows: (own: number, foreign: number) => [to: number, from: number],
): T {
  const [half, length] = [d / heads / 2, data.length / d]
  if (!Number.isInteger(half)) {
    throw new ShapeError({ where, what: `rows that are no ${heads} heads of an even size`, got: `${d} rows` })
  }
  // Not slice of bytes: that of Node's Buffer is a view.
  const result = (data instanceof Uint8Array ? new Uint8Array(data) : data.slice()) as T
  for (let head = 0; head < heads; head++) {
    for (let part = 0; part < 2; part++) {
      for (let i = 0; i < half; i++) {
        const [to, from] = rows(head * 2 * half + part * half + i, head * 2 * half + 2 * i + part)
        result.set(data.subarray(from * length, (from + 1) * length), to * length)
      }
    }
  }
  return result
}
