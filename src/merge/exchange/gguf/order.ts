// The order of the rows of q and k in GGUF files.

import { ShapeError } from '../../../core/base/errors.js'
import type { FloatArray } from '../../../core/base/tensor.js'

/**
 * Reorders the rows of q and k in a new array. transformers rotates pairs (i, i + hd/2) of a head, while Llama's own
 * code and llama.cpp rotate (2i, 2i + 1), so GGUF files have the rows in another order (LlamaModel.permute in
 * llama.cpp's conversion/llama.py): row 2i + h of a head there is row h·hd/2 + i here. Only B has these rows. `data`
 * has the `d` rows of B, as values or as bytes.
 */
export function toGgufOrder<T extends FloatArray | Uint8Array>(data: T, d: number, heads: number, where: string): T {
  const [half, length] = [d / heads / 2, data.length / d]
  if (!Number.isInteger(half)) {
    throw new ShapeError({ where, what: `rows that are not ${heads} heads of an even size`, got: `${d} rows` })
  }
  const result = data.slice() as T
  for (let head = 0; head < heads; head++) {
    for (let part = 0; part < 2; part++) {
      for (let i = 0; i < half; i++) {
        const from = head * 2 * half + part * half + i
        result.set(data.subarray(from * length, (from + 1) * length), (head * 2 * half + 2 * i + part) * length)
      }
    }
  }
  return result
}
