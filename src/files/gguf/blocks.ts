// ggml's blocks: consecutive values that share a scale (ggml-common.h; the values are those of gguf-py's quants.py).
// Arithmetic is in f32, rounded after each operation as there, so that the bits are the same.

import {
  type BlockDtype,
  DTYPE_BITS,
  decodeWeights,
  encodeWeights,
  f16ToF32,
  f32ToF16,
  isBlockDtype,
  isWeightDtype,
  type TensorDtype,
  type WeightDtype,
} from '../../core/base/dtype.js'
import type { FloatArray } from '../../core/base/tensor.js'

const { fround, trunc } = Math

interface BlockForm {
  /** The number of values of a block. */
  readonly values: number
  readonly bytes: number
  decode(block: Uint8Array, half: (at: number) => number, result: Float32Array): void
  /** Absent for types that only llama.cpp's own tool writes. */
  encode?(values: Float32Array, block: Uint8Array, setHalf: (at: number, value: number) => void): void
}

const IQ4_NL_VALUES = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]

/** The types of 4 or 5 bits with 32 values: low nibbles are the first 16, and four bytes have the fifth bits. */
function nibbles(bits: 4 | 5, hasMinimum: boolean): BlockForm {
  const [levels, middle] = [2 ** bits - 1, 2 ** (bits - 1)]
  const fifths = hasMinimum ? 4 : 2
  const start = fifths + (bits === 5 ? 4 : 0)
  return {
    values: 32,
    bytes: start + 16,
    decode(block, half, result) {
      const [scale, minimum] = [half(0), hasMinimum ? half(2) : 0]
      for (let i = 0; i < 32; i++) {
        const byte = block[start + (i % 16)]
        const fifth = bits === 5 ? (block[fifths + (i >> 3)] >> (i & 7)) & 1 : 0
        const q = (i < 16 ? byte & 15 : byte >> 4) | (fifth << 4)
        result[i] = hasMinimum ? fround(scale * q) + minimum : scale * (q - middle)
      }
    },
    encode(values, block, setHalf) {
      let [largest, low, high] = [0, values[0], values[0]]
      for (const value of values) {
        if (Math.abs(value) > Math.abs(largest)) largest = value
        low = Math.min(low, value)
        high = Math.max(high, value)
      }
      const scale = fround(hasMinimum ? fround(high - low) / levels : largest / -middle)
      const inverse = scale === 0 ? 0 : fround(1 / scale)
      setHalf(0, scale)
      if (hasMinimum) setHalf(2, low)
      const half = hasMinimum ? 0.5 : middle + 0.5
      for (let i = 0; i < 32; i++) {
        const scaled = fround((hasMinimum ? fround(values[i] - low) : values[i]) * inverse)
        const q = Math.min(levels, trunc(fround(scaled + half)))
        block[start + (i % 16)] |= i < 16 ? q & 15 : (q & 15) << 4
        if (bits === 5) block[fifths + (i >> 3)] |= (q >> 4) << (i & 7)
      }
    },
  }
}

/** The K types of 4 or 5 bits: 256 values in groups of 32, each with a scale and a minimum of 6 bits. */
function superBlock(bits: 4 | 5): BlockForm {
  const [fifths, start] = [16, bits === 5 ? 48 : 16]
  return {
    values: 256,
    bytes: start + 128,
    decode(block, half, result) {
      const [scale, minimum] = [half(0), half(2)]
      for (let group = 0; group < 8; group++) {
        const [low, high] = [block[4 + (group % 4)], block[8 + (group % 4)]]
        const rest = block[12 + (group % 4)]
        const isFirst = group < 4
        const d = fround(scale * (isFirst ? low & 63 : (rest & 15) | ((low >> 6) << 4)))
        const m = fround(minimum * (isFirst ? high & 63 : (rest >> 4) | ((high >> 6) << 4)))
        for (let i = 0; i < 32; i++) {
          const byte = block[start + (group >> 1) * 32 + i]
          const fifth = bits === 5 ? (block[fifths + i] >> group) & 1 : 0
          const q = (group % 2 === 0 ? byte & 15 : byte >> 4) | (fifth << 4)
          result[group * 32 + i] = fround(d * q) - m
        }
      }
    },
  }
}

