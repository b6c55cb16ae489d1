// Checks that the matrix notices mistakes. Each adapter is changed in the way in which a wrong implementation would
// misread it, and the cells must then fail in the checks that the mistake concerns.

import { describe, expect, test } from 'vitest'
import type { MemoryDirectory } from '../../src/api/node.js'
import { type Check, runCell, type Tamper } from './check.js'
import { type Cell, cells, type Expected, readExpected } from './golden.js'
import { LOWRANK_REFUSES } from './refused.js'

type Fields = Record<string, unknown> & { rank_pattern: Record<string, number>; alpha_pattern: Record<string, number> }
interface Header {
  shape: number[]
  dtype: string
  data_offsets: [number, number]
}

/** Changes each adapter_config.json. */
function config(change: (fields: Fields) => void): Tamper {
  return ({ files }) => {
    for (const [name, bytes] of files) {
      if (!name.endsWith('adapter_config.json')) continue
      const fields = JSON.parse(new TextDecoder().decode(bytes))
      change(fields)
      files.set(name, new TextEncoder().encode(JSON.stringify(fields)))
    }
  }
}

/** Changes the bytes of the tensors whose names match. `width` is the number of bytes of a value. */
function tensors(
  pattern: RegExp,
  change: (bytes: Uint8Array, shape: readonly number[], width: number) => void,
): Tamper {
  return ({ files }: MemoryDirectory) => {
    for (const [name, file] of files) {
      if (!name.endsWith('.safetensors')) continue
      const length = Number(new DataView(file.buffer, file.byteOffset).getBigUint64(0, true))
      const header: Record<string, Header> = JSON.parse(new TextDecoder().decode(file.subarray(8, 8 + length)))
      for (const [key, { shape, dtype, data_offsets }] of Object.entries(header)) {
        if (key === '__metadata__' || !pattern.test(key)) continue
        const [start, end] = data_offsets
        change(file.subarray(8 + length + start, 8 + length + end), shape, dtype === 'F32' ? 4 : 2)
      }
    }
  }
}

/** Rearranges the values of a matrix as if it were stored column by column. */
function transposeValues(bytes: Uint8Array, shape: readonly number[], width: number): void {
  const before = bytes.slice()
  const rows = shape[0]
  const columns = bytes.length / width / rows
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      const from = (i * columns + j) * width
      bytes.set(before.subarray(from, from + width), (j * rows + i) * width)
    }
  }
}

function reversed(pattern: Record<string, number>): Record<string, number> {
  return Object.fromEntries(Object.entries(pattern).reverse())
}

interface Mutation {
  name: string
  tamper: Tamper
  /** Returns whether the mutation concerns a cell. */
  concerns(cell: Cell, expected: Expected): boolean
  /** The checks that must report the mutation. `stopped`: the file cannot be read any more. */
  noticed: readonly (Check | 'stopped')[]
}

const isDora = ({ option }: Cell) => option.includes('dora') || option === 'bin' || option === 'all-together'
const hasLayers = (_cell: Cell, { layers }: Expected) => layers.length > 0
const hasSafetensors = ({ option }: Cell) => option !== 'bin'
const isMerged = (expected: Expected) => expected.mergeRefused === undefined

