// The merge on WebAssembly SIMD. It gives the same bytes on every machine.

import type { WeightDtype } from '../base/dtype.js'
import { UnsupportedError } from '../base/errors.js'
import { type FloatArray, roundUp } from '../base/tensor.js'
import { mergeModule } from './gen/merge.js'
import { compile } from './module.js'

export interface MergeTerm {
  rank: number
  /** wᵢ·sᵢ. It multiplies the product and not a factor, because scaled factors would round differently. */
  scale: number
}

export interface MergeJob {
  dtype: WeightDtype
  rows: number
  /** The column of the right factor at which the chunk begins: a multiple of COLUMN_MULTIPLE. */
  column: number
  columns: number
  /** (rows, Σ rank): the B factors of all terms side by side, in f64 for fp64 weights and in f32 for all others. */
  left: FloatArray
  terms: readonly MergeTerm[]
}

/** The most elements of a block of the right factor, unless it is a single row or group of columns. */
export const BLOCK_ELEMENTS = 65536
/** The right factor's columns are laid out in groups of this size. */
export const COLUMN_MULTIPLE = 8

export type FactorPrecision = 'fp32' | 'fp64'

/** A block (rows, columns) of the right factor: the A factors of all terms, stacked. */
export interface RightBlock {
  /** In the precision given to `begin`. At most BLOCK_ELEMENTS values, a single row, or COLUMN_MULTIPLE columns. */
  values: FloatArray
  /** The block's first row and column; `column` is a multiple of COLUMN_MULTIPLE. */
  row: number
  column: number
  rows: number
  /** A multiple of COLUMN_MULTIPLE, or all the columns that are left. */
  columns: number
  isTransposed: boolean
}

export interface MergeResult {
  /** Σ w² and Σ δ² over the elements whose w is finite. Reports show them, so about 6 digits are right. */
  baseSquares: number
  deltaSquares: number
  /** How many results became infinite or NaN although w was finite, and the place of the first in the chunk, or −1. */
  overflows: number
  firstOverflow: number
}

interface MergeExports {
  panelBytes(rank: number): number
  stripBytes(): number
  packRight(
    size: number,
    from: number,
    transposed: boolean,
    rows: number,
    columns: number,
    rank: number,
    to: number,
  ): void
  merge(job: number): void
}

const KINDS: Record<WeightDtype, number> = { bf16: 0, fp16: 1, fp32: 2, fp64: 3 }

/** The address of class Job (kernels-asm/merge.ts), and the indices of its results as i32 and f64. */
const JOB_START = 64
const OVERFLOWS = 11
const FIRST_OVERFLOW = 12
const SQUARES = 7
/** After the job come the terms, each 16 bytes: [rank, unused, scale]. */
const TERMS_START = 192
const TERM_BYTES = 16
const MAX_TERMS = 1024
const STRIP_START = TERMS_START + MAX_TERMS * TERM_BYTES
const ALIGNMENT = 64
const PAGE_BYTES = 65536
/** 4 GiB, the maximum that the module declares. */
const MAX_PAGES = 65536
/** Bytes of one row of a panel: 8 f32 or 4 f64 columns. */
const PANEL_ROW_BYTES = 32

/** Creates a merge kernel for one thread. Throws UnsupportedError if the host compiles no WebAssembly with SIMD. */
export function createMergeKernel(byteLength: number): MergeKernel {
  const module = compile(mergeModule)
  if (module !== undefined) return new MergeKernel(module, byteLength)
  throw new UnsupportedError({
    where: 'merge',
    what: 'the host compiles no WebAssembly with SIMD, and merges need it',
    hint: "Allow 'wasm-unsafe-eval' in the page's content security policy (script-src), or merge in Node",
  })
}

/**
 * Turns a chunk of a weight W, in its storage type and in place, into W + Σ sᵢ·Bᵢ·Aᵢ. Each thread has its own kernel.
 * Chunks of whole rows, 0.5 to 1 MB, are fastest. Sums of products are taken in f32 (f64 for fp64) in the order of the
 * ranks; the result is rounded to the storage type once, to nearest even. NaN is stored as the quiet NaN without a
 * sign.
 *
 * Its memory holds, in this order: job, terms, strip, chunk, block, packed right factor, the chunk's left factor.
 */
export class MergeKernel {
  readonly #memory = new WebAssembly.Memory({ initial: 1, maximum: MAX_PAGES })
  readonly #wasm: MergeExports
  readonly #byteLength: number
  /** Replaced only when the memory grows: views made for every chunk would show in a long merge's memory. */
  #views: Views
  readonly #chunkStart: number
  readonly #blockStart: number
  #rightStart: number
  #size = 4
  #rank = 0
  #rightBytes = 0

