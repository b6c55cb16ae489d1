// Adapters of every kind as PEFT saves them (tests/golden/kinds), on bases of a few kB: numbers, outputs, merged weights, and back.

import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { MemoryDirectory, MemorySource } from '../../src/base/bytes.js'
import { UnsupportedError } from '../../src/base/errors.js'
import type { FloatArray, Matrix, Tensor } from '../../src/base/tensor.js'
import { parseSafetensorsHeader, readTensorF32 } from '../../src/formats/safetensors.js'
import { NodeDirectory } from '../../src/io/node-files.js'
import type { LoraAdapter } from '../../src/lora/adapter.js'
import { inspectAdapter } from '../../src/lora/inspect.js'
import { loadAdapter, saveAdapter } from '../../src/lora/peft.js'
import { transpose } from '../../src/lora/product.js'

interface Expected {
  base: string
  trainableParams: number
  layers: {
    name: string
    kind: string
    d: number
    k: number
    rank: number
    alpha: number
    scaling: number
    normDelta: number
    /** Of convolutions. */
    stride?: number[]
    padding?: number[] | 'same'
    dilation?: number[]
    groups?: number
  }[]
}

const root = fileURLToPath(new URL('../golden/kinds', import.meta.url))
const cases = readdirSync(root, { withFileTypes: true })
  .filter((entry) => entry.isDirectory())
  .map(({ name }) => {
    const folder = path.join(root, name)
    const expected: Expected = JSON.parse(readFileSync(path.join(folder, 'expected.json'), 'utf8'))
    return { name, folder, expected }
  })

async function tensorsOf(file: string): Promise<Map<string, Tensor>> {
  const parsed = await parseSafetensorsHeader(new MemorySource(readFileSync(file), file))
  const result = new Map<string, Tensor>()
  for (const name of parsed.tensors.keys()) {
    result.set(name, await readTensorF32(parsed, name))
  }
  return result
}

function matrix({ data, shape }: Tensor): Matrix {
  return { data: Float64Array.from(data), shape: [shape[0], shape[1]] }
}

function wide({ data, shape }: Tensor): Tensor<FloatArray> {
  return { data: Float64Array.from(data), shape }
}

/** Largest error over the largest value. */
function deviation(got: ArrayLike<number>, expected: ArrayLike<number>): number {
  expect(got.length).toBe(expected.length)
  let [error, size] = [0, 0]
  for (let i = 0; i < got.length; i++) {
    error = Math.max(error, Math.abs(got[i] - expected[i]))
    size = Math.max(size, Math.abs(expected[i]))
  }
  return error / size
}

interface Golden {
  adapter: LoraAdapter
  /** The base's weight of a module as a linear layer has it, or an embedding. */
  weight(module: string): Matrix
  /** The same of a convolution, (d, in/groups, *kernel). */
  kernels(module: string): Tensor<FloatArray>
  tensors: Map<string, Tensor>
}

async function load(folder: string, { base }: Expected): Promise<Golden> {
  const adapter = await loadAdapter(new NodeDirectory(folder))
  const weights = await tensorsOf(path.join(root, `${base}.safetensors`))
  const weight = (module: string) => {
    const stored = matrix(weights.get(`${module}.weight`)!)
    return adapter.config.fanInFanOut ? transpose(stored) : stored
  }
  const kernels = (module: string) => wide(weights.get(`${module}.weight`)!)
  return { adapter, weight, kernels, tensors: await tensorsOf(path.join(folder, 'tensors.safetensors')) }
}

test('all kinds are here', () => {
  expect(cases.length).toBeGreaterThanOrEqual(25)
})

