// The conformance matrix of scripts/golden/conformance.py: cells, their bases, and PEFT's counts and results.

import { existsSync, readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { type FloatDtype, type LayerReport, MemoryDirectory, type Tensor } from '../../src/api/node.js'
import { MemorySource } from '../../src/core/base/bytes.js'
import { encodeFloats, isFloatDtype } from '../../src/core/base/dtype.js'
import { parseSafetensorsHeader, readTensorF32, saveSafetensors } from '../../src/files/safetensors.js'

const root = fileURLToPath(new URL('../golden/conformance', import.meta.url))

export interface Matrix {
  versions: Record<string, string>
  /** Name → title. */
  architectures: Record<string, string>
  options: Record<string, string>
}

export const matrix: Matrix = JSON.parse(readFileSync(path.join(root, 'matrix.json'), 'utf8'))

export interface ExpectedLayer {
  name: string
  kind: LayerReport['kind']
  /** The base's tensor on disk. Tied modules share it. */
  weight: string
  /** True if the base stores the weight as (k, d). */
  fanInFanOut: boolean
  shapeA: number[]
  shapeB: number[]
  rank: number
  alpha: number
  scaling: number
  normA: number
  normB: number
  normDelta: number
  /** The stride of a convolution. */
  stride?: number[]
  padding?: number[]
  dilation?: number[]
}

/**
 * What PEFT says of the adapter after saving and loading it: the number of trained parameters, and facts about each
 * layer.
 */
export interface Expected {
  base: 'base' | 'tied'
  trainableParams: number
  layers: ExpectedLayer[]
  /** The alphas of training, if PEFT loads other ones. */
  trainedAlphas?: Record<string, number>
  /** PEFT's message if it can run the adapter but not merge it. */
  mergeRefused?: string
  /** True if PEFT's merge differs from its outputs. `wrong.NAME` is its merged tensor, `merged.NAME` the right one. */
  isMergeWrong?: boolean
}

export interface Cell {
  architecture: string
  option: string
  name: string
  folder: string
}

/** Tensors by name. */
export type Values = ReadonlyMap<string, Tensor>

/** All combinations, even if a cell's folder does not exist. */
export const cells: Cell[] = Object.keys(matrix.architectures).flatMap((architecture) =>
  Object.keys(matrix.options).map((option) => {
    return { architecture, option, name: `${architecture} × ${option}`, folder: path.join(root, architecture, option) }
  }),
)

/** Reads PEFT's refusal or its numbers. Returns undefined for a blank cell. */
export function readExpected({ folder }: Cell): { refused: string } | Expected | undefined {
  const file = path.join(folder, 'expected.json')
  return existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : undefined
}

/** Reads a folder and its sub-folders into memory, where a test may change the files. */
export function readFolder(folder: string): MemoryDirectory {
  const files = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile())
  const content = files.map(({ parentPath, name }) => {
    const file = path.join(parentPath, name)
    return [path.relative(folder, file).split(path.sep).join('/'), new Uint8Array(readFileSync(file))]
  })
  return new MemoryDirectory(Object.fromEntries(content), path.basename(path.dirname(folder)))
}

export async function readTensors(bytes: Uint8Array, name: string): Promise<Map<string, Tensor>> {
  const file = await parseSafetensorsHeader(new MemorySource(bytes, name))
  const result = new Map<string, Tensor>()
  for (const [key, { dtype }] of file.tensors) {
    if (isFloatDtype(dtype)) result.set(key, await readTensorF32(file, key))
  }
  return result
}

/** Stored tensor → the model's parameter, and the place in it: the number of an expert and the first row. */
type StoredNames = Record<string, [parameter: string, expert: number | null, row: number]>

/** Reads a checkpoint's tensors under the model's names, with experts stacked. */
export function modelTensors(folder: MemoryDirectory, stored: ReadonlyMap<string, Tensor>): Map<string, Tensor> {
  const text = folder.files.get('names.json')
  const names: StoredNames = text === undefined ? {} : JSON.parse(new TextDecoder().decode(text))
  const parts = new Map<string, { tensor: Tensor; expert: number | null; row: number }[]>()
  for (const [name, tensor] of stored) {
    const [own, expert, row] = names[name] ?? [name, null, 0]
    parts.set(own, [...(parts.get(own) ?? []), { tensor, expert, row }])
  }
  return new Map(
    [...parts].map(([name, own]) => {
      const [{ tensor, expert }] = own
      if (expert === null) return [name, tensor]
      const experts = 1 + Math.max(...own.map((part) => part.expert!))
      const k = tensor.shape[1]
      const d = own.reduce((rows, part) => rows + (part.expert === 0 ? part.tensor.shape[0] : 0), 0)
      const data = new Float32Array(experts * d * k)
      for (const part of own) data.set(part.tensor.data, (part.expert! * d + part.row) * k)
      return [name, { data, shape: [experts, d, k] }]
    }),
  )
}

export function cellTensors({ folder }: Cell): Promise<Map<string, Tensor>> {
  const file = path.join(folder, 'tensors.safetensors')
  return readTensors(readFileSync(file), file)
}

/** Makes the base for a cell, which is an architecture with an option, as a folder in the given float type. */
export async function baseFolder(
  { architecture }: Cell,
  { base }: Expected,
  dtype: FloatDtype,
): Promise<MemoryDirectory> {
  const folder = readFolder(path.join(root, architecture, base))
  if (dtype === 'fp32') return folder
  const values = await readTensors(folder.files.get('model.safetensors')!, 'base')
  const tensors = [...values].map(([name, { data, shape }]) => ({
    name,
    dtype,
    shape,
    data: encodeFloats(data, dtype),
  }))
  await saveSafetensors(folder, 'model.safetensors', tensors)
  return folder
}
