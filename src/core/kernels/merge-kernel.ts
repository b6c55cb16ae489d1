// A merge kernel turns a chunk of a weight W, in its storage type and in place, into W + Σ sᵢ·Bᵢ·Aᵢ. Each thread has
// its own kernel. Chunks of whole rows, 0.5 to 1 MB, are fastest.

import type { WeightDtype } from '../base/dtype.js'
import type { FloatArray } from '../base/tensor.js'

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

/**
 * Sums of products are taken in f32 (f64 for fp64) in the order of the ranks; the result is rounded to the storage type
 * once, to nearest even. NaN is stored as the quiet NaN without a sign.
 */
export interface MergeKernel {
  /**
   * The chunk's bytes: before `merge` the base's, after it the merged ones. `begin` and `merge` may replace the array.
   */
  readonly chunk: Uint8Array
  /** Makes room for the right factor (rank, columns) of the next chunks. `rank` is the sum over all terms. */
  begin(rank: number, columns: number, precision: FactorPrecision): void
  /** Copies in a block of the right factor: of A, or of Bᵀ if the weight is stored as (k, d). */
  putRight(block: RightBlock): void
  merge(job: MergeJob): MergeResult
}