describe.each(cases)('$name', ({ folder, expected }) => {
  test('loads as PEFT loads it, and counts as PEFT counts', async () => {
    const { adapter } = await load(folder, expected)
    const report = inspectAdapter(adapter)
    expect(report.trainableParams).toBe(expected.trainableParams)
    const layers = new Map(report.layers.map((layer) => [layer.name, layer]))
    expect([...layers.keys()].sort()).toEqual(expected.layers.map(({ name }) => name).sort())
    for (const { name, kind, d, k, rank, alpha, scaling, normDelta } of expected.layers) {
      const layer = layers.get(name)!
      expect(layer).toMatchObject({ kind, d, k, rank, alpha })
      expect(layer.scaling / scaling).toBeCloseTo(1, 12)
      expect(layer.normDelta / normDelta).toBeCloseTo(1, 10)
    }
  })

  test('outputs are PEFT’s, merged or not, and unmerging is exact', async () => {
    const { adapter, weight, tensors } = await load(folder, expected)
    for (const [name, layer] of adapter) {
      layer.attachBase(weight(name))
      const input = matrix(tensors.get(`input.${name}`)!)
      const output = tensors.get(`output.${name}`)!.data
      expect(deviation(layer.forward(input).data, output)).toBeLessThan(1e-6)
      layer.merge()
      expect(deviation(layer.forward(input).data, output)).toBeLessThan(1e-6)
      layer.unmerge()
      expect(layer.baseWeight).toEqual(weight(name))
    }
    for (const [name, embedding] of adapter.embeddings) {
      embedding.attachBase(weight(name))
      const output = tensors.get(`output.${name}`)!.data
      expect(deviation(embedding.forward([3, 0, 31, 3]).data, output)).toBeLessThan(1e-6)
      embedding.merge()
      expect(deviation(embedding.forward([3, 0, 31, 3]).data, output)).toBeLessThan(1e-6)
      embedding.unmerge()
      expect(() => embedding.unmerge()).toThrow('not merged')
    }
  })

  test('outputs of convolutions are PEFT’s, merged or not; what PEFT cannot merge is refused', async () => {
    const { adapter, kernels, tensors } = await load(folder, expected)
    for (const [name, layer] of adapter.convolutions) {
      const { groups, ...geometry } = expected.layers.find((each) => each.name === name)!
      expect(layer.groups).toBe(groups)
      layer.attachBase(kernels(name), geometry)
      const input = wide(tensors.get(`input.${name}`)!)
      const output = tensors.get(`output.${name}`)!
      const got = layer.forward(input)
      expect(got.shape).toEqual(output.shape)
      expect(deviation(got.data, output.data)).toBeLessThan(1e-6)
      if (name === 'dilated' || groups! > 1) {
        expect(() => layer.merge()).toThrow(UnsupportedError)
        continue
      }
      layer.merge()
      expect(deviation(layer.forward(input).data, output.data)).toBeLessThan(1e-6)
      layer.unmerge()
      expect(layer.baseWeight).toEqual(kernels(name))
    }
  })

  test('effective weights are those that PEFT merges', async () => {
    const { adapter, weight, kernels, tensors } = await load(folder, expected)
    for (const [name, layer] of [...adapter, ...adapter.embeddings]) {
      const effective = layer.attachBase(weight(name)).effectiveWeight()
      const merged = matrix(tensors.get(`merged.${name}.weight`)!)
      const own = adapter.config.fanInFanOut ? transpose(merged) : merged
      expect(effective.shape).toEqual(own.shape)
      expect(deviation(effective.data, own.data)).toBeLessThan(1e-6)
    }
    for (const [name, layer] of adapter.convolutions) {
      layer.attachBase(kernels(name))
      if (layer.groups > 1) {
        expect(() => layer.effectiveWeight()).toThrow(/cannot be merged, as in PEFT/)
        continue
      }
      const effective = layer.effectiveWeight()
      const merged = tensors.get(`merged.${name}.weight`)!
      expect(effective.shape).toEqual(merged.shape)
      expect(deviation(effective.data, merged.data)).toBeLessThan(1e-6)
    }
  })

  test('is written again byte for byte, but for how a config spells its numbers', async () => {
    const saved = new MemoryDirectory()
    await saveAdapter(await loadAdapter(new NodeDirectory(folder)), saved)
    const bytes = readFileSync(path.join(folder, 'adapter_model.safetensors'))
    expect(Buffer.compare(Buffer.from(saved.files.get('adapter_model.safetensors')!), bytes)).toBe(0)
    const config = JSON.parse(new TextDecoder().decode(saved.files.get('adapter_config.json')))
    expect(config).toEqual(JSON.parse(readFileSync(path.join(folder, 'adapter_config.json'), 'utf8')))
  })
})
