// Converts stored types in vectors: eight elements (f64: four) are widened, and rounded back once, to nearest even. The
// numbers of the kinds are those of `KINDS` in src/core/kernels/merge-kernel.ts.

export const BF16: i32 = 0
export const F16: i32 = 1
export const F32: i32 = 2
export const F64: i32 = 3

/** 2¹¹²: the difference of the exponent biases of f32 and f16. */
export const REBIAS: f32 = 5192296858534827628530496329220096.0

export const SIGN: i32 = 0x80000000

/** The smallest magnitude that rounds to infinity. */
// @ts-ignore: decorator
@inline
export function limitOf(kind: i32): f32 {
  if (kind == BF16) return reinterpret<f32>(0x7f7f8000)
  if (kind == F16) return 65520
  return f32.POSITIVE_INFINITY
}

/** V8 from version 13 on builds a constant vector again at each use. Adding `zero`, 0 at run time, prevents this. */
// @ts-ignore: decorator
@inline
export function vectorOf(value: i32, zero: i32): v128 {
  return i32x4.splat(value + zero)
}

/** Widens the four low or high bf16 of a vector to f32. `zeros` is a vector of zeros. */
// @ts-ignore: decorator
@inline
export function widenBf16(raw: v128, high: bool, zeros: v128): v128 {
  if (high) return i16x8.shuffle(zeros, raw, 4, 12, 5, 13, 6, 14, 7, 15)
  return i16x8.shuffle(zeros, raw, 0, 8, 1, 9, 2, 10, 3, 11)
}

/** Rounds to bf16, in the low halves of four i32. Not for NaN. `ones` and `half` are vectors of 1 and 0x7fff. */
// @ts-ignore: decorator
@inline
export function narrowBf16(value: v128, ones: v128, half: v128): v128 {
  const odd = v128.and(i32x4.shr_u(value, 16), ones)
  return i32x4.shr_u(i32x4.add(i32x4.add(value, half), odd), 16)
}

/**
 * Widens the four low or high f16 of a vector to f32. Infinity and NaN become 65536 or more. Multiplying by 2¹¹² is
 * exact, also for subnormals. `sign` and `rebias` are vectors of the sign bit and of 2¹¹².
 */
// @ts-ignore: decorator
@inline
export function widenF16(raw: v128, high: bool, sign: v128, rebias: v128): v128 {
  const h = high ? i32x4.extend_high_i16x8_s(raw) : i32x4.extend_low_i16x8_s(raw)
  const magnitude = i32x4.shr_u(i32x4.shl(h, 17), 4)
  return v128.or(f32x4.mul(magnitude, rebias), v128.and(h, sign))
}

/** The number that narrowF16 adds: it corrects the exponent, and adds half a step minus 1 for rounding. */
export const F16_BIAS: i32 = 0xfff - (112 << 23)
/** ½ as f32: between ½ and 1, f32 has the same steps as subnormal f16, so adding ½ rounds to them. */
export const F16_HALF: i32 = 0x3f000000
/** The smallest normal f16 as f32. */
export const F16_NORMAL: i32 = 113 << 23

/** Rounds to f16, in the low halves of four i32. Not for magnitudes from 65520 on, and not for NaN. */
// @ts-ignore: decorator
@inline
export function narrowF16(value: v128, sign: v128, ones: v128, bias: v128, half: v128, normal: v128): v128 {
  const magnitude = v128.andnot(value, sign)
  const odd = v128.and(i32x4.shr_u(magnitude, 13), ones)
  const large = i32x4.shr_u(i32x4.add(i32x4.add(magnitude, bias), odd), 13)
  const small = i32x4.sub(f32x4.add(magnitude, half), half)
  const isSmall = i32x4.lt_s(magnitude, normal)
  return v128.or(v128.bitselect(small, large, isSmall), i32x4.shr_u(v128.and(value, sign), 16))
}

/** Reads a stored element as f64, which can hold the values of all kinds. */
export function widen(kind: i32, at: usize): f64 {
  if (kind == F64) return load<f64>(at)
  if (kind == F32) return <f64>load<f32>(at)
  const bits = <i32>load<u16>(at)
  if (kind == BF16) return <f64>reinterpret<f32>(bits << 16)
  const magnitude = bits & 0x7fff
  const value =
    magnitude >= 0x7c00
      ? reinterpret<f32>(0x7f800000 | ((magnitude & 0x3ff) << 13))
      : reinterpret<f32>(magnitude << 13) * REBIAS
  return <f64>((bits & 0x8000) != 0 ? -value : value)
}

/** Rounds a value once and stores it. NaN becomes the quiet NaN without sign. Returns whether the value is finite. */
export function narrow(kind: i32, at: usize, value: f64): bool {
  if (kind == F64) {
    store<f64>(at, value != value ? NaN : value)
    return isFinite(value)
  }
  const single = <f32>value
  const bits = reinterpret<i32>(single)
  const isNaN = single != single
  if (kind == F32) {
    store<i32>(at, isNaN ? 0x7fc00000 : bits)
    return isFinite(single)
  }
  const isLarge = !(abs(single) < limitOf(kind))
  const vector = f32x4.splat(single)
  const ones = i32x4.splat(1)
  if (kind == BF16) {
    const rounded = i32x4.extract_lane(narrowBf16(vector, ones, i32x4.splat(0x7fff)), 0)
    store<u16>(at, <u16>(isNaN ? 0x7fc0 : isLarge ? ((bits >>> 16) & 0x8000) | 0x7f80 : rounded))
  } else {
    const sign = i32x4.splat(SIGN)
    const half = i32x4.splat(F16_HALF)
    const result = narrowF16(vector, sign, ones, i32x4.splat(F16_BIAS), half, i32x4.splat(F16_NORMAL))
    const rounded = i32x4.extract_lane(result, 0)
    store<u16>(at, <u16>(isNaN ? 0x7e00 : isLarge ? ((bits >>> 16) & 0x8000) | 0x7c00 : rounded))
  }
  return !isLarge
}
