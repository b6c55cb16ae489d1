// Element types of GGUF tensors (ggml.h, enum ggml_type): their sizes, and the four that adapters are written in.

import { decodeFloats, encodeFloats, type FloatDtype, f16ToF32, f32ToF16 } from '../../base/dtype.js'

export type GgufFloat = FloatDtype | 'q8_0'

/** A type whose blocks have a fixed number of elements and of bytes. */
export interface GgufType {
  /** The type's name in ggml. */
  readonly name: string
  readonly blockSize: number
  readonly blockBytes: number
}

const type = (name: string, blockSize: number, blockBytes: number): GgufType => ({ name, blockSize, blockBytes })

export const GGUF_TYPES: ReadonlyMap<number, GgufType> = new Map([
  [0, type('F32', 1, 4)],
  [1, type('F16', 1, 2)],
  [2, type('Q4_0', 32, 18)],
  [3, type('Q4_1', 32, 20)],
  [6, type('Q5_0', 32, 22)],
  [7, type('Q5_1', 32, 24)],
  [8, type('Q8_0', 32, 34)],
  [9, type('Q8_1', 32, 36)],
  [10, type('Q2_K', 256, 84)],
  [11, type('Q3_K', 256, 110)],
  [12, type('Q4_K', 256, 144)],
  [13, type('Q5_K', 256, 176)],
  [14, type('Q6_K', 256, 210)],
  [15, type('Q8_K', 256, 292)],
  [16, type('IQ2_XXS', 256, 66)],
  [17, type('IQ2_XS', 256, 74)],
  [18, type('IQ3_XXS', 256, 98)],
  [19, type('IQ1_S', 256, 50)],
  [20, type('IQ4_NL', 32, 18)],
  [21, type('IQ3_S', 256, 110)],
  [22, type('IQ2_S', 256, 82)],
  [23, type('IQ4_XS', 256, 136)],
  [24, type('I8', 1, 1)],
  [25, type('I16', 1, 2)],
  [26, type('I32', 1, 4)],
  [27, type('I64', 1, 8)],
  [28, type('F64', 1, 8)],
  [29, type('IQ1_M', 256, 56)],
  [30, type('BF16', 1, 2)],
  [34, type('TQ1_0', 256, 54)],
  [35, type('TQ2_0', 256, 66)],
  [39, type('MXFP4', 32, 17)],
])

export const NUMBERS: Readonly<Record<GgufFloat, number>> = { fp32: 0, fp16: 1, q8_0: 8, bf16: 30 }

export function floatOf({ name }: GgufType): GgufFloat | undefined {
  return (Object.keys(NUMBERS) as GgufFloat[]).find((dtype) => GGUF_TYPES.get(NUMBERS[dtype])!.name === name)
}

const BLOCK = 32
const BLOCK_BYTES = 34

/** Little-endian bytes → numbers, a new array. */
export function decodeGguf(bytes: Uint8Array, dtype: GgufFloat): Float32Array {
  if (dtype !== 'q8_0') return decodeFloats(bytes, dtype)
  const blocks = bytes.byteLength / BLOCK_BYTES
  const values = new Float32Array(blocks * BLOCK)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const scales = f16ToF32(Uint16Array.from({ length: blocks }, (_, b) => view.getUint16(b * BLOCK_BYTES, true)))
  for (let b = 0; b < blocks; b++) {
    for (let i = 0; i < BLOCK; i++) values[b * BLOCK + i] = scales[b] * view.getInt8(b * BLOCK_BYTES + 2 + i)
  }
  return values
}

/**
 * Q8_0 as ggml's reference code writes it: 32 values share the scale max|x|/127 in f16, and halves round away from 0.
 */
export function encodeGguf(values: Float32Array, dtype: GgufFloat): Uint8Array {
  if (dtype !== 'q8_0') return encodeFloats(values, dtype)
  const blocks = values.length / BLOCK
  const bytes = new Uint8Array(blocks * BLOCK_BYTES)
  const view = new DataView(bytes.buffer)
  const scales = new Float32Array(blocks)
  for (let b = 0; b < blocks; b++) {
    let largest = 0
    for (let i = 0; i < BLOCK; i++) largest = Math.max(largest, Math.abs(values[b * BLOCK + i]))
    scales[b] = largest / 127
    const inverse = scales[b] === 0 ? 0 : Math.fround(1 / scales[b])
    for (let i = 0; i < BLOCK; i++) {
      const scaled = Math.fround(values[b * BLOCK + i] * inverse)
      view.setInt8(b * BLOCK_BYTES + 2 + i, Math.sign(scaled) * Math.floor(Math.abs(scaled) + 0.5))
    }
  }
  for (const [b, bits] of f32ToF16(scales).entries()) view.setUint16(b * BLOCK_BYTES, bits, true)
  return bytes
}
