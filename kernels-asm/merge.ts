// Computes W += Σ sᵢ·Bᵢ·Aᵢ in place for a chunk of W in its stored type. Products are summed in f32 (f64 for F64) from
// the first rank to the last; each sum is then scaled, and the result is rounded once. Tiles of the delta go into a
// strip and are added from there: if the micro-kernel added them, V8 would spill registers.

import {
  BF16,
  F16,
  F16_BIAS,
  F16_HALF,
  F16_NORMAL,
  F32,
  F64,
  limitOf,
  narrow,
  narrowBf16,
  narrowF16,
  REBIAS,
  SIGN,
  vectorOf,
  widen,
  widenBf16,
  widenF16,
} from './half'
import { pack } from './pack'
import { columnsOf, madd, multiplyTiles, ROWS, Tiles } from './tile'

/** The columns of a strip of the delta: ROWS · 512 f32 stay in the first-level cache. */
const STRIP: i32 = 512
/** The bytes of a part of the packed right factor. It is used for all rows, and stays in the second-level cache. */
const BLOCK_BYTES: i32 = 262144

/** A chunk and its factors; a `Tiles` follows in memory. src/core/kernels/merge-kernel.ts has a copy. */
@unmanaged
class Job {
  kind: i32
  rows: i32
  /** The columns of the chunk. The packed right factor begins with the first of them. */
  columns: i32
  rank: i32
  /** The weight [rows][columns], in its stored type. */
  weight: usize
  /** The left factor [rows][rank]. */
  left: usize
  /** The right factor, packed by packRight, from the chunk's first column on. */
  right: usize
  /** Room for rank · ROWS elements. */
  panel: usize
  /** Room for ROWS · STRIP elements. */
  strip: usize
  /** The terms of the sum, each [rank: i32, unused: i32, scale: f64]. */
  terms: usize
  termCount: i32
  /** The number of results that are not finite although the base was. `firstOverflow` is the index of the first. */
  overflows: i32
  firstOverflow: i32
  /** Always 0: see vectorOf. */
  zero: i32
  /** Σ w² and Σ δ² over elements whose w is finite; the caller sets them to 0. */
  baseSquares: f64
  deltaSquares: f64
}

/** Returns the bytes that `panel` needs for factors of this rank. */
export function panelBytes(rank: i32): i32 {
  return rank * ROWS * 8
}

export function stripBytes(): i32 {
  return ROWS * STRIP * 8
}

/**
 * Packs a block (rows, columns) of the right factor into panels. Each panel has the factor's whole rank. A
 * transposed block is stored as (columns, rows). `to` is the address of its first element, in the first column of a
 * panel.
 */
export function packRight(
  size: i32,
  from: usize,
  transposed: bool,
  rows: i32,
  columns: i32,
  rank: i32,
  to: usize,
): void {
  const stride = <usize>(transposed ? rows : columns) * size
  const panelBytes = <usize>rank * 32
  if (size == 8) pack<f64>(from, stride, transposed, columns, rows, columnsOf<f64>(), to, panelBytes)
  else pack<f32>(from, stride, transposed, columns, rows, columnsOf<f32>(), to, panelBytes)
}

export function merge(job: Job): void {
  job.overflows = 0
  if (job.kind == F64) mergeOf<f64>(job)
  else mergeOf<f32>(job)
}

function mergeOf<T>(job: Job): void {
  const rank = job.rank
  const width = columnsOf<T>()
  const panelBytes = <usize>rank * 32
  const size = sizeOfKind(job.kind)
  const left = job.left
  const depthBytes = <usize>rank * sizeof<T>()
  const block = max(STRIP, (BLOCK_BYTES / (32 * rank)) * width)
  for (let start = 0; start < job.columns; start += block) {
    const end = min(start + block, job.columns)
    for (let row = 0; row < job.rows; row += ROWS) {
      const lines = min(ROWS, job.rows - row)
      pack<T>(left + <usize>row * depthBytes, depthBytes, true, lines, rank, ROWS, job.panel, 0)
      for (let column = start; column < end; column += STRIP) {
        const count = min(STRIP, end - column)
        multiplyTerms<T>(job, job.right + <usize>(column / width) * panelBytes, (count + width - 1) / width)
        for (let i = 0; i < lines; i++) {
          const first = (row + i) * job.columns + column
          const delta = job.strip + <usize>(i * STRIP) * sizeof<T>()
          add<T>(job, first, job.weight + <usize>first * size, delta, count)
        }
      }
    }
  }
}

/** Computes a strip of the delta with `count` tiles. The right factor begins at `b`. */
function multiplyTerms<T>(job: Job, b: usize, count: i32): void {
  const tiles = changetype<Tiles>(changetype<usize>(job) + offsetof<Job>())
  tiles.aStep = 0
  tiles.bStep = <usize>job.rank * 32
  tiles.cStep = 32
  tiles.stride = STRIP * sizeof<T>()
  let a = job.panel
  let term = job.terms
  for (let t = 0; t < job.termCount; t++) {
    const rank = load<i32>(term)
    tiles.count = count
    tiles.a = a
    tiles.b = b
    tiles.c = job.strip
    tiles.depth = rank
    tiles.alpha = load<f64>(term, 8)
    tiles.accumulate = <i32>(t > 0)
    multiplyTiles<T>(tiles)
    a += <usize>(rank * ROWS) * sizeof<T>()
    b += <usize>rank * 32
    term += 16
  }
}

