// Converts half precision, IEEE 754 binary16 (fp16) and bfloat16 (bf16), to and from fp32. Narrowing rounds once, to
// nearest even, and NaN stays NaN. The code assumes a little-endian host, as all current JavaScript engines have.

import { ShapeError, UnsupportedError } from './errors.js'
import { type FloatArray, isAllFinite } from './tensor.js'

/** The float types of adapter files. */
export type FloatDtype = 'fp32' | 'fp16' | 'bf16'

/** The float types of weights. Some checkpoints contain fp64. */
export type WeightDtype = FloatDtype | 'fp64'

/**
 * The bits of each element type of stored tensors. The order is that of safetensors' reference implementation, whose
 * writer sorts tensors by it, from the end. Types that lowrank does not compute with have the spelling of safetensors.
 */
export const DTYPE_BITS = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  I16: 16,
  U16: 16,
  fp16: 16,
  bf16: 16,
  I32: 32,
  U32: 32,
  fp32: 32,
  C64: 64,
  fp64: 64,
  I64: 64,
  U64: 64,
  // The types of GGUF files whose values share scales: the bits of a value, with its part of the scale.
  q4_0: 4.5,
  q4_1: 5,
  q5_0: 5.5,
  q5_1: 6,
  q8_0: 8.5,
  q4_k: 4.5,
  q5_k: 5.5,
  q6_k: 6.5625,
  iq4_nl: 4.5,
} as const

/** The element type of a stored tensor. */
export type TensorDtype = keyof typeof DTYPE_BITS

/** A type of GGUF files whose values share scales. */
export type BlockDtype = Extract<TensorDtype, `q${string}` | `iq${string}`>

export function isBlockDtype(dtype: TensorDtype): dtype is BlockDtype {
  return /^i?q\d/.test(dtype)
}

export function isFloatDtype(dtype: TensorDtype): dtype is FloatDtype {
  return dtype === 'fp32' || dtype === 'fp16' || dtype === 'bf16'
}

export function isWeightDtype(dtype: TensorDtype): dtype is WeightDtype {
  return dtype === 'fp64' || isFloatDtype(dtype)
}

/** Returns the type if lowrank can compute with it. Otherwise throws UnsupportedError, with `what` as the problem. */
export function requireWeightDtype(dtype: TensorDtype, where: string, what: string, hint?: string): WeightDtype {
  if (isWeightDtype(dtype)) return dtype
  throw new UnsupportedError({ where, what, expected: 'fp64, fp32, fp16 or bf16', got: dtype, hint })
}

/** Returns the number of bytes of an element. */
export function sizeOf(dtype: WeightDtype): number {
  return DTYPE_BITS[dtype] / 8
}

const F32_INFINITY = 0x7f800000
const F16_INFINITY = 0x7c00
/** The difference of the exponent biases of f32 and f16, 127 − 15, in the exponent field of f32. */
const F16_REBIAS = 112 << 23
/** 2⁻¹⁴ as f32 bits: the smallest normal f16. */
const F16_MIN_NORMAL = 113 << 23
/** 2¹⁶ as f32 bits: from here on, f16 is infinite. Numbers from 65520 on get there by rounding. */
const F16_OVERFLOW = 143 << 23
/** Adding and subtracting 1.5 · 2⁵² rounds a small double to an integer, ties to even. */
const ROUND_TO_INTEGER = 1.5 * 2 ** 52

/** Converts bf16 bits to f32, exactly, into `result`, which has the same length. */
export function bf16ToF32(input: Uint16Array, result: Float32Array = new Float32Array(input.length)): Float32Array {
  const bits = bitsOf(result)
  for (let i = 0; i < input.length; i++) bits[i] = input[i] << 16
  return result
}

/** Converts f32 to bf16 bits, rounded to nearest even. */
export function f32ToBf16(input: Float32Array): Uint16Array {
  const bits = bitsOf(input)
  const result = new Uint16Array(input.length)
  for (let i = 0; i < input.length; i++) {
    const u = bits[i]
    // Rounding could carry a NaN's mantissa into the sign, so make it a quiet NaN instead.
    result[i] = (u & 0x7fffffff) > F32_INFINITY ? (u >>> 16) | 0x40 : (u + 0x7fff + ((u >>> 16) & 1)) >>> 16
  }
  return result
}

/** Converts f16 bits to f32, exactly, into `result`, which has the same length. */
export function f16ToF32(input: Uint16Array, result: Float32Array = new Float32Array(input.length)): Float32Array {
  const bits = bitsOf(result)
  for (let i = 0; i < input.length; i++) {
    const sign = (input[i] & 0x8000) << 16
    const magnitude = input[i] & 0x7fff
    if (magnitude >= F16_INFINITY) bits[i] = sign | F32_INFINITY | ((magnitude & 0x3ff) << 13)
    else if (magnitude >= 0x400) bits[i] = sign | ((magnitude << 13) + F16_REBIAS)
    else result[i] = (sign === 0 ? magnitude : -magnitude) * 2 ** -24
  }
  return result
}

