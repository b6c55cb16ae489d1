// Storage types as vectors: how eight (f64: four) elements are widened, and rounded back once, to nearest even. The kinds are
// numbered as `KINDS` in src/kernels/wasm-merge.ts has them.

export const BF16: i32 = 0
export const F16: i32 = 1
export const F32: i32 = 2
export const F64: i32 = 3

/** 2¹¹²: the difference of the exponent biases of f32 and f16. */
const REBIAS: f32 = 5192296858534827628530496329220096.0

/** The smallest magnitude that rounds to infinity. */
// @ts-ignore: decorator
@inline
export function limitOf(kind: i32): f32 {
  if (kind == BF16) return reinterpret<f32>(0x7f7f8000)
  if (kind == F16) return 65520
  return f32.POSITIVE_INFINITY
}

/** The four low or high bf16 of a vector, as f32. */
// @ts-ignore: decorator
@inline
export function widenBf16(raw: v128, high: bool): v128 {
  const zero = i32x4.splat(0)
  if (high) return i16x8.shuffle(zero, raw, 4, 12, 5, 13, 6, 14, 7, 15)
  return i16x8.shuffle(zero, raw, 0, 8, 1, 9, 2, 10, 3, 11)
}

/** Rounded bf16 in the low halves of four i32; not for NaN. */
// @ts-ignore: decorator
@inline
export function narrowBf16(value: v128): v128 {
  const odd = v128.and(i32x4.shr_u(value, 16), i32x4.splat(1))
  return i32x4.shr_u(i32x4.add(i32x4.add(value, i32x4.splat(0x7fff)), odd), 16)
}

/**
 * The four low or high f16 of a vector, as f32; infinity and NaN come out as 65536 and more. Multiplying by 2¹¹² is exact and
 * covers subnormals too.
 */
// @ts-ignore: decorator
@inline
export function widenF16(raw: v128, high: bool): v128 {
  const h = high ? i32x4.extend_high_i16x8_s(raw) : i32x4.extend_low_i16x8_s(raw)
  const magnitude = i32x4.shl(v128.and(h, i32x4.splat(0x7fff)), 13)
  const value = f32x4.mul(magnitude, f32x4.splat(REBIAS))
  return v128.or(value, v128.and(h, i32x4.splat(0x80000000)))
}

/** Rounded f16 in the low halves of four i32; not from 65520 on, and not for NaN. */
// @ts-ignore: decorator
@inline
export function narrowF16(value: v128): v128 {
  const sign = v128.and(value, i32x4.splat(0x80000000))
  const magnitude = v128.xor(value, sign)
  const odd = v128.and(i32x4.shr_u(magnitude, 13), i32x4.splat(1))
  const normal = i32x4.shr_u(i32x4.add(i32x4.add(magnitude, i32x4.splat(0xfff - (112 << 23))), odd), 13)
  // The steps of f32 from ½ to 1 are those of subnormal f16: the addition rounds.
  const small = i32x4.sub(f32x4.add(magnitude, f32x4.splat(0.5)), i32x4.splat(0x3f000000))
  const isSmall = i32x4.lt_s(magnitude, i32x4.splat(113 << 23))
  return v128.or(v128.bitselect(small, normal, isSmall), i32x4.shr_u(sign, 16))
}

/** One stored element as f64, which holds every kind. */
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

/** Stores one element, rounded once; NaN as the quiet NaN without a sign. Returns whether the stored value is finite. */
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
  if (kind == BF16) {
    const rounded = isLarge ? ((bits >>> 16) & 0x8000) | 0x7f80 : i32x4.extract_lane(narrowBf16(f32x4.splat(single)), 0)
    store<u16>(at, <u16>(isNaN ? 0x7fc0 : rounded))
  } else {
    const rounded = isLarge ? ((bits >>> 16) & 0x8000) | 0x7c00 : i32x4.extract_lane(narrowF16(f32x4.splat(single)), 0)
    store<u16>(at, <u16>(isNaN ? 0x7e00 : rounded))
  }
  return !isLarge
}
