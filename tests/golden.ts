// Reads golden folders that PEFT wrote (tests/golden), and compares numbers with PEFT's.

import { existsSync, readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect } from 'vitest'
import {
  type Directory,
  type FloatArray,
  type FloatDtype,
  type LayerReport,
  loadAdapter,
  type Matrix,
  MemoryDirectory,
  saveAdapter,
  type Tensor,
} from '../src/api/node.js'
import { encodeFloats } from '../src/core/base/dtype.js'
import { NodeDirectory } from '../src/files/io/node/files.js'
import { parseSafetensorsHeader, readTensorF32, saveSafetensors } from '../src/files/safetensors.js'

/** Returns a path in tests/golden. */
export function goldenPath(...parts: string[]): string {
  return path.join(fileURLToPath(new URL('golden', import.meta.url)), ...parts)
}

export interface GoldenCase<Expected> {
  name: string
  folder: string
  /** PEFT's counts and results. */
  expected: Expected
}

/** Lists the names of a suite's folders. */
export function goldenNames(suite: string): string[] {
  const entries = readdirSync(goldenPath(suite), { withFileTypes: true })
  return entries.flatMap((entry) => (entry.isDirectory() ? [entry.name] : []))
}

/** Lists the folders of one kind that have expected results from PEFT. */
export function goldenCases<Expected>(kind: string): GoldenCase<Expected>[] {
  return goldenNames(kind).flatMap((name) => {
    const file = goldenPath(kind, name, 'expected.json')
    return existsSync(file) ? [{ name, folder: goldenPath(kind, name), expected: readJson(file) as Expected }] : []
  })
}

/** PEFT's facts about a layer. */
export interface ExpectedLayer {
  name: string
  d: number
  k: number
  rank: number
  alpha: number
  scaling: number
  normDelta: number
}

/** Expects reports of the same layers as PEFT, with the same numbers. */
export function expectLayers(
  reports: readonly LayerReport[],
  expected: readonly (ExpectedLayer & { kind: string })[],
): void {
  const layers = new Map(reports.map((layer) => [layer.name, layer]))
  expect([...layers.keys()].sort()).toEqual(expected.map(({ name }) => name).sort())
  for (const { name, kind, d, k, rank, alpha, scaling, normDelta } of expected) {
    const layer = layers.get(name)!
    expect(layer).toMatchObject({ kind, d, k, rank, alpha })
    expect(layer.scaling / scaling).toBeCloseTo(1, 12)
    expect(layer.normDelta / normDelta).toBeCloseTo(1, 10)
  }
}

export function readJson(file: string): unknown {
  return JSON.parse(readFileSync(file, 'utf8'))
}

/** Tensors by name. */
export type Values = Map<string, Tensor>

export async function tensorsIn(directory: Directory, file = 'model.safetensors'): Promise<Values> {
  const source = await directory.open(file)
  const parsed = await parseSafetensorsHeader(source)
  const result: Values = new Map()
  for (const name of parsed.tensors.keys()) result.set(name, await readTensorF32(parsed, name))
  await source.close()
  return result
}

export function tensorsOf(file: string): Promise<Values> {
  return tensorsIn(new NodeDirectory(path.dirname(file)), path.basename(file))
}

/** Reads the tensors with two dimensions. */
export async function matricesIn(directory: Directory, file?: string): Promise<Map<string, Matrix>> {
  const tensors = [...(await tensorsIn(directory, file))].filter(([, { shape }]) => shape.length === 2)
  return new Map(tensors.map(([name, tensor]) => [name, asMatrix(tensor)]))
}

export function asMatrix({ data, shape }: Tensor<FloatArray>): Matrix {
  return { data, shape: [shape[0], shape[1]] }
}

export function inF64({ data, shape }: Tensor<FloatArray>): Tensor<FloatArray> {
  return { data: Float64Array.from(data), shape }
}

/** Makes a checkpoint's folder with values in a given type. */
export async function checkpointOf(
  values: ReadonlyMap<string, Tensor>,
  config: string,
  dtype: FloatDtype = 'fp32',
): Promise<MemoryDirectory> {
  const directory = new MemoryDirectory({ 'config.json': config }, 'base')
  const tensors = [...values].map(([name, { data, shape }]) => {
    return { name, dtype, shape, data: encodeFloats(data, dtype) }
  })
  await saveSafetensors(directory, 'model.safetensors', tensors)
  return directory
}

/** Returns the largest error relative to the largest value. */
export function deviation(got: ArrayLike<number>, expected: ArrayLike<number>): number {
  expect(got.length).toBe(expected.length)
  let [error, size] = [0, 0]
  for (let i = 0; i < got.length; i++) {
    error = Math.max(error, Math.abs(got[i] - expected[i]))
    size = Math.max(size, Math.abs(expected[i]))
  }
  return error / size
}

/** Expects the same tensors, each with errors of at most `tolerance` of its largest value. */
export function expectClose(got: Values, expected: Values, tolerance: number): void {
  expect([...got.keys()].sort()).toEqual([...expected.keys()].sort())
  for (const [name, { data, shape }] of expected) {
    const own = got.get(name)!
    expect(own.shape, name).toEqual(shape)
    expect(deviation(own.data, data), name).toBeLessThan(tolerance)
  }
}

/** Loads and saves a folder, and expects PEFT's bytes and config, except for the spelling of numbers in the config. */
export async function expectSavedAlike(folder: string): Promise<void> {
  const saved = new MemoryDirectory()
  await saveAdapter(await loadAdapter(folder), saved)
  const bytes = readFileSync(path.join(folder, 'adapter_model.safetensors'))
  expect(Buffer.compare(saved.files.get('adapter_model.safetensors')!, bytes)).toBe(0)
  const config = JSON.parse(new TextDecoder().decode(saved.files.get('adapter_config.json')))
  const original = readJson(path.join(folder, 'adapter_config.json')) as object
  expect(config).toEqual(original)
  expect(Object.keys(config)).toEqual(Object.keys(original))
}
