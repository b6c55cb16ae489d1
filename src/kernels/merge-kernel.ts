// The interface of the merge: a chunk of a weight W, in its storage type and in place, becomes W + Σ sᵢ·Bᵢ·Aᵢ. Written
// for streaming: a worker has a kernel of its own, reads bytes of whole rows (0.5–1 MB do best) straight into `chunk`,
// merges, and writes from there. reference-merge.ts is the definition of correct.

import type { WeightDtype } from '../base/dtype.js'
import type { FloatArray } from '../base/tensor.js'

export interface MergeTerm {
  rank: number
  /** wᵢ·sᵢ, applied to the product, not to a factor: prescaled factors round differently. */
  scale: number
}

export interface MergeJob {
  dtype: WeightDtype
  rows: number
  /** The first of the chunk's columns in the right factor: a multiple of COLUMN_MULTIPLE. */
  column: number
  columns: number
  /** (rows, Σ rank): the B of all terms side by side, f64 for fp64, else f32. */
  left: FloatArray
  terms: readonly MergeTerm[]
}

/** Elements of a block of the right factor at most. */
export const BLOCK_ELEMENTS = 65536
/** The right factor's columns are laid out in groups of so many. */
export const COLUMN_MULTIPLE = 8

export type FactorPrecision = 'fp32' | 'fp64'

/** A block (rows, columns) of the right factor, which is the A of all terms, one below the other. */
export interface RightBlock {
  /** In the precision that the kernel has begun with. At most BLOCK_ELEMENTS, or COLUMN_MULTIPLE columns. */
  values: FloatArray
  /** The block's first row and column; `column` is a multiple of COLUMN_MULTIPLE. */
  row: number
  column: number
  rows: number
  /** A multiple of COLUMN_MULTIPLE too, or all that are left. */
  columns: number
  isTransposed: boolean
}

export interface MergeResult {
  /** Σ w² and Σ δ² over the elements whose w is finite; to about 6 digits, for reports. */
  baseSquares: number
  deltaSquares: number
  /** How many results are infinite or NaN where w was not, and where in the chunk the first is, or −1. */
  overflows: number
  firstOverflow: number
  isLeftFinite: boolean
}

/**
 * Sums of products are taken in f32 (f64 for fp64) in the order of the ranks; the result is rounded to the storage type
 * once, to nearest even. NaN is stored as the quiet NaN without a sign.
 */
export interface MergeKernel {
  readonly name: string
  /** Holds a chunk's bytes before `merge`, and the merged ones after it. Take it anew after `begin` and `merge`. */
  readonly chunk: Uint8Array
  /** Makes room for the right factor (rank, columns) of the next chunks, rank being that of all terms together. */
  begin(rank: number, columns: number, precision: FactorPrecision): void
  /** Copies a block of the right factor in. Returns whether no value is NaN or infinite. */
  putRight(block: RightBlock): boolean
  merge(job: MergeJob): MergeResult
}
