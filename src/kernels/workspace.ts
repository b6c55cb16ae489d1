// The memory in which the kernels compute: of a fixed size, with a place for the packed left operand and a few slots
// for blocks of C. Operands live in ordinary arrays and are copied in block by block, which costs 1–3 % of a large
// product and means that no public array ever lies in a memory that grows, or outlives it.

import type { FloatArray } from '../base/tensor.js'

/** Rows and columns are counted in whole tiles: of 4, 5 or 6 rows, and of 8 f32 or 4 f64 columns. */
const ROW_MULTIPLE = 60
const COLUMN_MULTIPLE = 8
/** Columns of a block at most: more bring nothing, as the left operand is read from the cache long before. */
const MAX_COLUMNS = 512
/** Steps of depth that are packed together: DEPTH in kernels-asm/gemm.ts. */
export const DEPTH = 256
/** Depth of one product at most; deeper ones are sums of several. It keeps at least 16 columns in a block. */
export const MAX_DEPTH = 8192

const MiB = 2 ** 20
/** 1080 rows of 4096 f32: few passes over the right operand, each of which is packed anew for every pass. */
const LEFT_BYTES = 17 * MiB
/** The most that one line of tiles has: 6 rows of f64, of the greatest depth. */
const STAGING_BYTES = 6 * MAX_DEPTH * 8
/** The raw share of the right operand, wide enough for long runs of memory: at 1 MiB 8 % slower. */
const RIGHT_BYTES = 4 * MiB
const PACKED_BYTES = DEPTH * MAX_COLUMNS * 8
const C_BYTES = 2.25 * MiB
const SLOT_BYTES = RIGHT_BYTES + PACKED_BYTES + C_BYTES

/** The threads' states come first, one i32 each: see team.ts. */
const CONTROL_BYTES = 1024
const JOBS_START = CONTROL_BYTES
const JOB_BYTES = 128
const LEFT_START = 4096
const STAGING_START = LEFT_START + LEFT_BYTES
const SLOTS_START = STAGING_START + STAGING_BYTES
const PAGE_BYTES = 65536

export function planBlocks(m: number, n: number, k: number, size: number, minBlocks: number) {
  const fitting = Math.floor(RIGHT_BYTES / (k * size) / COLUMN_MULTIPLE) * COLUMN_MULTIPLE
  const columns = Math.min(fitting, MAX_COLUMNS, roundUp(Math.ceil(n / minBlocks), 2 * COLUMN_MULTIPLE))
  const capacity = Math.min(LEFT_BYTES / (k * size), C_BYTES / (columns * size))
  const most = Math.floor(capacity / ROW_MULTIPLE) * ROW_MULTIPLE
  const passes = Math.ceil(m / most)
  return { columns, rows: roundUp(Math.ceil(m / passes), ROW_MULTIPLE) }
}

function roundUp(value: number, multiple: number): number {
  return Math.ceil(value / multiple) * multiple
}

export interface Place {
  matrix: FloatArray
  start: number
  stride: number
  isTransposed: boolean
}

export type Way = 'in' | 'out'

export interface Job {
  rows: number
  columns: number
  depth: number
  /** Each column of the right operand is contiguous. */
  isRightContiguous: boolean
  /** C holds something to which the product is added. */
  accumulates: boolean
  alpha: number
}

export class Workspace {
  /** @internal */
  readonly memory: WebAssembly.Memory
  readonly left = LEFT_START
  readonly staging = STAGING_START
  readonly #f32: Float32Array
  readonly #f64: Float64Array
  readonly #i32: Int32Array

  constructor(slots: number, shared: boolean) {
    const pages = Math.ceil((SLOTS_START + slots * SLOT_BYTES) / PAGE_BYTES)
    this.memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared })
    this.#f32 = new Float32Array(this.memory.buffer)
    this.#f64 = new Float64Array(this.memory.buffer)
    this.#i32 = new Int32Array(this.memory.buffer)
  }

  jobOf(slot: number): number {
    return JOBS_START + slot * JOB_BYTES
  }

  rightOf(slot: number): number {
    return SLOTS_START + slot * SLOT_BYTES
  }

  cOf(slot: number): number {
    return this.rightOf(slot) + RIGHT_BYTES + PACKED_BYTES
  }

  elements(like: FloatArray): FloatArray {
    return like instanceof Float64Array ? this.#f64 : this.#f32
  }

  /** Writes a job where the module's `multiply` reads it: class Job in kernels-asm/gemm.ts. */
  writeJob(slot: number, size: number, { rows, columns, depth, isRightContiguous, accumulates, alpha }: Job): void {
    const at = this.jobOf(slot)
    const right = this.rightOf(slot)
    const fields = [LEFT_START, right, right + RIGHT_BYTES, this.cOf(slot), rows, columns, depth]
    this.#i32.set([...fields, Number(isRightContiguous), size, Number(accumulates)], at / 4)
    this.#f64[at / 8 + 5] = alpha
  }

  copyIn(from: FloatArray, start: number, stride: number, rows: number, columns: number, address: number): void {
    const to = this.elements(from)
    let at = address / to.BYTES_PER_ELEMENT
    if (columns === stride) {
      to.set(from.subarray(start, start + rows * columns), at)
      return
    }
    for (let i = 0; i < rows; i++, start += stride, at += columns) to.set(from.subarray(start, start + columns), at)
  }

  /** Rows of C are of whole tiles. Returns how many elements of C the block spans. */
  moveC(slot: number, rows: number, columns: number, { matrix, start, stride, isTransposed }: Place, way: Way): number {
    const c = this.elements(matrix)
    const padded = roundUp(columns, 32 / matrix.BYTES_PER_ELEMENT)
    const first = this.cOf(slot) / matrix.BYTES_PER_ELEMENT
    if (isTransposed) {
      for (let j = 0; j < columns; j++) {
        for (let i = 0, at = first + j, to = start + j * stride; i < rows; i++, at += padded, to++) {
          if (way === 'in') c[at] = matrix[to]
          else matrix[to] = c[at]
        }
      }
      return rows * padded
    }
    const isWhole = columns === stride && columns === padded
    const [count, length] = isWhole ? [1, rows * columns] : [rows, columns]
    for (let i = 0, at = first, to = start; i < count; i++, to += stride, at += padded) {
      if (way === 'in') c.set(matrix.subarray(to, to + length), at)
      else matrix.set(c.subarray(at, at + length), to)
    }
    return rows * padded
  }
}
