import fc from 'fast-check'
import { expect, it } from 'vitest'
import { BLOCK_ELEMENTS, COLUMN_MULTIPLE } from '../../../src/core/kernels/merge-kernel.js'
import type { Factor, LayerFactors } from '../../../src/merge/plan/adapters.js'
import { type FactorRange, leftRanges, rightRanges } from '../../../src/merge/weight.js'

const START = 64

function factor(rows: number, columns: number): Factor {
  return { name: 'factor', source: 0, offset: START, dtype: 'bf16', rows, columns }
}

function layer(rank: number, d: number, k: number, isInputMajor: boolean): LayerFactors {
  const others = {
    name: 'm',
    adapter: 0,
    scale: 1,
    isLinear: false,
    shape: [],
    tensor: 'weight',
    experts: undefined,
    isTied: false,
  }
  return { ...others, d, k, rank, isInputMajor, a: factor(rank, k), b: factor(d, rank), scales: undefined }
}

/** Lists the elements of the factor in the ranges, in the order in which they are read. */
function elementsOf(ranges: readonly FactorRange[]): number[] {
  return ranges.flatMap(({ row, rows, column, columns, offset, byteLength, factor: { columns: all } }) => {
    expect(byteLength).toBe(2 * rows * columns)
    return Array.from({ length: rows * columns }, (_, i) => {
      const element = (row + Math.floor(i / columns)) * all + column + (i % columns)
      expect(offset + 2 * i).toBe(START + 2 * element)
      return element
    })
  })
}

const upTo = (count: number) => Array.from({ length: count }, (_, i) => i)

it('cover a right factor once, and what a chunk needs of a left one', () => {
  const size = fc.integer({ min: 1, max: 60 })
  fc.assert(
    fc.property(size, size, size, fc.boolean(), fc.nat(59), size, (rank, d, k, isInputMajor, start, count) => {
      const own = layer(rank, d, k, isInputMajor)
      const right = elementsOf(rightRanges(own)).sort((a, b) => a - b)
      expect(right).toEqual(upTo(isInputMajor ? d * rank : rank * k))
      const all = isInputMajor ? k : d
      const row = Math.min(start, all - 1)
      const rows = Math.min(count, all - row)
      const isNeeded = (element: number) => {
        const at = isInputMajor ? element % k : Math.floor(element / rank)
        return at >= row && at < row + rows
      }
      const left = elementsOf(leftRanges(own, row, rows)).sort((a, b) => a - b)
      expect(left).toEqual(upTo(isInputMajor ? rank * k : d * rank).filter(isNeeded))
    }),
  )
})

it.each([
  ['a large A', layer(64, 8, 5632, false)],
  ['an A whose rows are longer than a block', layer(4, 8, 150_001, false)],
  ['an embedding', layer(64, 4096, 151_936, true)],
  ['a rank above a block of columns', layer(9000, 100, 16, true)],
])('come in blocks: %s', (_, own) => {
  const ranges = rightRanges(own)
  expect(ranges.length).toBeGreaterThan(1)
  for (const { row, rows, column, columns } of ranges) {
    if (rows > (own.isInputMajor ? COLUMN_MULTIPLE : 1)) expect(rows * columns).toBeLessThanOrEqual(BLOCK_ELEMENTS)
    expect((own.isInputMajor ? row : column) % COLUMN_MULTIPLE).toBe(0)
  }
  for (const { rows, columns } of leftRanges(own, 0, 100)) {
    expect(rows * columns).toBeLessThanOrEqual(BLOCK_ELEMENTS)
  }
})
