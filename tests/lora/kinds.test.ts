// Adapters of every kind as PEFT saves them (tests/golden/kinds), on bases of a few kB: parameter counts, outputs and
// merged weights equal PEFT's, and saving an adapter again gives the same files, except for how the config spells its
// numbers.

import path from 'node:path'
import { describe, expect, test } from 'vitest'
import { type FloatArray, type LoraAdapter, loadAdapter, type Matrix, type Tensor } from '../../src/api/node.js'
import { transpose } from '../../src/core/base/tensor.js'
import { inspectAdapter } from '../../src/lora/peft/inspect.js'
import {
  asMatrix,
  deviation,
  type ExpectedLayer,
  expectLayers,
  expectSavedAlike,
  goldenCases,
  goldenPath,
  inF64,
  tensorsOf,
} from '../golden.js'

interface Expected {
  base: string
  trainableParams: number
  layers: (ExpectedLayer & {
    kind: string
    /** Set for a convolution. */
    groups?: number
  })[]
}

const cases = goldenCases<Expected>('kinds')

interface Golden {
  adapter: LoraAdapter
  /** Returns the base's weight of a linear layer or an embedding. */
  weight(module: string): Matrix
  /** Returns the base's weight of a convolution (d, in/groups, *kernel). */
  kernels(module: string): Tensor<FloatArray>
  tensors: Map<string, Tensor>
}

async function load(folder: string, { base }: Expected): Promise<Golden> {
  const adapter = await loadAdapter(folder)
  const weights = await tensorsOf(goldenPath('kinds', `${base}.safetensors`))
  const weight = (module: string) => {
    const stored = asMatrix(inF64(weights.get(`${module}.weight`)!))
    return adapter.config.fanInFanOut ? transpose(stored) : stored
  }
  const kernels = (module: string) => inF64(weights.get(`${module}.weight`)!)
  return { adapter, weight, kernels, tensors: await tensorsOf(path.join(folder, 'tensors.safetensors')) }
}

/** Returns rows of an embedding, one after the other. */
function rowsAt({ data, shape: [, width] }: Matrix, tokens: readonly number[]): Float64Array {
  return Float64Array.from(tokens.flatMap((token) => [...data.subarray(token * width, (token + 1) * width)]))
}

test('all kinds are here', () => {
  expect(cases.length).toBeGreaterThanOrEqual(25)
})

describe.each(cases)('$name', ({ folder, expected }) => {
  test('loads as PEFT loads it, and counts as PEFT counts', async () => {
    const { adapter } = await load(folder, expected)
    const report = await inspectAdapter(adapter)
    expect(report.trainableParams).toBe(expected.trainableParams)
    expectLayers(report.layers, expected.layers)
  })

  test('outputs are PEFT’s, merged or not, and unmerging is exact', async () => {
    const { adapter, weight, tensors } = await load(folder, expected)
    for (const layer of adapter.parts('linear')) {
      const { name } = layer
      layer.attachBase(weight(name))
      const input = asMatrix(inF64(tensors.get(`input.${name}`)!))
      const output = tensors.get(`output.${name}`)!.data
      expect(deviation(layer.forward(input).data, output)).toBeLessThan(1e-6)
      layer.merge()
      expect(deviation(layer.forward(input).data, output)).toBeLessThan(1e-6)
      layer.unmerge()
      expect(layer.baseWeight).toEqual(weight(name))
    }
    for (const embedding of adapter.parts('embedding')) {
      const { name } = embedding
      const output = tensors.get(`output.${name}`)!.data
      const effective = embedding.effectiveWeight(weight(name))
      expect(deviation(rowsAt(effective, [3, 0, 31, 3]), output)).toBeLessThan(1e-6)
    }
  })

  test('effective weights are those that PEFT merges', async () => {
    const { adapter, weight, kernels, tensors } = await load(folder, expected)
    for (const layer of adapter.parts('linear', 'embedding')) {
      const { name } = layer
      const own =
        layer.kind === 'linear' ? layer.attachBase(weight(name)).effectiveWeight() : layer.effectiveWeight(weight(name))
      const merged = asMatrix(inF64(tensors.get(`merged.${name}.weight`)!))
      const theirs = adapter.config.fanInFanOut ? transpose(merged) : merged
      expect(own.shape).toEqual(theirs.shape)
      expect(deviation(own.data, theirs.data)).toBeLessThan(1e-6)
    }
    for (const layer of adapter.parts('convolution')) {
      const { name } = layer
      expect(layer.groups).toBe(expected.layers.find((each) => each.name === name)!.groups)
      if (layer.groups > 1) {
        expect(() => layer.effectiveWeight(kernels(name))).toThrow(/cannot be merged, as in PEFT/)
        continue
      }
      const effective = layer.effectiveWeight(kernels(name))
      const merged = tensors.get(`merged.${name}.weight`)!
      expect(effective.shape).toEqual(merged.shape)
      expect(deviation(effective.data, merged.data)).toBeLessThan(1e-6)
    }
  })

  test('is written again byte for byte, but for how a config spells its numbers', async () => {
    await expectSavedAlike(folder)
  })
})
