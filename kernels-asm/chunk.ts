// Merging: a block of a stored weight += scale · left·right, in place, rounded once to nearest even. Products of tiles go to a
// small scratch and are added from there: fused into the micro-kernel, they would push its sums out of the registers.

import { pack } from './pack'
import { ROWS, tile } from './tile'

/** Stored types, as src/merge/checkpoint/wasm-kernel.ts numbers them. */
const F32: i32 = 0
const F16: i32 = 1

/** Columns whose products wait in the scratch at a time: with ROWS rows they stay in the first-level cache. */
const SPAN: i32 = 256
/** Bytes between rows of the scratch; off a power of two, so that rows do not compete for the same cache lines. */
const STRIDE: usize = 4 * 256 + 64
/** Where the last columns of a row are completed to eight. */
const TAIL: usize = STRIDE * 6
/** Bytes of right factor that are used for all rows before the next columns: they stay in the second-level cache. */
const RIGHT_BYTES: i32 = 512 << 10

/** Σ w² and Σ δ² of the rows at hand, and the largest magnitude of a stored result, as unsigned integers. */
let baseSquares: v128 = i64x2.splat(0)
let deltaSquares: v128 = i64x2.splat(0)
let largest: v128 = i64x2.splat(0)

/** Bytes that `merge` needs at `scratch`, a multiple of 16 bytes. */
export function scratchBytes(): i32 {
  return <i32>TAIL + 32
}

/** Bytes of `rows` packed rows of the left factor. */
export function leftBytes(rows: i32, rank: i32): i32 {
  return ((rows + ROWS - 1) / ROWS) * ROWS * rank * 4
}

/** left (rows, rank) → panels [rank][ROWS] */
export function packLeft(from: usize, rows: i32, rank: i32, to: usize): void {
  pack<f32>(from, <usize>rank * 4, true, rows, rank, ROWS, to, <usize>(rank * ROWS) * 4)
}

/** right (rank, columns) → panels [rank][8] */
export function packRight(from: usize, rank: i32, columns: i32, to: usize): void {
  pack<f32>(from, <usize>columns * 4, false, columns, rank, 8, to, <usize>rank * 32)
}

/**
 * Adds to a block (rows, columns) at `weight`. left and right are packed; right begins with the block's first column.
 * Writes Σ w² and Σ δ² as f64 to `sums`; returns whether all results are finite.
 */
export function merge(
  type: i32,
  weight: usize,
  rows: i32,
  columns: i32,
  left: usize,
  right: usize,
  rank: i32,
  scale: f64,
  scratch: usize,
  sums: usize,
): bool {
  const size: usize = type == F32 ? 4 : 2
  const rowBytes = <usize>columns * size
  const fitting = RIGHT_BYTES / (rank * 32) / (SPAN / 8)
  const block = max(fitting, 1) * SPAN
  let base: f64 = 0
  let delta: f64 = 0
  largest = i64x2.splat(0)
  for (let first = 0; first < columns; first += block) {
    const end = min(first + block, columns)
    let a = left
    for (let row = 0; row < rows; row += ROWS) {
      const count = min(ROWS, rows - row)
      baseSquares = i64x2.splat(0)
      deltaSquares = i64x2.splat(0)
      for (let column = first; column < end; column += SPAN) {
        const width = min(SPAN, end - column)
        let b = right + <usize>(column / 8) * <usize>rank * 32
        let c = scratch
        for (let j = 0; j < width; j += 8) {
          tile<f32>(a, b, rank, c, STRIDE, scale, false)
          b += <usize>rank * 32
          c += 32
        }
        let w = weight + <usize>row * rowBytes + <usize>column * size
        for (let i = 0; i < count; i++) {
          const d = scratch + <usize>i * STRIDE
          const whole = width & ~7
          if (type == F32) addF32(w, d, whole)
          else if (type == F16) addF16(w, d, whole)
          else addBf16(w, d, whole)
          if (whole < width) {
            addTail(type, w + <usize>whole * size, d + <usize>whole * 4, <usize>(width - whole) * size, scratch + TAIL)
          }
          w += rowBytes
        }
      }
      base += sumOf(baseSquares)
      delta += sumOf(deltaSquares)
      a += <usize>(rank * ROWS) * 4
    }
  }
  store<f64>(sums, base)
  store<f64>(sums, delta, 8)
  if (type == F32) return !v128.any_true(i32x4.ge_u(largest, i32x4.splat(0x7f800000)))
  return !v128.any_true(i16x8.ge_u(largest, i16x8.splat(type == F16 ? 0x7c00 : 0x7f80)))
}

/** Fewer than eight columns: the products of the missing ones are zero, as are their weights. */
function addTail(type: i32, w: usize, d: usize, bytes: usize, buffer: usize): void {
  memory.fill(buffer, 0, 32)
  memory.copy(buffer, w, bytes)
  if (type == F32) addF32(buffer, d, 8)
  else if (type == F16) addF16(buffer, d, 8)
  else addBf16(buffer, d, 8)
  memory.copy(w, buffer, bytes)
}

function addF32(w: usize, d: usize, count: i32): void {
  let base = baseSquares
  let delta = deltaSquares
  let most = largest
  for (const end = w + <usize>count * 4; w < end; w += 16) {
    const x = v128.load(w)
    const y = v128.load(d)
    base = f32x4.add(base, f32x4.mul(x, x))
    delta = f32x4.add(delta, f32x4.mul(y, y))
    const sum = f32x4.add(x, y)
    most = i32x4.max_u(most, v128.and(sum, i32x4.splat(0x7fffffff)))
    v128.store(w, sum)
    d += 16
  }
  baseSquares = base
  deltaSquares = delta
  largest = most
}

