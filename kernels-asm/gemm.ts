// Multiplies matrices in this module's memory. The left operand is packed once. The columns are split into blocks, and
// each block packs its share of the right operand, so that several threads can compute blocks.

import { pack } from './pack'
import { columnsOf, multiplyTiles, ROWS, Tiles } from './tile'

/** Steps of depth in a pass: a panel of the right operand, with 32 bytes a step, stays in the first-level cache. */
const DEPTH: i32 = 256
/** Rows in a pass, a multiple of 4, 5 and 6: 120 · 256 elements of the left operand stay in the second-level cache. */
const BLOCK: i32 = 120

/**
 * A block of C and the addresses of its operands. A `Tiles` follows it. src/core/kernels/wasm.ts repeats this layout.
 */
@unmanaged
class Job {
  /** The left operand, packed by packLeft for all rows and the whole depth. */
  left: usize
  /** The right operand, not packed: [columns][depth] if rightContiguous, else [depth][columns]. */
  right: usize
  /** Room for packing DEPTH · columns elements; the number of columns is rounded up to whole tiles. */
  packed: usize
  /** The result [rows][columns], both rounded up to whole tiles. */
  c: usize
  rows: i32
  columns: i32
  depth: i32
  rightContiguous: i32
  /** Bytes of an element: 8 or 4. */
  size: i32
  accumulate: i32
  alpha: f64
}

/**
 * Packs lines [first, first + lines) of the left operand for `multiply`: for each DEPTH steps all panels of `total`
 * lines. `first` is a multiple of the tile's rows. `from` points at the first element of line `first`; stride is in
 * bytes.
 */
export function packLeft(
  size: i32,
  from: usize,
  stride: usize,
  contiguous: bool,
  first: i32,
  lines: i32,
  total: i32,
  depth: i32,
  to: usize,
): void {
  if (size == 8) packLeftOf<f64>(from, stride, contiguous, first, lines, total, depth, to)
  else packLeftOf<f32>(from, stride, contiguous, first, lines, total, depth, to)
}

function packLeftOf<T>(
  from: usize,
  stride: usize,
  contiguous: bool,
  first: i32,
  lines: i32,
  total: i32,
  depth: i32,
  to: usize,
): void {
  const padded = roundUp(total, ROWS)
  for (let p = 0; p < depth; p += DEPTH) {
    const steps = min(DEPTH, depth - p)
    const panels = to + <usize>(p * padded + first * steps) * sizeof<T>()
    pack<T>(from, stride, contiguous, lines, steps, ROWS, panels, <usize>(steps * ROWS) * sizeof<T>())
    from += <usize>DEPTH * (contiguous ? sizeof<T>() : stride)
  }
}

export function multiply(job: Job): void {
  if (job.size == 8) multiplyOf<f64>(job)
  else multiplyOf<f32>(job)
}

function multiplyOf<T>(job: Job): void {
  const width = columnsOf<T>()
  const padded = roundUp(job.columns, width)
  const rows = roundUp(job.rows, ROWS)
  const stride = <usize>padded * sizeof<T>()
  const contiguous = <bool>job.rightContiguous
  const rightStride = <usize>(contiguous ? job.depth : job.columns) * sizeof<T>()
  const tiles = changetype<Tiles>(changetype<usize>(job) + offsetof<Job>())
  tiles.bStep = 0
  tiles.cStep = stride * <usize>ROWS
  tiles.stride = stride
  tiles.alpha = job.alpha
  let left = job.left
  let right = job.right
  for (let p = 0; p < job.depth; p += DEPTH) {
    const steps = min(DEPTH, job.depth - p)
    const leftBytes = <usize>(steps * ROWS) * sizeof<T>()
    const rightBytes = <usize>(steps * width) * sizeof<T>()
    pack<T>(right, rightStride, contiguous, job.columns, steps, width, job.packed, rightBytes)
    right += <usize>steps * (contiguous ? sizeof<T>() : rightStride)
    tiles.depth = steps
    tiles.aStep = leftBytes
    tiles.accumulate = <i32>(p > 0 || job.accumulate != 0)
    for (let i = 0; i < rows; i += BLOCK) {
      const count = (min(i + BLOCK, rows) - i) / ROWS
      const a = left + <usize>(i * steps) * sizeof<T>()
      let b = job.packed
      for (let j: usize = 0; j < stride; j += 32) {
        tiles.count = count
        tiles.a = a
        tiles.b = b
        tiles.c = job.c + <usize>i * stride + j
        multiplyTiles<T>(tiles)
        b += rightBytes
      }
    }
    left += <usize>(rows * steps) * sizeof<T>()
  }
}

// @ts-ignore: decorator
@inline
function roundUp(value: i32, multiple: i32): i32 {
  return ((value + multiple - 1) / multiple) * multiple
}
