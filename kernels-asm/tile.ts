// The micro-kernel: computes a tile of C, ROWS × 2 vectors, which stays in registers over the whole depth. Goto and van
// de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication".

/**
 * The rows of a tile of C: as many as fit into 15 of the 16 vector registers of x86 (V8 uses one): 4 · 2 sums, 2 for b,
 * and the rest for a and for products.
 */
export const ROWS: i32 = 4

/** The number of columns of a tile of C: as many as two vectors hold. */
// @ts-ignore: decorator
@inline
export function columnsOf<T>(): i32 {
  return 32 / sizeof<T>()
}

/** Computes a · b + c, rounded twice: a fused multiply-add is a little faster, but not every machine has it. */
// @ts-ignore: decorator
@inline
export function madd<T>(a: v128, b: v128, c: v128): v128 {
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

/** A line of tiles, and the distance from one tile to the next. */
@unmanaged
export class Tiles {
  /** The number of tiles, at least 1. */
  count: i32
  /** [depth][ROWS] */
  a: usize
  /** [depth][columns] */
  b: usize
  /** (ROWS, columns), `stride` bytes from row to row. */
  c: usize
  /** The distance from one tile of a to the next, in bytes. */
  aStep: usize
  bStep: usize
  cStep: usize
  stride: usize
  depth: i32
  accumulate: i32
  alpha: f64
}

/**
 * Computes C = alpha · a·b for each tile, or C += alpha · a·b if accumulating. The sum over the depth is in order, and
 * alpha comes after it. Changes `at`.
 *
 * Values that are not needed inside a tile stay in memory, because registers are scarce. Four steps in a turn of the
 * loop hide its cost. The loads before all tiles have a single purpose: V8 then keeps the address of each row in a
 * register, instead of adding it up before every load.
 */
export function multiplyTiles<T>(at: Tiles): void {
  const w = sizeof<T>()
  const next = <usize>ROWS * w
  const first = at.a
  v128.load_splat<T>(first)
  v128.load_splat<T>(first, w)
  v128.load_splat<T>(first, 2 * w)
  v128.load_splat<T>(first, 3 * w)
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
    let depth = at.depth
    let a = at.a
    let b = at.b
    do {
      let b0 = v128.load(b)
      let b1 = v128.load(b, 16)
      let x = v128.load_splat<T>(a)
      c00 = madd<T>(x, b0, c00)
      c01 = madd<T>(x, b1, c01)
      x = v128.load_splat<T>(a, w)
      c10 = madd<T>(x, b0, c10)
      c11 = madd<T>(x, b1, c11)
      x = v128.load_splat<T>(a, 2 * w)
      c20 = madd<T>(x, b0, c20)
      c21 = madd<T>(x, b1, c21)
      x = v128.load_splat<T>(a, 3 * w)
      c30 = madd<T>(x, b0, c30)
      c31 = madd<T>(x, b1, c31)
      if (depth == 1) break
      const a1 = a + next
      b0 = v128.load(b, 32)
      b1 = v128.load(b, 48)
      x = v128.load_splat<T>(a1)
      c00 = madd<T>(x, b0, c00)
      c01 = madd<T>(x, b1, c01)
      x = v128.load_splat<T>(a1, w)
      c10 = madd<T>(x, b0, c10)
      c11 = madd<T>(x, b1, c11)
      x = v128.load_splat<T>(a1, 2 * w)
      c20 = madd<T>(x, b0, c20)
      c21 = madd<T>(x, b1, c21)
      x = v128.load_splat<T>(a1, 3 * w)
      c30 = madd<T>(x, b0, c30)
      c31 = madd<T>(x, b1, c31)
      if (depth == 2) break
      const a2 = a + 2 * next
      b0 = v128.load(b, 64)
      b1 = v128.load(b, 80)
      x = v128.load_splat<T>(a2)
      c00 = madd<T>(x, b0, c00)
      c01 = madd<T>(x, b1, c01)
      x = v128.load_splat<T>(a2, w)
      c10 = madd<T>(x, b0, c10)
      c11 = madd<T>(x, b1, c11)
      x = v128.load_splat<T>(a2, 2 * w)
      c20 = madd<T>(x, b0, c20)
      c21 = madd<T>(x, b1, c21)
      x = v128.load_splat<T>(a2, 3 * w)
      c30 = madd<T>(x, b0, c30)
      c31 = madd<T>(x, b1, c31)
      if (depth == 3) break
      const a3 = a + 3 * next
      b0 = v128.load(b, 96)
      b1 = v128.load(b, 112)
      x = v128.load_splat<T>(a3)
      c00 = madd<T>(x, b0, c00)
      c01 = madd<T>(x, b1, c01)
      x = v128.load_splat<T>(a3, w)
      c10 = madd<T>(x, b0, c10)
      c11 = madd<T>(x, b1, c11)
      x = v128.load_splat<T>(a3, 2 * w)
      c20 = madd<T>(x, b0, c20)
      c21 = madd<T>(x, b1, c21)
      x = v128.load_splat<T>(a3, 3 * w)
      c30 = madd<T>(x, b0, c30)
      c31 = madd<T>(x, b1, c31)
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
    at.a += at.aStep
    at.b += at.bStep
    at.c = c + at.cStep
  } while (--at.count)
}
