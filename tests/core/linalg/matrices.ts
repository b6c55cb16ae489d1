// The same matrices as in scripts/golden/linalg.py, by shape and seed.

import { readFileSync } from 'node:fs'
import type { Matrix } from '../../../src/api/node.js'
import { MemorySource } from '../../../src/core/base/bytes.js'
import { parseSafetensorsHeader, readTensorF32 } from '../../../src/files/safetensors.js'

/** Makes values of U(−0.5, 0.5) that only depend on index and seed. */
export function uniform(rows: number, columns: number, seed: number): Matrix {
  const data = Float64Array.from({ length: rows * columns }, (_, index) => {
    let h = (index + seed * 1000003) >>> 0
    h = Math.imul(h ^ (h >>> 16), 0x21f0aaad)
    h = Math.imul(h ^ (h >>> 15), 0x735a2d97)
    return ((h ^ (h >>> 15)) >>> 0) / 2 ** 32 - 0.5
  })
  return { data, shape: [rows, columns] }
}

/** Makes a matrix in which each column is smaller by `ratio`. */
export function falling(rows: number, columns: number, seed: number, ratio: number): Matrix {
  const matrix = uniform(rows, columns, seed)
  for (let i = 0; i < matrix.data.length; i++) matrix.data[i] *= ratio ** (i % columns)
  return matrix
}

/** Reads a weight of models/union-3m. */
export async function unionWeight(name: string): Promise<Matrix> {
  const file = new URL('../../../models/union-3m/model.safetensors', import.meta.url)
  const bytes = readFileSync(file)
  const header = await parseSafetensorsHeader(new MemorySource(bytes, 'model.safetensors'))
  const { data, shape } = await readTensorF32(header, name)
  return { data, shape: [shape[0], shape[1]] }
}

export function identity(n: number): Matrix {
  const data = new Float64Array(n * n)
  for (let i = 0; i < n; i++) data[i * n + i] = 1
  return { data, shape: [n, n] }
}

export function energy(values: Float64Array): number {
  return values.reduce((sum, value) => sum + value * value, 0)
}
