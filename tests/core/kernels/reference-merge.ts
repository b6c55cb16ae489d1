// The merge in plain loops, which define the correct result bit for bit.

import { decodeWeights, encodeWeights, sizeOf, type WeightDtype } from '../../../src/core/base/dtype.js'
import type { FloatArray } from '../../../src/core/base/tensor.js'
import type { MergeJob, MergeKernel, MergeResult } from '../../../src/core/kernels/merge-kernel.js'

const QUIET_NAN = 0x7fc00000

/** What a merge asks of its kernel. */
export type Kernel = Pick<MergeKernel, keyof MergeKernel>

export function referenceMergeKernel(byteLength: number): Kernel {
  const chunk = new Uint8Array(byteLength)
  let right: FloatArray = new Float32Array()
  let width = 0
  return {
    chunk,
    begin(rank, columns, precision) {
      right = precision === 'fp64' ? new Float64Array(rank * columns) : new Float32Array(rank * columns)
      width = columns
    },
    putRight({ values, row, column, rows, columns, isTransposed }) {
      for (let p = 0; p < rows; p++) {
        for (let j = 0; j < columns; j++) {
          right[(row + p) * width + column + j] = values[isTransposed ? j * rows + p : p * columns + j]
        }
      }
    },
    merge(job) {
      const bytes = chunk.subarray(0, job.rows * job.columns * sizeOf(job.dtype))
      const base = decodeWeights(bytes, job.dtype) // (rows, columns)
      const delta = deltaOf(job, right, width)
      if (delta === undefined) return { baseSquares: 0, deltaSquares: 0, overflows: 0, firstOverflow: -1 }
      const merged = base.map((w, i) => w + delta[i])
      bytes.set(encode(merged, job.dtype))
      return compare(base, delta, decodeWeights(bytes, job.dtype))
    },
  }
}

/** Σ scale · left·right (rows, columns), rounded after every operation; undefined if there is nothing to add. */
function deltaOf({ dtype, rows, column, columns, left, terms }: MergeJob, right: FloatArray, width: number) {
  const rank = terms.reduce((sum, term) => sum + term.rank, 0)
  if (rank === 0) return undefined
  const isDouble = dtype === 'fp64'
  const delta = isDouble ? new Float64Array(rows * columns) : new Float32Array(rows * columns)
  const product = isDouble ? new Float64Array(columns) : new Float32Array(columns)
  const round = isDouble ? (x: number) => x : Math.fround
  for (let i = 0; i < rows; i++) {
    let p = 0
    for (const term of terms.filter((each) => each.rank > 0)) {
      const isFirst = p === 0
      product.fill(0)
      for (const end = p + term.rank; p < end; p++) {
        const b = left[i * rank + p]
        const start = p * width + column
        // The product is rounded before it is added, as a multiplication that is not fused would do.
        for (let j = 0; j < columns; j++) product[j] += round(b * right[start + j])
      }
      const scale = round(term.scale)
      for (let j = 0, at = i * columns; j < columns; j++, at++) {
        const change = round(scale * product[j])
        delta[at] = isFirst ? change : delta[at] + change
      }
    }
  }
  return delta
}

function compare(base: FloatArray, delta: FloatArray, merged: FloatArray): MergeResult {
  const result = { baseSquares: 0, deltaSquares: 0, overflows: 0, firstOverflow: -1 }
  for (let i = 0; i < base.length; i++) {
    if (!Number.isFinite(base[i])) continue
    result.baseSquares += base[i] * base[i]
    result.deltaSquares += delta[i] * delta[i]
    if (Number.isFinite(merged[i])) continue
    if (result.overflows++ === 0) result.firstOverflow = i
  }
  return result
}

/** Encodes values for storage. Every NaN becomes the quiet NaN without a sign, so that all hosts give equal bytes. */
function encode(values: FloatArray, dtype: WeightDtype): Uint8Array {
  if (values instanceof Float64Array)
    return new Uint8Array(values.map((x) => (Number.isNaN(x) ? Number.NaN : x)).buffer)
  const bits = new Uint32Array(values.buffer)
  for (let i = 0; i < values.length; i++) if (Number.isNaN(values[i])) bits[i] = QUIET_NAN
  return encodeWeights(values, dtype)
}