/** Converts f32 to f16 bits, rounded to nearest even. 65520 and above become infinite. */
export function f32ToF16(input: Float32Array): Uint16Array {
  const bits = bitsOf(input)
  const result = new Uint16Array(input.length)
  for (let i = 0; i < input.length; i++) {
    const sign = (bits[i] >>> 16) & 0x8000
    const magnitude = bits[i] & 0x7fffffff
    if (magnitude > F32_INFINITY) result[i] = sign | 0x7e00
    else if (magnitude >= F16_OVERFLOW) result[i] = sign | F16_INFINITY
    else if (magnitude >= F16_MIN_NORMAL) {
      result[i] = sign | ((magnitude - F16_REBIAS + 0xfff + ((magnitude >>> 13) & 1)) >>> 13)
    } else {
      result[i] = sign | (Math.abs(input[i]) * 2 ** 24 + ROUND_TO_INTEGER - ROUND_TO_INTEGER)
    }
  }
  return result
}

/**
 * Decodes floats to f32, into the start of `memory` if it is given. Throws ShapeError if the length is not a multiple
 * of the type's size.
 */
export function decodeFloats(bytes: Uint8Array, dtype: FloatDtype, memory?: Float32Array): Float32Array {
  const { buffer, offset, count } = elementsOf(bytes, dtype)
  const result = memory?.subarray(0, count) ?? new Float32Array(count)
  if (dtype === 'fp32') result.set(new Float32Array(buffer, offset, count))
  else if (dtype === 'fp16') f16ToF32(new Uint16Array(buffer, offset, count), result)
  else bf16ToF32(new Uint16Array(buffer, offset, count), result)
  return result
}

/** Returns where a typed array can read the elements: in place, or in a copy if the bytes are not aligned. */
function elementsOf(bytes: Uint8Array, dtype: WeightDtype) {
  const size = sizeOf(dtype)
  const count = bytes.byteLength / size
  if (!Number.isInteger(count)) {
    throw new ShapeError({
      where: dtype,
      what: 'not a whole number of elements',
      expected: `a multiple of ${size} bytes`,
      got: `${bytes.byteLength}`,
    })
  }
  if (bytes.byteOffset % size === 0) return { buffer: bytes.buffer, offset: bytes.byteOffset, count }
  return { buffer: Uint8Array.from(bytes).buffer, offset: 0, count }
}

/** Encodes fp32 as little-endian bytes of a float type. For fp32, this is a view of the same memory. */
export function encodeFloats(values: Float32Array, dtype: FloatDtype): Uint8Array {
  if (dtype === 'fp32') return new Uint8Array(values.buffer, values.byteOffset, values.byteLength)
  return new Uint8Array((dtype === 'fp16' ? f32ToF16(values) : f32ToBf16(values)).buffer)
}

/** Does the same as {@link decodeFloats}, except that fp64 stays fp64. */
export function decodeWeights(bytes: Uint8Array, dtype: WeightDtype): FloatArray {
  if (dtype !== 'fp64') return decodeFloats(bytes, dtype)
  const { buffer, offset, count } = elementsOf(bytes, dtype)
  return new Float64Array(buffer, offset, count).slice()
}

const EXPONENTS = { fp16: 0x7c00, bf16: 0x7f80 } as const

/** Says whether stored values contain neither NaN nor infinity. True for types that have neither. */
export function isFiniteStored(bytes: Uint8Array, dtype: TensorDtype): boolean {
  if (!isWeightDtype(dtype)) return true
  const { buffer, offset, count } = elementsOf(bytes, dtype)
  if (dtype === 'fp32') return isAllFinite(new Float32Array(buffer, offset, count))
  if (dtype === 'fp64') return isAllFinite(new Float64Array(buffer, offset, count))
  const [bits, exponent] = [new Uint16Array(buffer, offset, count), EXPONENTS[dtype]]
  for (let i = 0; i < count; i++) if ((bits[i] & exponent) === exponent) return false
  return true
}

/** Encodes values as little-endian bytes of a float type, rounded once. A view of the same memory if the type stays. */
export function encodeWeights(values: FloatArray, dtype: WeightDtype): Uint8Array {
  if (values instanceof Float32Array) {
    return dtype === 'fp64' ? new Uint8Array(Float64Array.from(values).buffer) : encodeFloats(values, dtype)
  }
  if (dtype === 'fp64') return new Uint8Array(values.buffer, values.byteOffset, values.byteLength)
  return encodeFloats(dtype === 'fp32' ? Float32Array.from(values) : roundToOdd(values), dtype)
}

/**
 * Converts f64 to f32 towards zero, and sets the last bit to 1 if anything was dropped. If the result is then rounded
 * to a half type, it is as if the f64 had been rounded once. Rounding to nearest twice can end on the wrong side of a
 * tie (Boldo and Melquiond 2008).
 */
function roundToOdd(values: Float64Array): Float32Array {
  const result = Float32Array.from(values)
  const bits = bitsOf(result)
  for (let i = 0; i < values.length; i++) {
    const dropped = values[i] - result[i]
    // NaN and infinity give NaN here. A number that overflowed gives infinity, and becomes the largest finite number.
    if (dropped === 0 || Number.isNaN(dropped)) continue
    if (Math.abs(result[i]) > Math.abs(values[i])) bits[i]--
    bits[i] |= 1
  }
  return result
}

function bitsOf(values: Float32Array): Uint32Array {
  return new Uint32Array(values.buffer, values.byteOffset, values.length)
}
