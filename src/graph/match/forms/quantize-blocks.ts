// Quantizes rows in blocks as ONNX Runtime's quantizer does (onnxruntime/core/mlas/lib/q4_dq.cpp, round to nearest).

import type { BlockLayout } from './matmul-nbits.js'

/** Integers row by row, a scale and perhaps a zero point for each block. */
export interface QuantizedRows {
  readonly packed: Uint8Array
  readonly scales: Float32Array
  /** Packed row by row; undefined: the middle of the range. */
  readonly zeroPoints: Uint8Array | undefined
}

/** `values` are (rows, k); `roundScale` rounds to the type in which scales are stored. */
export function quantizeRows(
  values: Float32Array,
  { bits, blockSize, blocks, k }: BlockLayout,
  hasZeroPoints: boolean,
  roundScale: (scale: number) => number,
): QuantizedRows & { readonly stored: Float32Array } {
  const rows = values.length / k
  const [largest, middle] = [(1 << bits) - 1, 1 << (bits - 1)]
  const width = blocks * blockSize
  const packed = new Uint8Array((rows * width * bits) / 8)
  const scales = new Float32Array(rows * blocks)
  const zeroBytes = Math.ceil((blocks * bits) / 8)
  const zeroPoints = hasZeroPoints ? new Uint8Array(rows * zeroBytes) : undefined
  const floats = new Float32Array(values.length)
  const put = (bytes: Uint8Array, at: number, value: number) => {
    if (bits === 8) bytes[at] = value
    else bytes[at >> 1] |= at % 2 === 0 ? value : value << 4
  }
  for (let row = 0; row < rows; row++) {
    for (let block = 0; block < blocks; block++) {
      const from = row * k + block * blockSize
      const to = row * k + Math.min(k, (block + 1) * blockSize)
      const { scale, zero } = hasZeroPoints
        ? asymmetric(values, from, to, largest)
        : symmetric(values, from, to, middle)
      const stored = roundScale(scale)
      scales[row * blocks + block] = stored
      if (zeroPoints !== undefined) put(zeroPoints.subarray(row * zeroBytes), block, zero)
      const inverse = stored === 0 ? 0 : Math.fround(1 / stored)
      for (let i = from; i < to; i++) {
        const integer = roundAway(Math.fround(Math.fround(values[i] * inverse) + zero))
        const clamped = Math.min(largest, Math.max(0, integer))
        put(packed, row * width + block * blockSize + (i - from), clamped)
        floats[i] = stored * (clamped - zero)
      }
    }
    // Unused halves have the bits that ONNX Runtime's quantizer writes there.
    if (zeroPoints !== undefined && bits === 4 && blocks % 2 === 1)
      put(zeroPoints.subarray(row * zeroBytes), blocks, middle)
  }
  return { packed, scales, zeroPoints, stored: floats }
}

function symmetric(values: Float32Array, from: number, to: number, middle: number): { scale: number; zero: number } {
  let extreme = 0
  for (let i = from; i < to; i++) if (Math.abs(values[i]) > Math.abs(extreme)) extreme = values[i]
  return { scale: Math.fround(extreme / -middle), zero: middle }
}

function asymmetric(values: Float32Array, from: number, to: number, largest: number): { scale: number; zero: number } {
  let [low, high] = [0, 0]
  for (let i = from; i < to; i++) {
    low = Math.min(low, values[i])
    high = Math.max(high, values[i])
  }
  const scale = Math.fround(Math.fround(high - low) / largest)
  const zero = scale === 0 ? 0 : Math.min(largest, Math.max(0, roundAway(Math.fround(-low / scale))))
  return { scale, zero }
}

/** C's roundf: halves go away from 0. */
function roundAway(value: number): number {
  return value < 0 ? -Math.round(-value) : Math.round(value)
}
