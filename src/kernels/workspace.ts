// The memory in which the kernels compute. Its size is fixed: room for the packed left operand, and for one block of
// the right one and of C. Operands are copied in block by block, which costs 1 to 3 % of a large product, so that
// callers never get an array that lies in WebAssembly's memory.

import { type FloatArray, roundUp } from '../base/tensor.js'

/** Blocks consist of whole tiles, whose height is 4, 5 or 6 rows and whose width is 8 f32 or 4 f64 columns. */
const ROW_MULTIPLE = 60
const COLUMN_MULTIPLE = 8
/** The most columns of a block. Wider blocks would not be faster: the left operand already comes from the cache. */
const MAX_COLUMNS = 512
/** How many steps of depth are packed together. Equal to DEPTH in kernels-asm/gemm.ts. */
export const DEPTH = 256
/** The greatest depth of one product; deeper products are sums of several. A block then has at least 16 columns. */
export const MAX_DEPTH = 8192

const MiB = 2 ** 20
/** Memory for the left operand: 1,080 rows of 4,096 f32. Each pass over more rows packs the right operand again. */
const LEFT_BYTES = 17 * MiB
/** The largest line of tiles: 6 rows of f64 at the greatest depth. */
const STAGING_BYTES = 6 * MAX_DEPTH * 8
/** Room for a block of the right operand before it is packed. With 1 MiB products were 8 % slower. */
const RIGHT_BYTES = 4 * MiB
const PACKED_BYTES = DEPTH * MAX_COLUMNS * 8
const C_BYTES = 2.25 * MiB

/** Class Job in kernels-asm/gemm.ts. */
export const JOB_START = 1024
export const LEFT_START = 4096
export const STAGING_START = LEFT_START + LEFT_BYTES
export const RIGHT_START = STAGING_START + STAGING_BYTES
const PACKED_START = RIGHT_START + RIGHT_BYTES
const C_START = PACKED_START + PACKED_BYTES
const PAGE_BYTES = 65536

export function planBlocks(m: number, n: number, k: number, size: number) {
  const fitting = Math.floor(RIGHT_BYTES / (k * size) / COLUMN_MULTIPLE) * COLUMN_MULTIPLE
  const columns = Math.min(fitting, MAX_COLUMNS, roundUp(n, 2 * COLUMN_MULTIPLE))
  const capacity = Math.min(LEFT_BYTES / (k * size), C_BYTES / (columns * size))
  const most = Math.floor(capacity / ROW_MULTIPLE) * ROW_MULTIPLE
  const passes = Math.ceil(m / most)
  return { columns, rows: roundUp(Math.ceil(m / passes), ROW_MULTIPLE) }
}

export interface Place {
  matrix: FloatArray
  start: number
  stride: number
}

export type Way = 'in' | 'out'

export interface Job {
  rows: number
  columns: number
  depth: number
  /** Each column of the right operand is contiguous. */
  isRightContiguous: boolean
  /** True if the product is added to C. Otherwise it replaces C. */
  accumulates: boolean
  alpha: number
}

export class Workspace {
  /** @internal */
  readonly memory: WebAssembly.Memory
  readonly #f32: Float32Array
  readonly #f64: Float64Array
  readonly #i32: Int32Array

  constructor() {
    const pages = Math.ceil((C_START + C_BYTES) / PAGE_BYTES)
    this.memory = new WebAssembly.Memory({ initial: pages, maximum: pages })
    this.#f32 = new Float32Array(this.memory.buffer)
    this.#f64 = new Float64Array(this.memory.buffer)
    this.#i32 = new Int32Array(this.memory.buffer)
  }

  elements(like: FloatArray): FloatArray {
    return like instanceof Float64Array ? this.#f64 : this.#f32
  }

  /** Writes a job where the module's `multiply` reads it. */
  writeJob(size: number, { rows, columns, depth, isRightContiguous, accumulates, alpha }: Job): void {
    const fields = [LEFT_START, RIGHT_START, PACKED_START, C_START, rows, columns, depth]
    this.#i32.set([...fields, Number(isRightContiguous), size, Number(accumulates)], JOB_START / 4)
    this.#f64[JOB_START / 8 + 5] = alpha
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

  /** Copies a block of C in or out; its rows are padded to whole tiles. */
  moveC(rows: number, columns: number, { matrix, start, stride }: Place, way: Way): void {
    const c = this.elements(matrix)
    const padded = roundUp(columns, 32 / matrix.BYTES_PER_ELEMENT)
    const first = C_START / matrix.BYTES_PER_ELEMENT
    const isWhole = columns === stride && columns === padded
    const [count, length] = isWhole ? [1, rows * columns] : [rows, columns]
    for (let i = 0, at = first, to = start; i < count; i++, to += stride, at += padded) {
      if (way === 'in') c.set(matrix.subarray(to, to + length), at)
      else matrix.set(c.subarray(at, at + length), to)
    }
  }
}