/** Adds the delta to `count` elements of a row. `first` is the index of the first element in the chunk. */
function add<T>(job: Job, first: i32, w: usize, delta: usize, count: i32): void {
  const size = sizeOfKind(job.kind)
  while (count > 0) {
    let done = 0
    // Weights in f64 are rare: element by element is fast enough for them.
    if (sizeof<T>() == 4) {
      if (job.kind == BF16) done = addVectors(job, BF16, w, delta, count)
      else if (job.kind == F16) done = addVectors(job, F16, w, delta, count)
      else done = addVectors(job, F32, w, delta, count)
    }
    const few = min(8, count - done)
    addScalars<T>(job, first + done, w + <usize>done * size, delta + <usize>done * sizeof<T>(), few)
    done += few
    first += done
    w += <usize>done * size
    delta += <usize>done * sizeof<T>()
    count -= done
  }
}

/** Adds whole vectors, and stops before a vector with infinity or NaN. Returns how many elements are done. */
// @ts-ignore: decorator
@inline
function addVectors(job: Job, kind: i32, w: usize, delta: usize, count: i32): i32 {
  const zero = job.zero
  const zeros = vectorOf(0, zero)
  const sign = vectorOf(SIGN, zero)
  const limit = vectorOf(reinterpret<i32>(limitOf(kind)) - 1, zero)
  const ones = vectorOf(1, zero)
  const halfBf16 = vectorOf(0x7fff, zero)
  const exponent = vectorOf(0x7f807f80, zero)
  const rebias = vectorOf(reinterpret<i32>(REBIAS), zero)
  const bias = vectorOf(F16_BIAS, zero)
  const half = vectorOf(F16_HALF, zero)
  const normal = vectorOf(F16_NORMAL, zero)
  let baseSquares = f32x4.splat(0)
  let deltaSquares = f32x4.splat(0)
  let i = 0
  for (; i + 8 <= count; i += 8) {
    const low = v128.load(w)
    const high = kind == F32 ? v128.load(w, 16) : low
    const a = kind == BF16 ? widenBf16(low, false, zeros) : kind == F16 ? widenF16(low, false, sign, rebias) : low
    const b = kind == BF16 ? widenBf16(low, true, zeros) : kind == F16 ? widenF16(low, true, sign, rebias) : high
    const x = v128.load(delta)
    const y = v128.load(delta, 16)
    const p = f32x4.add(a, x)
    const q = f32x4.add(b, y)
    if (kind == BF16) {
      // Rounding keeps a NaN a NaN here, so the check below finds it: the low half of a NaN from an addition is 0.
      const r = i16x8.narrow_i32x4_u(narrowBf16(p, ones, halfBf16), narrowBf16(q, ones, halfBf16))
      if (v128.any_true(i16x8.eq(v128.and(r, exponent), exponent))) break
      v128.store(w, r)
    } else {
      let largest = i32x4.max_s(v128.andnot(p, sign), v128.andnot(q, sign))
      if (kind == F16) largest = i32x4.max_s(largest, i32x4.max_s(v128.andnot(a, sign), v128.andnot(b, sign)))
      if (v128.any_true(i32x4.gt_s(largest, limit))) break
      if (kind == F32) {
        v128.store(w, p)
        v128.store(w, q, 16)
      } else {
        const r = narrowF16(p, sign, ones, bias, half, normal)
        const s = narrowF16(q, sign, ones, bias, half, normal)
        v128.store(w, i16x8.narrow_i32x4_u(r, s))
      }
    }
    baseSquares = madd<f32>(a, a, madd<f32>(b, b, baseSquares))
    deltaSquares = madd<f32>(x, x, madd<f32>(y, y, deltaSquares))
    w += kind == F32 ? 32 : 16
    delta += 32
  }
  job.baseSquares += sum(baseSquares)
  job.deltaSquares += sum(deltaSquares)
  return i
}

// @ts-ignore: decorator
@inline
function sum(v: v128): f64 {
  const low = <f64>f32x4.extract_lane(v, 0) + <f64>f32x4.extract_lane(v, 1)
  return low + <f64>f32x4.extract_lane(v, 2) + <f64>f32x4.extract_lane(v, 3)
}

function addScalars<T>(job: Job, first: i32, w: usize, delta: usize, count: i32): void {
  const kind = job.kind
  for (let i = 0; i < count; i++) {
    const base = widen(kind, w)
    const change = load<T>(delta)
    const result: f64 = sizeof<T>() == 8 ? base + <f64>change : <f64>(<f32>base + <f32>change)
    const isStored = narrow(kind, w, result)
    if (isFinite(base)) {
      job.baseSquares += base * base
      job.deltaSquares += <f64>change * <f64>change
      if (!isStored) {
        if (job.overflows == 0) job.firstOverflow = first + i
        job.overflows++
      }
    }
    w += sizeOfKind(kind)
    delta += sizeof<T>()
  }
}

// @ts-ignore: decorator
@inline
function sizeOfKind(kind: i32): usize {
  return kind == F64 ? 8 : kind == F32 ? 4 : 2
}
