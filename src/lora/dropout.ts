// Inverted dropout (Srivastava et al. 2014) on the input of a LoRA branch, and its gradient.

import type { Random } from '../base/random.js'
import type { Matrix } from '../base/tensor.js'

/** In place: kept elements grow by 1/(1 − p), so that the mean stays. Returns 1 for those, 0 for the others. */
export function dropFrom({ data }: Pick<Matrix, 'data'>, dropout: number, random: Random): Uint8Array {
  const keep = new Uint8Array(data.length)
  for (let i = 0; i < keep.length; i++) {
    keep[i] = random.uniform() < dropout ? 0 : 1
    data[i] = keep[i] === 1 ? data[i] / (1 - dropout) : 0
  }
  return keep
}

/** input += branch, in place, through the dropout that kept `keep`; undefined: without dropout. */
export function addKept(
  input: Pick<Matrix, 'data'>,
  branch: Pick<Matrix, 'data'>,
  dropout: number,
  keep: Uint8Array | undefined,
): void {
  const factor = keep === undefined ? 1 : 1 / (1 - dropout)
  for (let i = 0; i < input.data.length; i++) {
    if (keep === undefined || keep[i] === 1) input.data[i] += branch.data[i] * factor
  }
}
