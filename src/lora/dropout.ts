// Applies inverted dropout (Srivastava et al. 2014) to the input of a LoRA branch, and to its gradient.

import type { Random } from '../core/base/random.js'
import type { Matrix } from '../core/base/tensor.js'

/**
 * Drops elements in place and scales the others by 1/(1 − p). Returns a mask, which is 1 for each element that stays.
 */
export function dropFrom({ data }: Pick<Matrix, 'data'>, dropout: number, random: Random): Uint8Array {
  const keep = new Uint8Array(data.length)
  for (let i = 0; i < keep.length; i++) {
    keep[i] = random.uniform() < dropout ? 0 : 1
    data[i] = keep[i] === 1 ? data[i] / (1 - dropout) : 0
  }
  return keep
}

/** Adds the branch's gradient to `input` in place, for the elements that `keep` marks. */
export function addKept(
  input: Pick<Matrix, 'data'>,
  branch: Pick<Matrix, 'data'>,
  dropout: number,
  keep: Uint8Array,
): void {
  const factor = 1 / (1 - dropout)
  for (let i = 0; i < input.data.length; i++) if (keep[i] === 1) input.data[i] += branch.data[i] * factor
}