  constructor(module: WebAssembly.Module, byteLength: number) {
    const { exports } = new WebAssembly.Instance(module, { env: { memory: this.#memory } })
    this.#wasm = exports as unknown as MergeExports
    this.#byteLength = byteLength
    this.#chunkStart = roundUp(STRIP_START + this.#wasm.stripBytes(), ALIGNMENT)
    this.#blockStart = roundUp(this.#chunkStart + byteLength, ALIGNMENT)
    this.#rightStart = this.#blockStart
    this.#views = this.#grow(this.#rightStart)
  }

  /**
   * The chunk's bytes: before `merge` the base's, after it the merged ones. `begin` and `merge` may replace the array.
   */
  get chunk(): Uint8Array {
    return this.#views.chunk
  }

  /** Makes room for the right factor (rank, columns) of the next chunks. `rank` is the sum over all terms. */
  begin(rank: number, columns: number, precision: FactorPrecision): void {
    this.#size = precision === 'fp64' ? 8 : 4
    this.#rank = rank
    const blockBytes = Math.max(BLOCK_ELEMENTS, COLUMN_MULTIPLE * rank, columns) * this.#size
    this.#rightStart = roundUp(this.#blockStart + blockBytes, ALIGNMENT)
    this.#rightBytes = rank * roundUp(columns, COLUMN_MULTIPLE) * this.#size
    this.#reserve(this.#rightStart + this.#rightBytes)
  }

  /** Copies in a block of the right factor: of A, or of Bᵀ if the weight is stored as (k, d). */
  putRight({ values, row, column, rows, columns, isTransposed }: RightBlock): void {
    const size = this.#size
    const to = this.#rightStart + column * this.#rank * size + row * PANEL_ROW_BYTES
    this.#write(values, this.#blockStart)
    this.#wasm.packRight(size, this.#blockStart, isTransposed, rows, columns, this.#rank, to)
  }

  merge({ dtype, rows, column, columns, left, terms }: MergeJob): MergeResult {
    const rank = this.#rank
    if (rank === 0) return { baseSquares: 0, deltaSquares: 0, overflows: 0, firstOverflow: -1 }
    const leftStart = roundUp(this.#rightStart + this.#rightBytes, ALIGNMENT)
    const panelStart = roundUp(leftStart + left.byteLength, ALIGNMENT)
    this.#reserve(panelStart + this.#wasm.panelBytes(rank))
    this.#write(left, leftStart)
    const { i32, f64 } = this.#views
    const filled = terms.filter((term) => term.rank > 0)
    filled.forEach((term, i) => {
      const at = TERMS_START + i * TERM_BYTES
      i32[at / 4] = term.rank
      f64[at / 8 + 1] = term.scale
    })
    const right = this.#rightStart + column * rank * this.#size
    const addresses = [this.#chunkStart, leftStart, right, panelStart, STRIP_START, TERMS_START]
    i32.set([KINDS[dtype], rows, columns, rank, ...addresses, filled.length], JOB_START / 4)
    f64.fill(0, JOB_START / 8 + SQUARES, JOB_START / 8 + SQUARES + 2)
    this.#wasm.merge(JOB_START)
    const overflows = i32[JOB_START / 4 + OVERFLOWS]
    return {
      baseSquares: f64[JOB_START / 8 + SQUARES],
      deltaSquares: f64[JOB_START / 8 + SQUARES + 1],
      overflows,
      firstOverflow: overflows === 0 ? -1 : i32[JOB_START / 4 + FIRST_OVERFLOW],
    }
  }

  #write(values: FloatArray, address: number): void {
    const view = values instanceof Float64Array ? this.#views.f64 : this.#views.f32
    view.set(values, address / values.BYTES_PER_ELEMENT)
  }

  #reserve(byteLength: number): void {
    if (byteLength > this.#memory.buffer.byteLength) this.#views = this.#grow(byteLength)
  }

  #grow(byteLength: number): Views {
    this.#memory.grow(Math.max(0, Math.ceil((byteLength - this.#memory.buffer.byteLength) / PAGE_BYTES)))
    const { buffer } = this.#memory
    return {
      chunk: new Uint8Array(buffer, this.#chunkStart, this.#byteLength),
      i32: new Int32Array(buffer),
      f32: new Float32Array(buffer),
      f64: new Float64Array(buffer),
    }
  }
}

interface Views {
  chunk: Uint8Array
  i32: Int32Array
  f32: Float32Array
  f64: Float64Array
}
