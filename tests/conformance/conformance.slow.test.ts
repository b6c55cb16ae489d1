// The conformance matrix: a test for each cell, and the table in docs/conformance.md, which `npm run conformance`
// writes.

import path from 'node:path'
import { beforeAll, describe, expect, test } from 'vitest'
import { loadAdapter } from '../../src/api/node.js'
import { inspectAdapter } from '../../src/lora/peft/inspect.js'
import { type CellResult, runCell } from './check.js'
import { type Cell, cells, matrix, readExpected } from './golden.js'
import { formatTable } from './table.js'

const results = new Map<Cell, CellResult>()

beforeAll(async () => {
  for (const cell of cells) results.set(cell, await runCell(cell))
})

describe.each(cells)('$name', (cell) => {
  test('conforms, or is refused with a reason', () => {
    const { status, message, problems } = results.get(cell)!
    expect(problems).toEqual([])
    expect(['pass', 'peft-refuses', 'lowrank-refuses']).toContain(status)
    if (status !== 'pass') expect(message).toBeTruthy()
  })
})

test('golden adapters have uneven ranks and a B that is not zero', () => {
  const loaded = cells.flatMap((cell) => {
    const expected = readExpected(cell)
    return expected !== undefined && 'layers' in expected ? [{ cell, layers: expected.layers }] : []
  })
  // EVA chooses the ranks itself.
  const chosen = loaded.filter(({ cell }) => cell.option !== 'init-eva')
  const even = chosen.filter(({ layers }) => new Set(layers.map(({ rank }) => rank)).size < 2)
  expect(even.map(({ cell }) => cell.name)).toEqual([])
  const zero = loaded.flatMap(({ cell, layers }) =>
    layers
      .filter(({ normB, normDelta }) => !(normB > 0.01 && normDelta > 0.01))
      .map(({ name }) => `${cell.name}: ${name}`),
  )
  expect(zero).toEqual([])
  expect(loaded.length).toBeGreaterThan(cells.length / 2)
})

test('every check runs in every cell that conforms', () => {
  for (const [{ name, option }, { status, done, message }] of results) {
    if (status !== 'pass') continue
    const merges =
      message !== undefined ? ['merge'] : ['bf16', 'f16'].includes(option) ? [option] : ['merge', 'bf16', 'f16']
    expect(done, name).toEqual(['counts', 'forward', ...merges, 'file'])
  }
})

test('an adapter of another name loads by the folder above its own', async () => {
  for (const cell of cells.filter(({ option }) => option === 'named')) {
    const above = path.join(cell.folder, 'adapter')
    const [outer, inner] = [await loadAdapter(above), await loadAdapter(path.join(above, 'tuned'))]
    expect((await inspectAdapter(outer)).layers, cell.name).toEqual((await inspectAdapter(inner)).layers)
  }
})

test('docs/conformance.md is what this run gives', async () => {
  const table = formatTable(matrix, results)
  await expect(table).toMatchFileSnapshot('../../docs/conformance.md')
})