function addBf16(w: usize, d: usize, count: i32): void {
  let base = baseSquares
  let delta = deltaSquares
  let most = largest
  for (const end = w + <usize>count * 2; w < end; w += 16) {
    const packed = v128.load(w)
    const x0 = i32x4.shl(i32x4.extend_low_i16x8_u(packed), 16)
    const x1 = i32x4.shl(i32x4.extend_high_i16x8_u(packed), 16)
    const y0 = v128.load(d)
    const y1 = v128.load(d, 16)
    base = f32x4.add(base, f32x4.add(f32x4.mul(x0, x0), f32x4.mul(x1, x1)))
    delta = f32x4.add(delta, f32x4.add(f32x4.mul(y0, y0), f32x4.mul(y1, y1)))
    const result = i16x8.narrow_i32x4_u(roundBf16(f32x4.add(x0, y0)), roundBf16(f32x4.add(x1, y1)))
    most = i16x8.max_u(most, v128.and(result, i16x8.splat(0x7fff)))
    v128.store(w, result)
    d += 32
  }
  baseSquares = base
  deltaSquares = delta
  largest = most
}

/** f32 → bf16 in the low halves. Rounding could carry a NaN's mantissa into the sign: it is made quiet instead. */
// @ts-ignore: decorator
@inline
function roundBf16(x: v128): v128 {
  const high = i32x4.shr_u(x, 16)
  const bias = i32x4.add(v128.and(high, i32x4.splat(1)), i32x4.splat(0x7fff))
  const rounded = i32x4.shr_u(i32x4.add(x, bias), 16)
  return v128.bitselect(rounded, v128.or(high, i32x4.splat(0x40)), f32x4.eq(x, x))
}

function addF16(w: usize, d: usize, count: i32): void {
  let base = baseSquares
  let delta = deltaSquares
  let most = largest
  for (const end = w + <usize>count * 2; w < end; w += 16) {
    const packed = v128.load(w)
    const x0 = widenF16(i32x4.extend_low_i16x8_u(packed))
    const x1 = widenF16(i32x4.extend_high_i16x8_u(packed))
    const y0 = v128.load(d)
    const y1 = v128.load(d, 16)
    base = f32x4.add(base, f32x4.add(f32x4.mul(x0, x0), f32x4.mul(x1, x1)))
    delta = f32x4.add(delta, f32x4.add(f32x4.mul(y0, y0), f32x4.mul(y1, y1)))
    const result = i16x8.narrow_i32x4_u(roundF16(f32x4.add(x0, y0)), roundF16(f32x4.add(x1, y1)))
    most = i16x8.max_u(most, v128.and(result, i16x8.splat(0x7fff)))
    v128.store(w, result)
    d += 32
  }
  baseSquares = base
  deltaSquares = delta
  largest = most
}

/** f16 bits → f32: read as f32 they are 2¹¹² too small, subnormals included; infinities and NaN get f32's exponent. */
// @ts-ignore: decorator
@inline
function widenF16(h: v128): v128 {
  const magnitude = v128.and(h, i32x4.splat(0x7fff))
  const sign = i32x4.shl(v128.xor(h, magnitude), 16)
  const shifted = i32x4.shl(magnitude, 13)
  const value = f32x4.mul(shifted, f32x4.splat(reinterpret<f32>(0x77800000)))
  const special = v128.or(shifted, i32x4.splat(0x7f800000))
  return v128.or(sign, v128.bitselect(special, value, i32x4.ge_s(magnitude, i32x4.splat(0x7c00))))
}

/** f32 → f16 in the low halves. Below 2⁻¹⁴ adding ½ rounds to multiples of 2⁻²⁴, f16's smallest step. */
// @ts-ignore: decorator
@inline
function roundF16(x: v128): v128 {
  const magnitude = v128.and(x, i32x4.splat(0x7fffffff))
  const sign = i32x4.shr_u(v128.xor(x, magnitude), 16)
  const odd = v128.and(i32x4.shr_u(magnitude, 13), i32x4.splat(1))
  const biased = i32x4.add(i32x4.sub(magnitude, i32x4.splat(112 << 23)), i32x4.add(odd, i32x4.splat(0xfff)))
  let result = i32x4.shr_u(biased, 13)
  const small = i32x4.sub(f32x4.add(magnitude, f32x4.splat(0.5)), i32x4.splat(0x3f000000))
  result = v128.bitselect(small, result, i32x4.lt_s(magnitude, i32x4.splat(113 << 23)))
  result = v128.bitselect(i32x4.splat(0x7c00), result, i32x4.ge_s(magnitude, i32x4.splat(143 << 23)))
  result = v128.bitselect(i32x4.splat(0x7e00), result, i32x4.gt_s(magnitude, i32x4.splat(0x7f800000)))
  return v128.or(sign, result)
}

// @ts-ignore: decorator
@inline
function sumOf(x: v128): f64 {
  const low = f64x2.promote_low_f32x4(x)
  const high = f64x2.promote_low_f32x4(i32x4.shuffle(x, x, 2, 3, 2, 3))
  const sum = f64x2.add(low, high)
  return f64x2.extract_lane(sum, 0) + f64x2.extract_lane(sum, 1)
}
