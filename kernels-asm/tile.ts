// The micro-kernel: a tile of ROWS × 2 vectors of C stays in registers over the whole depth. Goto and van de Geijn 2008,
// "Anatomy of High-Performance Matrix Multiplication". ROWS is what the 16 vector registers of x86 hold, one being V8's
// own: 6 · 2 sums, 2 of b, 1 of a; without a fused multiply-add the products need registers too, which leaves 4 rows.

/** Rows of a tile of C. */
export const ROWS: i32 = ASC_FEATURE_RELAXED_SIMD ? 6 : 4

/** Columns of a tile of C: two vectors. */
// @ts-ignore: decorator
@inline
export function columnsOf<T>(): i32 {
  return 32 / sizeof<T>()
}

/** a · b + c: fused where the module is built with relaxed SIMD, else rounded twice. */
// @ts-ignore: decorator
@inline
export function madd<T>(a: v128, b: v128, c: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return v128.relaxed_madd<T>(a, b, c)
  return v128.add<T>(c, v128.mul<T>(a, b))
}

// @ts-ignore: decorator
@inline
function put<T>(c: usize, accumulate: bool, alpha: v128, low: v128, high: v128): void {
  const x = v128.mul<T>(alpha, low)
  const y = v128.mul<T>(alpha, high)
  v128.store(c, accumulate ? v128.add<T>(v128.load(c), x) : x)
  v128.store(c, accumulate ? v128.add<T>(v128.load(c, 16), y) : y, 16)
}

/** A line of tiles, and where the next one is. */
@unmanaged
export class Tiles {
  /** How many, at least 1. */
  count: i32
  /** [depth][ROWS] */
  a: usize
  /** [depth][columns] */
  b: usize
  /** (ROWS, columns), `stride` bytes from row to row. */
  c: usize
  /** From one tile to the next, in bytes. */
  aStep: usize
  bStep: usize
  cStep: usize
  stride: usize
  /** At least 1. */
  depth: i32
  /** C holds something to which the product is added. */
  accumulate: i32
  alpha: f64
}

/**
 * C = alpha · a·b, or + that when accumulating, of each tile; the sum over the depth is in order, alpha comes after it. Changes
 * `at`.
 *
 * What is not needed inside of a tile stays in memory, for registers are scarce there. The breaks that no depth can take keep
 * each row's sums beside its load: V8 up to version 12 else moves all loads of a block before all sums, runs out of registers
 * and spills, at half the speed. Four steps a turn hide the loop's own cost.
 */