const FORMS = {
  q4_0: nibbles(4, false),
  q4_1: nibbles(4, true),
  q5_0: nibbles(5, false),
  q5_1: nibbles(5, true),
  q8_0: {
    values: 32,
    bytes: 34,
    decode(block, half, result) {
      const scale = half(0)
      for (let i = 0; i < 32; i++) result[i] = ((block[2 + i] << 24) >> 24) * scale
    },
    encode(values, block, setHalf) {
      const scale = fround(values.reduce((most, value) => Math.max(most, Math.abs(value)), 0) / 127)
      const inverse = scale === 0 ? 0 : fround(1 / scale)
      setHalf(0, scale)
      for (let i = 0; i < 32; i++) {
        const scaled = fround(values[i] * inverse)
        block[2 + i] = Math.sign(scaled) * Math.floor(Math.abs(scaled) + 0.5)
      }
    },
  },
  q4_k: superBlock(4),
  q5_k: superBlock(5),
  q6_k: {
    values: 256,
    bytes: 210,
    decode(block, half, result) {
      const scale = half(208)
      for (let i = 0; i < 256; i++) {
        const [part, quarter, at] = [i >> 7, (i >> 5) & 3, i & 31]
        const low = block[part * 64 + (quarter % 2) * 32 + at] >> (quarter < 2 ? 0 : 4)
        const high = (block[128 + part * 32 + at] >> (2 * quarter)) & 3
        const d = fround(scale * ((block[192 + (i >> 4)] << 24) >> 24))
        result[i] = d * (((low & 15) | (high << 4)) - 32)
      }
    },
  },
  iq4_nl: {
    values: 32,
    bytes: 18,
    decode(block, half, result) {
      const scale = half(0)
      for (let i = 0; i < 32; i++) {
        const byte = block[2 + (i % 16)]
        result[i] = scale * IQ4_NL_VALUES[i < 16 ? byte & 15 : byte >> 4]
      }
    },
  },
} satisfies Record<BlockDtype, BlockForm>

const formOf = (dtype: BlockDtype): BlockForm => FORMS[dtype]

/** The number of values of a block, 1 for floats. A row of a tensor has whole blocks. */
export function blockValues(dtype: StoredDtype): number {
  return isBlockDtype(dtype) ? formOf(dtype).values : 1
}

/** True if values can be written in this type. */
export function canEncode(dtype: StoredDtype): boolean {
  return !isBlockDtype(dtype) || formOf(dtype).encode !== undefined
}

/** A type in which weights are stored that can be read as floats. */
export type StoredDtype = WeightDtype | BlockDtype

export function isStoredDtype(dtype: TensorDtype): dtype is StoredDtype {
  return isWeightDtype(dtype) || isBlockDtype(dtype)
}

/** The bytes of a value. In a block it is a fraction, and whole blocks have whole bytes. */
export function storedSize(dtype: StoredDtype): number {
  return DTYPE_BITS[dtype] / 8
}

/** Decodes stored values to f32, or f64 if they are stored as that. */
export function decodeStored(bytes: Uint8Array, dtype: StoredDtype): FloatArray {
  if (!isBlockDtype(dtype)) return decodeWeights(bytes, dtype)
  const { values, bytes: size, decode } = formOf(dtype)
  const count = bytes.byteLength / size
  const result = new Float32Array(count * values)
  const [bits, decoded] = [new Uint16Array(1), new Float32Array(1)]
  let block = bytes
  const half = (at: number) => {
    bits[0] = block[at] | (block[at + 1] << 8)
    return f16ToF32(bits, decoded)[0]
  }
  for (let i = 0; i < count; i++) {
    block = bytes.subarray(i * size, (i + 1) * size)
    decode(block, half, result.subarray(i * values, (i + 1) * values))
  }
  return result
}

/** Encodes values as their stored type. Blocks take as many values as fill them whole; see {@link canEncode}. */
export function encodeStored(values: FloatArray, dtype: StoredDtype): Uint8Array {
  if (!isBlockDtype(dtype)) return encodeWeights(values, dtype)
  const form = formOf(dtype)
  const count = values.length / form.values
  const bytes = new Uint8Array(count * form.bytes)
  const singles = values instanceof Float32Array ? values : Float32Array.from(values)
  const value = new Float32Array(1)
  let block = bytes
  const setHalf = (at: number, number: number) => {
    value[0] = number
    const [bits] = f32ToF16(value)
    block[at] = bits & 255
    block[at + 1] = bits >> 8
  }
  for (let i = 0; i < count; i++) {
    block = bytes.subarray(i * form.bytes, (i + 1) * form.bytes)
    form.encode!(singles.subarray(i * form.values, (i + 1) * form.values), block, setHalf)
  }
  return bytes
}