const MUTATIONS: Mutation[] = [
  {
    name: 'scaling doubled',
    tamper: config((fields) => {
      fields.lora_alpha = 2 * (fields.lora_alpha as number)
      for (const [key, alpha] of Object.entries(fields.alpha_pattern)) fields.alpha_pattern[key] = 2 * alpha
    }),
    concerns: hasLayers,
    noticed: ['counts', 'forward'],
  },
  {
    name: 'use_rslora turned',
    tamper: config((fields) => {
      fields.use_rslora = fields.use_rslora !== true
    }),
    concerns: hasLayers,
    noticed: ['counts', 'forward'],
  },
  {
    name: 'A transposed',
    tamper: tensors(/lora_(embedding_)?A/, transposeValues),
    concerns: (cell, expected) => hasSafetensors(cell) && hasLayers(cell, expected),
    noticed: ['counts', 'forward'],
  },
  {
    name: 'B transposed',
    tamper: tensors(/lora_(embedding_)?B(\.weight)?$/, transposeValues),
    concerns: (cell, expected) => hasSafetensors(cell) && hasLayers(cell, expected),
    noticed: ['counts', 'forward'],
  },
  {
    name: 'B of zeros',
    tamper: tensors(/lora_(embedding_)?B(\.weight)?$/, (bytes) => bytes.fill(0)),
    concerns: (cell, expected) => hasSafetensors(cell) && hasLayers(cell, expected),
    noticed: ['counts', 'forward'],
  },
  {
    name: 'alpha_pattern in reverse order',
    tamper: config((fields) => {
      fields.alpha_pattern = reversed(fields.alpha_pattern)
    }),
    concerns: ({ option }) => option.startsWith('patterns'),
    noticed: ['counts', 'forward', 'merge', 'bf16', 'f16'],
  },
  {
    name: 'rank_pattern in reverse order',
    tamper: config((fields) => {
      fields.rank_pattern = reversed(fields.rank_pattern)
    }),
    concerns: ({ option }) => option === 'patterns',
    noticed: ['stopped'],
  },
  {
    name: 'magnitudes all equal',
    tamper: tensors(/lora_magnitude_vector/, (bytes, _shape, width) => bytes.copyWithin(width, 0)),
    concerns: (cell, expected) => isDora(cell) && hasSafetensors(cell) && hasLayers(cell, expected),
    noticed: ['forward', 'merge', 'bf16', 'f16'],
  },
  {
    name: 'rows of tokens in another order',
    tamper: config((fields) => {
      const tokens = fields.trainable_token_indices as number[] | Record<string, number[]>
      fields.trainable_token_indices = Array.isArray(tokens)
        ? [...tokens].reverse()
        : Object.fromEntries(Object.entries(tokens).map(([key, rows]) => [key, [...rows].reverse()]))
    }),
    concerns: ({ option }) => option.includes('token-indices'),
    noticed: ['merge', 'bf16', 'f16'],
  },
  {
    name: 'trained biases and replaced tensors of zeros',
    tamper: tensors(/^(?!.*lora_)/, (bytes) => bytes.fill(0)),
    concerns: ({ option, architecture }) =>
      ['modules-to-save', 'tied-saved'].includes(option) ||
      (option.startsWith('bias') && !['t5', 'moe'].includes(architecture)),
    noticed: ['merge', 'bf16', 'f16'],
  },
  {
    name: 'biases of B of zeros',
    tamper: tensors(/lora_B\.bias$/, (bytes) => bytes.fill(0)),
    concerns: ({ option }, expected) => option === 'lora-bias' && hasLayers({} as Cell, expected),
    noticed: ['forward'],
  },
]

describe.each(MUTATIONS)('$name', ({ tamper, concerns, noticed }) => {
  test('turns the cells red that it concerns', async () => {
    let count = 0
    for (const cell of cells) {
      const expected = readExpected(cell)
      if (expected === undefined || 'refused' in expected || !concerns(cell, expected)) continue
      if (LOWRANK_REFUSES[cell.option]?.where(cell)) continue
      count++
      const { status, problems } = await runCell(
        cell,
        tamper,
        noticed.includes('stopped') ? ['merge', 'bf16', 'f16'] : (noticed as Check[]),
      )
      expect(status, cell.name).toBe('fail')
      const checks = new Set(problems.map((problem) => problem.split(':', 1)[0]))
      // Parameters have no module with an output to compare.
      const hasOutputs = expected.layers.some(({ kind }) => kind !== 'parameter')
      for (const check of noticed.map((own) => (own === 'forward' && !hasOutputs ? 'counts' : own))) {
        if (['merge', 'bf16', 'f16'].includes(check) && !isMerged(expected)) continue
        expect([...checks], `${cell.name}: ${problems.join('; ').slice(0, 500)}`).toContain(check)
      }
    }
    expect(count).toBeGreaterThan(0)
  })
})