export function multiplyTiles<T>(at: Tiles): void {
  const w = sizeof<T>()
  const next = <usize>ROWS * w
  do {
    const zero = v128.splat<T>(0)
    let c00 = zero
    let c01 = zero
    let c10 = zero
    let c11 = zero
    let c20 = zero
    let c21 = zero
    let c30 = zero
    let c31 = zero
    let c40 = zero
    let c41 = zero
    let c50 = zero
    let c51 = zero
    let depth = at.depth
    let a = at.a
    let b = at.b
    do {
      let b0 = v128.load(b)
      let b1 = v128.load(b, 16)
      let x = v128.load_splat<T>(a)
      c00 = madd<T>(x, b0, c00)
      c01 = madd<T>(x, b1, c01)
      if (ROWS == 6) if (depth == -1) break
      x = v128.load_splat<T>(a, w)
      c10 = madd<T>(x, b0, c10)
      c11 = madd<T>(x, b1, c11)
      if (ROWS == 6) if (depth == -2) break
      x = v128.load_splat<T>(a, 2 * w)
      c20 = madd<T>(x, b0, c20)
      c21 = madd<T>(x, b1, c21)
      if (ROWS == 6) if (depth == -3) break
      x = v128.load_splat<T>(a, 3 * w)
      c30 = madd<T>(x, b0, c30)
      c31 = madd<T>(x, b1, c31)
      if (ROWS == 6) {
        if (depth == -4) break
        x = v128.load_splat<T>(a, 4 * w)
        c40 = madd<T>(x, b0, c40)
        c41 = madd<T>(x, b1, c41)
        if (depth == -5) break
        x = v128.load_splat<T>(a, 5 * w)
        c50 = madd<T>(x, b0, c50)
        c51 = madd<T>(x, b1, c51)
      }
      if (depth == 1) break
      b0 = v128.load(b, 32)
      b1 = v128.load(b, 48)
      x = v128.load_splat<T>(a, next)
      c00 = madd<T>(x, b0, c00)
      c01 = madd<T>(x, b1, c01)
      if (ROWS == 6) if (depth == -6) break
      x = v128.load_splat<T>(a, next + w)
      c10 = madd<T>(x, b0, c10)
      c11 = madd<T>(x, b1, c11)
      if (ROWS == 6) if (depth == -7) break
      x = v128.load_splat<T>(a, next + 2 * w)
      c20 = madd<T>(x, b0, c20)
      c21 = madd<T>(x, b1, c21)
      if (ROWS == 6) if (depth == -8) break
      x = v128.load_splat<T>(a, next + 3 * w)
      c30 = madd<T>(x, b0, c30)
      c31 = madd<T>(x, b1, c31)
      if (ROWS == 6) {
        if (depth == -9) break
        x = v128.load_splat<T>(a, next + 4 * w)
        c40 = madd<T>(x, b0, c40)
        c41 = madd<T>(x, b1, c41)
        if (depth == -10) break
        x = v128.load_splat<T>(a, next + 5 * w)
        c50 = madd<T>(x, b0, c50)
        c51 = madd<T>(x, b1, c51)
      }
      if (depth == 2) break
      b0 = v128.load(b, 64)
      b1 = v128.load(b, 80)
      x = v128.load_splat<T>(a, 2 * next)
      c00 = madd<T>(x, b0, c00)
      c01 = madd<T>(x, b1, c01)
      if (ROWS == 6) if (depth == -11) break
      x = v128.load_splat<T>(a, 2 * next + w)
      c10 = madd<T>(x, b0, c10)
      c11 = madd<T>(x, b1, c11)
      if (ROWS == 6) if (depth == -12) break
      x = v128.load_splat<T>(a, 2 * next + 2 * w)
      c20 = madd<T>(x, b0, c20)
      c21 = madd<T>(x, b1, c21)
      if (ROWS == 6) if (depth == -13) break
      x = v128.load_splat<T>(a, 2 * next + 3 * w)
      c30 = madd<T>(x, b0, c30)
      c31 = madd<T>(x, b1, c31)
      if (ROWS == 6) {
        if (depth == -14) break
        x = v128.load_splat<T>(a, 2 * next + 4 * w)
        c40 = madd<T>(x, b0, c40)
        c41 = madd<T>(x, b1, c41)
        if (depth == -15) break
        x = v128.load_splat<T>(a, 2 * next + 5 * w)
        c50 = madd<T>(x, b0, c50)
        c51 = madd<T>(x, b1, c51)
      }
      if (depth == 3) break
      b0 = v128.load(b, 96)
      b1 = v128.load(b, 112)
      x = v128.load_splat<T>(a, 3 * next)
      c00 = madd<T>(x, b0, c00)
      c01 = madd<T>(x, b1, c01)
      if (ROWS == 6) if (depth == -16) break
      x = v128.load_splat<T>(a, 3 * next + w)
      c10 = madd<T>(x, b0, c10)
      c11 = madd<T>(x, b1, c11)
      if (ROWS == 6) if (depth == -17) break
      x = v128.load_splat<T>(a, 3 * next + 2 * w)
      c20 = madd<T>(x, b0, c20)
      c21 = madd<T>(x, b1, c21)
      if (ROWS == 6) if (depth == -18) break
      x = v128.load_splat<T>(a, 3 * next + 3 * w)
      c30 = madd<T>(x, b0, c30)
      c31 = madd<T>(x, b1, c31)
      if (ROWS == 6) {
        if (depth == -19) break
        x = v128.load_splat<T>(a, 3 * next + 4 * w)
        c40 = madd<T>(x, b0, c40)
        c41 = madd<T>(x, b1, c41)
        if (depth == -20) break
        x = v128.load_splat<T>(a, 3 * next + 5 * w)
        c50 = madd<T>(x, b0, c50)
        c51 = madd<T>(x, b1, c51)
      }
      a += 4 * next
      b += 128
      depth -= 4
    } while (depth)
    const c = at.c
    const stride = at.stride
    const accumulate = at.accumulate != 0
    const factor = v128.splat<T>(<T>at.alpha)
    put<T>(c, accumulate, factor, c00, c01)
    put<T>(c + stride, accumulate, factor, c10, c11)
    put<T>(c + 2 * stride, accumulate, factor, c20, c21)
    put<T>(c + 3 * stride, accumulate, factor, c30, c31)
    if (ROWS == 6) {
      put<T>(c + 4 * stride, accumulate, factor, c40, c41)
      put<T>(c + 5 * stride, accumulate, factor, c50, c51)
    }
    at.a += at.aStep
    at.b += at.bStep
    at.c = c + at.cStep
  } while (--at.count)
}
