// Adapters whose initialization changed the base: loading them, and turning them into plain LoRA, as PEFT does
// (tests/golden/inits).

import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import {
  ConfigError,
  LoraAdapter,
  LoraLayer,
  loadAdapter,
  type Matrix,
  MemoryDirectory,
  MismatchError,
  saveAdapter,
  UnsupportedError,
} from '../../../src/api/node.js'
import { transpose } from '../../../src/core/base/tensor.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { configForLayer } from '../../../src/lora/config.js'
import { convertToPlain } from '../../../src/merge/tools/to-plain.js'
import { loadOnnx } from '../../../src/onnx/format/model.js'
import { expectSavedAlike, goldenCases, goldenPath, matricesIn } from '../../golden.js'
import { maxDifference, random } from '../../lora/matrices.js'
import { mergeCheckpoint, mergeOnnx } from '../toolkit.js'

const cases = goldenCases('inits').map(({ name }) => name)

/** Makes a checkpoint folder with a base of tests/golden/kinds. */
function baseFolder(name: string): MemoryDirectory {
  return new MemoryDirectory({ 'model.safetensors': readFileSync(goldenPath('kinds', `${name}.safetensors`)) }, name)
}

test('there are cases', () => expect(cases.length).toBeGreaterThanOrEqual(8))

describe.each(cases)('%s', async (name) => {
  const folder = new NodeDirectory(goldenPath('inits', name))
  const expected = JSON.parse(readFileSync(goldenPath('inits', name, 'expected.json'), 'utf8'))
  const golden = await matricesIn(folder, 'tensors.safetensors')
  const base = baseFolder(expected.base)
  const weights = await matricesIn(base, 'model.safetensors')
  const merged = [...golden].filter(([tensor]) => tensor.startsWith('merged.'))
  const stored = (weight: Matrix) => (expected.base === 'gpt2' ? transpose(weight) : weight)

  test('a loaded layer with its base is what PEFT merges', async () => {
    const adapter = await loadAdapter(folder)
    for (const layer of adapter.parts('linear')) {
      const module = layer.name
      const weight = weights.get(`${module}.weight`)!
      const effective = layer.attachBase(stored(weight)).effectiveWeight()
      expect(maxDifference(stored(effective), golden.get(`merged.${module}.weight`)!)).toBeLessThan(1e-5)
      expect(maxDifference(layer.baseWeight!, stored(weight))).toBeGreaterThan(1e-3)
    }
    for (const embedding of adapter.parts('embedding')) {
      const module = embedding.name
      const effective = embedding.effectiveWeight(weights.get(`${module}.weight`)!)
      expect(maxDifference(effective, golden.get(`merged.${module}.weight`)!)).toBeLessThan(1e-5)
    }
    expect(adapter.parts().length).toBe(merged.length)
  })

  test('is written again byte for byte', async () => {
    await expectSavedAlike(goldenPath('inits', name))
  })

  test('as plain LoRA it merges to the same weights', async () => {
    const plain = await convertToPlain(await loadAdapter(folder), base)
    const out = new MemoryDirectory({}, 'out')
    await mergeCheckpoint(base, plain, out)
    const result = await matricesIn(out, 'model.safetensors')
    for (const [tensor, weight] of merged) {
      expect(maxDifference(result.get(tensor.slice('merged.'.length))!, weight)).toBeLessThan(1e-5)
    }
  })

  test('PEFT’s own conversion has the same configuration and deltas', async () => {
    const plain = await convertToPlain(await loadAdapter(folder), base)
    const saved = new MemoryDirectory({}, 'plain')
    await saveAdapter(plain, saved)
    const config = JSON.parse(new TextDecoder().decode(saved.files.get('adapter_config.json')))
    expect(config.init_lora_weights).toBe(true)
    const again = await loadAdapter(saved)
    const before = await loadAdapter(folder)
    for (const { name: module, scaling } of before.parts('linear')) {
      expect(again.layer(module).scaling / scaling).toBeCloseTo(1, 12)
      expect(again.layer(module).rank).toBe(2 * configForLayer(before.config, module).rank)
    }
    if (expected.plain === null) return
    for (const [field, value] of Object.entries(expected.plain)) expect(config[field], field).toEqual(value)
    for (const layer of again.parts('linear')) {
      expect(maxDifference(stored(layer.delta()), golden.get(`plain.${layer.name}`)!)).toBeLessThan(1e-5)
    }
  })

  test('merging it as it is, is refused, with the way out', async () => {
    for (const adapter of [folder, await loadAdapter(folder)]) {
      const merge = mergeCheckpoint(base, adapter, new MemoryDirectory({}, 'out'))
      await expect(merge).rejects.toThrow(UnsupportedError)
      await expect(merge).rejects.toThrow(/(pissa|olora), .*merging.*lowrank to-plain/)
    }
  })
})

