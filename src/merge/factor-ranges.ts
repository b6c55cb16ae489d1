// The bytes of its factors that a chunk needs, as ranges of bounded size. Large factors, such as those of an embedding,
// are never held whole. The exception is the right factor, which the kernel packs.

import { BLOCK_ELEMENTS, COLUMN_MULTIPLE } from '../kernels/merge-kernel.js'
import type { Factor, LayerFactors } from './plan/adapters.js'
import { sizeOf } from './plan/layout.js'

/** A block (rows, columns) of a factor as it is stored: whole rows, or a part of one. */
export interface FactorRange {
  readonly factor: Factor
  readonly row: number
  readonly rows: number
  readonly column: number
  readonly columns: number
  /** The place of its bytes in the factor's source. */
  readonly offset: number
  readonly byteLength: number
}

/** The ranges of the right factor of a layer: A (r, k), or B (d, r) where the weight is stored (k, d). */
export function rightRanges({ a, b, isInputMajor }: LayerFactors): FactorRange[] {
  if (isInputMajor) return rowRanges(b, 0, b.rows, COLUMN_MULTIPLE)
  if (a.columns <= BLOCK_ELEMENTS) return rowRanges(a, 0, a.rows)
  const ranges: FactorRange[] = []
  for (let row = 0; row < a.rows; row++) {
    for (let column = 0; column < a.columns; column += BLOCK_ELEMENTS) {
      ranges.push(rangeOf(a, row, 1, column, Math.min(BLOCK_ELEMENTS, a.columns - column)))
    }
  }
  return ranges
}

/**
 * The ranges of the left factor for the rows [row, row + rows) of a weight: B (d, r), or A (r, k) where the weight is
 * stored (k, d).
 */
export function leftRanges({ a, b, isInputMajor }: LayerFactors, row: number, rows: number): FactorRange[] {
  if (!isInputMajor) return rowRanges(b, row, rows)
  return rows === a.columns ? rowRanges(a, 0, a.rows) : columnRanges(a, row, rows)
}

/** Columns [column, column + columns) of a factor, row by row. */
export function columnRanges(factor: Factor, column: number, columns: number): FactorRange[] {
  return Array.from({ length: factor.rows }, (_, row) => rangeOf(factor, row, 1, column, columns))
}

/** A factor as one block. */
export function wholeRange(factor: Factor): FactorRange {
  return rangeOf(factor, 0, factor.rows)
}

/** Blocks of whole rows, of a multiple of so many where more follow. */
function rowRanges(factor: Factor, first: number, count: number, multiple = 1): FactorRange[] {
  const most = Math.max(multiple, Math.floor(BLOCK_ELEMENTS / factor.columns / multiple) * multiple)
  const ranges: FactorRange[] = []
  for (let row = first; row < first + count; row += most) {
    ranges.push(rangeOf(factor, row, Math.min(most, first + count - row)))
  }
  return ranges
}

function rangeOf(factor: Factor, row: number, rows: number, column = 0, columns = factor.columns): FactorRange {
  const size = sizeOf(factor.dtype)
  const offset = factor.offset + (row * factor.columns + column) * size
  return { factor, row, rows, column, columns, offset, byteLength: rows * columns * size }
}
