// The bytes of its factors that a chunk needs, as ranges of bounded size. Large factors, such as those of an embedding,
// are never held whole. The exception is the right factor, which the kernel packs.

import { BLOCK_ELEMENTS, COLUMN_MULTIPLE } from '../kernels/merge-kernel.js'
import type { Factor, LayerFactors } from './plan/adapters.js'
import { sizeOf } from './plan/layout.js'

/** A block (rows, columns) of a factor as it is stored: whole rows, or a part of one. */
export interface FactorRange {
  readonly factor: Factor
  readonly use: 'right' | 'left' | 'scales' | 'stack' | 'columns'
  /** Which of the weight's layers it belongs to. */
  readonly layer: number
  readonly row: number
  readonly rows: number
  readonly column: number
  readonly columns: number
  /** The place of its bytes in the factor's source. */
  readonly offset: number
  readonly byteLength: number
  /** Which of the weight's windows it is for. Undefined: the weight itself. */
  readonly window?: number | undefined
}

/** The ranges of the right factor of a layer: A (r, k), or B (d, r) where the weight is stored (k, d). */
export function rightRanges({ a, b, isInputMajor }: LayerFactors, layer: number): FactorRange[] {
  if (isInputMajor) return rowRanges(b, 'right', layer, 0, b.rows, COLUMN_MULTIPLE)
  if (a.columns <= BLOCK_ELEMENTS) return rowRanges(a, 'right', layer, 0, a.rows)
  const ranges: FactorRange[] = []
  for (let row = 0; row < a.rows; row++) {
    for (let column = 0; column < a.columns; column += BLOCK_ELEMENTS) {
      const columns = Math.min(BLOCK_ELEMENTS, a.columns - column)
      ranges.push(rangeOf(a, 'right', layer, { row, rows: 1, column, columns }))
    }
  }
  return ranges
}

/**
 * The ranges of the left factor for the rows [row, row + rows) of a weight: B (d, r), or A (r, k) where the weight is
 * stored (k, d).
 */
export function leftRanges({ a, b, isInputMajor }: LayerFactors, layer: number, row: number, rows: number) {
  if (!isInputMajor) return rowRanges(b, 'left', layer, row, rows)
  return rows === a.columns ? rowRanges(a, 'left', layer, 0, a.rows) : columnRanges(a, 'left', layer, row, rows)
}

/** Columns [column, column + columns) of a factor, row by row. */
export function columnRanges(
  factor: Factor,
  use: FactorRange['use'],
  layer: number,
  column: number,
  columns: number,
): FactorRange[] {
  return Array.from({ length: factor.rows }, (_, row) => rangeOf(factor, use, layer, { row, rows: 1, column, columns }))
}

/** A factor as one block. */
export function wholeRange(factor: Factor, use: FactorRange['use'], layer: number): FactorRange {
  return rangeOf(factor, use, layer, { row: 0, rows: factor.rows, column: 0, columns: factor.columns })
}

/** Blocks of whole rows, of a multiple of so many where more follow. */
function rowRanges(
  factor: Factor,
  use: FactorRange['use'],
  layer: number,
  first: number,
  count: number,
  multiple = 1,
): FactorRange[] {
  const { columns } = factor
  const most = Math.max(multiple, Math.floor(BLOCK_ELEMENTS / columns / multiple) * multiple)
  if (count <= most) return [rangeOf(factor, use, layer, { row: first, rows: count, column: 0, columns })]
  const ranges: FactorRange[] = []
  for (let row = first; row < first + count; row += most) {
    const rows = Math.min(most, first + count - row)
    ranges.push(rangeOf(factor, use, layer, { row, rows, column: 0, columns }))
  }
  return ranges
}

function rangeOf(
  factor: Factor,
  use: FactorRange['use'],
  layer: number,
  block: { row: number; rows: number; column: number; columns: number },
): FactorRange {
  const size = sizeOf(factor.dtype)
  const offset = factor.offset + (block.row * factor.columns + block.column) * size
  return { factor, use, layer, ...block, offset, byteLength: block.rows * block.columns * size }
}