test('merging into an .onnx file is refused too', async () => {
  const adapter = await loadAdapter(goldenPath('peft', 'pissa'))
  const model = await loadOnnx(
    new NodeDirectory(fileURLToPath(new URL('../../../models/union-3m', import.meta.url))),
    'onnx/model.onnx',
  )
  try {
    await expect(mergeOnnx(model, adapter, new MemoryDirectory({}, 'out'))).rejects.toThrow(/pissa, .*toPlain/)
  } finally {
    await model.close()
  }
})

describe('convertToPlain', () => {
  const w = random(8, 6, 1, 'f32')

  function trained(adapter: LoraAdapter): LoraAdapter {
    for (const layer of adapter.parts('linear')) {
      layer.weightA.data.forEach((value, i) => {
        layer.weightA.data[i] = value + 0.1 * Math.sin(i)
      })
      layer.weightB = random(layer.d, layer.rank, 5)
    }
    return adapter
  }

  function fresh(init: 'pissa-niter-1' | 'lora-ga' | 'olora' | 'kaiming-uniform'): LoraAdapter {
    const adapter = new LoraAdapter({ rank: 2, alpha: 3, init, useRslora: true, alphaPattern: { b: 5 } })
    for (const name of ['a', 'b']) {
      if (init === 'olora' || init === 'kaiming-uniform') adapter.addLayer(name, w)
      else {
        const layer = adapter.addFactors(name, random(2, 6, 2, 'f32'), random(8, 2, 3, 'f32'))
        const delta = layer.delta()
        layer.baseWeight = { ...w, data: w.data.map((value, i) => value - delta.data[i]) }
      }
    }
    return adapter
  }

  test.each(['pissa-niter-1', 'lora-ga', 'olora'] as const)(
    'of %s, from the adapter before training, is exact',
    async (init) => {
      const adapter = trained(fresh(init))
      const plain = await convertToPlain(adapter, fresh(init))
      for (const { name, weightA, weightB, config } of plain.parts('linear')) {
        const effective = LoraLayer.fromFactors(weightA, weightB, config).attachBase(w).effectiveWeight()
        expect(maxDifference(effective, adapter.layer(name).effectiveWeight())).toBeLessThan(1e-6)
        expect(config).toMatchObject({ init: 'kaiming-uniform', rank: 4, alpha: (name === 'a' ? 3 : 5) * Math.SQRT2 })
      }
    },
  )

  test.each(['pissa-niter-1', 'lora-ga'] as const)('of %s is refused without it', async (init) => {
    const converted = convertToPlain(trained(fresh(init)), () => w)
    await expect(converted).rejects.toThrow(/cannot be computed from the base weights.*`initial`/)
  })

  test('reads one weight at a time, from a function', async () => {
    const adapter = trained(fresh('olora'))
    const asked: unknown[] = []
    const plain = await convertToPlain(adapter, async (name, shape) => {
      asked.push([name, shape])
      return w
    })
    expect(asked).toEqual([
      ['a', [8, 6]],
      ['b', [8, 6]],
    ])
    const { weightA, weightB, config } = plain.layer('b')
    const effective = LoraLayer.fromFactors(weightA, weightB, config).attachBase(w).effectiveWeight()
    expect(maxDifference(effective, adapter.layer('b').effectiveWeight())).toBeLessThan(1e-6)
  })

  test('carries magnitudes, biases and what replaces tensors along', async () => {
    const adapter = new LoraAdapter({ rank: 2, init: 'pissa', useDora: true, modulesToSave: ['head'] })
    const layer = adapter.addLayer('a', w)
    layer.weightB = random(8, 2, 3)
    const data = new Uint8Array(4)
    adapter.addReplacement('head.bias', { dtype: 'fp32', shape: [1], data })
    const plain = await convertToPlain(adapter, () => w)
    expect(plain.layer('a').magnitude).toEqual(layer.magnitude)
    expect(plain.get('head.bias', 'replacement')?.data).toBe(data)
    const effective = plain.layer('a').attachBase(w).effectiveWeight()
    expect(maxDifference(effective, layer.effectiveWeight())).toBeLessThan(1e-6)
  })

  test('refuses what it cannot know', async () => {
    await expect(convertToPlain(fresh('kaiming-uniform'), () => w)).rejects.toThrow(ConfigError)
    await expect(convertToPlain(fresh('lora-ga'), () => w)).rejects.toThrow(/init lora-ga.*before training/)
    await expect(convertToPlain(fresh('olora'), () => random(8, 5, 1))).rejects.toThrow(/a\.baseWeight: wrong shape/)
    const other = new LoraAdapter({ rank: 2, alpha: 3, init: 'olora' })
    for (const name of ['a', 'b']) other.addLayer(name, w)
    await expect(convertToPlain(fresh('olora'), other)).rejects.toThrow(MismatchError)
    await expect(convertToPlain(fresh('olora'), baseFolder('qwen2'))).rejects.toThrow(
      /none of its layers is in the base/,
    )
  })
})
