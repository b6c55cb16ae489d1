// The kernel of a merge: a chunk of a weight += scale · left·right, in place, rounded once. This one is plain loops with sums in
// f64: the definition of correct, and what runs where WebAssembly is forbidden.

import { decodeFloats, encodeFloats, type FloatDtype } from '../../base/dtype.js'

/** A chunk: rows and columns of a weight, and the rows of the left factor that go with them. */
export interface KernelJob {
  dtype: FloatDtype
  rows: number
  /** The first column, a multiple of 8, of `columns`. */
  column: number
  columns: number
  /** (rows, r) */
  left: Float32Array
  scale: number
}

export interface KernelResult {
  /** Σ w² over the chunk's base values. */
  baseSquares: number
  /** Σ δ² over scale · left·right. */
  deltaSquares: number
  /** No result is infinite or NaN. */
  isFinite: boolean
}

export interface MergeKernel {
  readonly name: string
  /** Where a chunk's bytes go before `merge` and are found after it; at least CHUNK_BYTES. A view that `loadRight` and `merge` may replace. */
  readonly chunk: Uint8Array
  /** The right factor (r, columns) for the next chunks. */
  loadRight(right: Float32Array, rank: number, columns: number): void
  merge(job: KernelJob): KernelResult
}

/** @param byteLength size of the largest chunk */
export function referenceKernel(byteLength: number): MergeKernel {
  const chunk = new Uint8Array(byteLength)
  let right: Float32Array = new Float32Array()
  let rank = 0
  let width = 0
  return {
    name: 'reference',
    chunk,
    loadRight(values, r, columns) {
      right = values
      rank = r
      width = columns
    },
    merge({ dtype, rows, column, columns, left, scale }) {
      const size = dtype === 'F32' ? 4 : 2
      const block = decodeFloats(chunk.subarray(0, rows * columns * size), dtype) // (rows, columns)
      const delta = new Float64Array(columns)
      let baseSquares = 0
      let deltaSquares = 0
      for (let i = 0; i < rows; i++) {
        delta.fill(0)
        for (let p = 0; p < rank; p++) {
          const b = left[i * rank + p]
          const start = p * width + column
          for (let j = 0; j < columns; j++) delta[j] += b * right[start + j]
        }
        for (let j = 0, at = i * columns; j < columns; j++, at++) {
          const change = scale * delta[j]
          baseSquares += block[at] * block[at]
          deltaSquares += change * change
          block[at] += change
        }
      }
      const bytes = encodeFloats(block, dtype)
      chunk.set(bytes)
      return { baseSquares, deltaSquares, isFinite: firstNonFinite(bytes, dtype) === -1 }
    },
  }
}

/** Index of the first infinity or NaN among stored values from `start`, or −1. */
export function firstNonFinite(bytes: Uint8Array, dtype: FloatDtype, start = 0): number {
  const { buffer, byteOffset, byteLength } = bytes
  const isWide = dtype === 'F32'
  const words = isWide
    ? new Uint32Array(buffer, byteOffset, byteLength / 4)
    : new Uint16Array(buffer, byteOffset, byteLength / 2)
  const exponent = isWide ? 0x7f800000 : dtype === 'F16' ? 0x7c00 : 0x7f80
  for (let i = start; i < words.length; i++) if ((words[i] & exponent) === exponent) return i
  return -1
}
