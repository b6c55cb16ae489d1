// Adapted parameters as PEFT saves them (tests/golden/experts), on small mixtures of experts: numbers, outputs, merged
// parameters, and back.

import path from 'node:path'
import { describe, expect, test } from 'vitest'
import {
  ConfigError,
  ExpertLora,
  FormatError,
  LoraAdapter,
  LoraLayer,
  loadAdapter,
  MemoryDirectory,
  MismatchError,
  ShapeError,
  saveAdapter,
  UnsupportedError,
} from '../../../src/api/node.js'
import { transpose } from '../../../src/core/base/tensor.js'
import { rowsOf } from '../../../src/core/linalg/product.js'
import { expertColumns } from '../../../src/lora/kinds/experts.js'
import { inspectAdapter } from '../../../src/lora/peft/inspect.js'
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
} from '../../golden.js'
import { adapterFolder, tensor } from '../adapter-folder.js'

interface Expected {
  base: string
  trainableParams: number
  parameters: (ExpectedLayer & {
    experts: number
    shape: number[]
    isInputMajor: boolean
  })[]
}

const cases = goldenCases<Expected>('experts')

test('all cases are here', () => {
  expect(cases.length).toBeGreaterThanOrEqual(9)
})

describe.each(cases)('$name', ({ folder, expected }) => {
  test('loads as PEFT loads it, and counts as PEFT counts', async () => {
    const report = await inspectAdapter(await loadAdapter(folder))
    expect(report.trainableParams).toBe(expected.trainableParams)
    expectLayers(
      report.layers.filter(({ kind }) => kind === 'parameter'),
      expected.parameters.map((parameter) => ({ ...parameter, kind: 'parameter' })),
    )
    for (const { name, experts } of expected.parameters) {
      expect(report.layers.find((layer) => layer.name === name)?.experts).toBe(experts)
    }
  })

  test('experts compute what PEFT’s do, merged or not', async () => {
    const adapter = await loadAdapter(folder)
    const base = await tensorsOf(goldenPath('experts', `${expected.base}-base`, 'fused.safetensors'))
    const tensors = await tensorsOf(path.join(folder, 'tensors.safetensors'))
    for (const { name, experts, d, k, shape, isInputMajor } of expected.parameters) {
      const parameter = adapter.get(name, 'parameter')!
      const merged = tensors.get(`merged.${name}`)!
      const effective = parameter.effectiveWeight(inF64(base.get(name)!), { isInputMajor })
      expect(effective.shape).toEqual(shape)
      expect(deviation(effective.data, merged.data)).toBeLessThan(1e-6)

      const input = asMatrix(inF64(tensors.get(`input.${name}`)!))
      const output = tensors.get(`output.${name}`)!.data
      const weights = { data: inF64(base.get(name)!).data, shape: [experts * d, k] as [number, number] }
      for (let e = 0; e < experts; e++) {
        const stored = rowsOf(isInputMajor ? { ...weights, shape: [experts * k, d] } : weights, e, experts)
        const [a, b] = [rowsOf(parameter.weightA, e, experts), expertColumns(parameter.weightB, e, experts)]
        const layer = LoraLayer.fromFactors(a, b, parameter.config).attachBase(
          isInputMajor ? transpose(stored) : stored,
        )
        const own = output.subarray(e * 2 * d, (e + 1) * 2 * d)
        expect(deviation(layer.forward(input).data, own)).toBeLessThan(1e-6)
        layer.merge()
        expect(deviation(layer.forward(input).data, own)).toBeLessThan(1e-6)
      }
    }
  })

  test('is written again byte for byte', async () => {
    await expectSavedAlike(folder)
  })
})

describe('a parameter of its own', () => {
  const config = { rank: 2, alpha: 6 }
  const random = (rows: number, columns: number) => {
    return Array.from({ length: rows }, (_, i) =>
      Array.from({ length: columns }, (_, j) => Math.sin(1 + i * 7 + j * 3)),
    )
  }
  const parameter = () => new ExpertLora(random(6, 4), random(5, 6), config, 'moe.experts.up')

  test('has the experts that its ranks make', () => {
    expect(parameter()).toMatchObject({
      experts: 3,
      d: 5,
      k: 4,
      rank: 2,
      scaling: 3,
      module: 'moe.experts',
    })
    expect(parameter().trainableParams()).toBe(3 * 2 * 9)
    expect(parameter().totalParams()).toBe(3 * 20 + 3 * 2 * 9)
    expect(() => new ExpertLora(random(5, 4), random(5, 5), config)).toThrow('no number of experts')
    expect(() => new ExpertLora(random(6, 4), random(5, 4), config)).toThrow(ShapeError)
  })

  test('gives back the factors that it was made from', () => {
    const { weightA, weightB } = parameter()
    expect([...weightA.data]).toEqual(random(6, 4).flat())
    expect([...weightB.data]).toEqual(random(5, 6).flat())
  })

  test('refuses bases of other shapes, and knows both layouts of the right one', () => {
    const zeros = (...shape: number[]) => ({ data: new Float64Array(shape.reduce((a, b) => a * b)), shape })
    for (const shape of [
      [3, 5, 5],
      [5, 4],
      [2, 5, 4],
      [3, 20],
    ]) {
      expect(() => parameter().effectiveWeight(zeros(...shape))).toThrow(ShapeError)
    }
    const outputMajor = parameter().effectiveWeight(zeros(3, 5, 4))
    const inputMajor = parameter().effectiveWeight(zeros(3, 4, 5))
    expect(outputMajor.shape).toEqual([3, 5, 4])
    expect(inputMajor.shape).toEqual([3, 4, 5])
    for (let e = 0; e < 3; e++) {
      for (let i = 0; i < 5; i++) {
        for (let j = 0; j < 4; j++) {
          expect(inputMajor.data[e * 20 + j * 5 + i]).toBe(outputMajor.data[e * 20 + i * 4 + j])
        }
      }
    }
  })

  test('is saved under names that PEFT reads, whatever order it was added in', async () => {
    const adapter = new LoraAdapter({ ...config, targetModules: [] })
    adapter.addExperts('moe.experts.down_proj', random(6, 4), random(5, 6))
    adapter.addExperts('moe.experts.gate_up_proj', random(6, 5), random(8, 6))
    const saved = new MemoryDirectory()
    await saveAdapter(adapter, saved)
    const fields = JSON.parse(new TextDecoder().decode(saved.files.get('adapter_config.json')))
    expect(fields.target_parameters).toEqual(['moe.experts.down_proj', 'moe.experts.gate_up_proj'])
    const again = await loadAdapter(saved)
    expect(again.get('moe.experts.down_proj')).toMatchObject({ d: 5, k: 4 })
    expect(again.get('moe.experts.gate_up_proj')).toMatchObject({ d: 8, k: 5 })
    expect(again.parts().map(({ kind }) => kind)).toEqual(['parameter', 'parameter'])
    expect(() => adapter.addExperts('moe.experts.down_proj', random(6, 4), random(5, 6))).toThrow(ConfigError)
    expect(() => adapter.addExperts('down_proj', random(6, 4), random(5, 6))).toThrow(ConfigError)
    adapter.addExperts('moe.experts.other', random(6, 4), random(5, 6))
    await expect(saveAdapter(adapter, new MemoryDirectory())).rejects.toThrow(UnsupportedError)
  })
})

describe('folders that must not load', () => {
  const CONFIG = {
    peft_type: 'LORA',
    r: 2,
    lora_alpha: 4,
    target_modules: ['q_proj'],
    target_parameters: ['experts.down_proj'],
  }
  const EXPERTS = 'base_model.model.mlp.experts'

  async function load(config: object, tensors: Record<string, number[]>): Promise<unknown> {
    const list = Object.entries(tensors).map(([name, shape]) => tensor(name, shape))
    return loadAdapter(await adapterFolder({ ...CONFIG, ...config }, list))
  }

  const PAIR = { [`${EXPERTS}.lora_A.weight`]: [6, 3], [`${EXPERTS}.lora_B.weight`]: [4, 6] }
  const INNER = { [`${EXPERTS}.base_layer.lora_A.weight`]: [6, 3], [`${EXPERTS}.base_layer.lora_B.weight`]: [4, 6] }

  test('the one that all cases start from loads', async () => {
    const adapter = (await load({}, PAIR)) as LoraAdapter
    expect(adapter.get('mlp.experts.down_proj')).toMatchObject({ experts: 3, d: 4, k: 3 })
    expect([adapter.size, adapter.parts('linear')]).toEqual([1, []])
  })

  test.each<[string, new (...args: never[]) => Error, string, object, Record<string, number[]>]>([
    ['half a pair', FormatError, 'half a pair', {}, { [`${EXPERTS}.lora_A.weight`]: [6, 3] }],
    ['a second parameter that none was named for', MismatchError, 'mean 1', {}, { ...PAIR, ...INNER }],
    [
      'a parameter without tensors',
      MismatchError,
      'mean 2',
      { target_parameters: ['experts.down_proj', 'experts.gate_up_proj'] },
      PAIR,
    ],
    [
      'a gap between levels',
      FormatError,
      'half a pair',
      { target_parameters: ['experts.down_proj', 'experts.up_proj'] },
      INNER,
    ],
    [
      'parameters of unknown order',
      UnsupportedError,
      'registers',
      { target_parameters: ['experts.one', 'experts.two'] },
      { ...PAIR, ...INNER },
    ],
    ['ranks of no number of experts', ShapeError, 'wrong shape', { r: 4 }, PAIR],
    ['factors that disagree', ShapeError, 'wrong shape', {}, { ...PAIR, [`${EXPERTS}.lora_B.weight`]: [4, 4] }],
    ['a magnitude', FormatError, 'no such tensor', {}, { ...PAIR, [`${EXPERTS}.lora_magnitude_vector`]: [4] }],
    ['DoRA', ConfigError, 'target', { use_dora: true }, PAIR],
    ['dropout', ConfigError, 'target', { lora_dropout: 0.1 }, PAIR],
    ['fan_in_fan_out', ConfigError, 'target', { fan_in_fan_out: true }, PAIR],
    ['names that are one text', ConfigError, 'a list of names', { target_parameters: 'experts.down_proj' }, PAIR],
  ])('%s', async (_, type, message, config, tensors) => {
    const error = (await load(config, tensors).catch((reason) => reason)) as Error
    expect(error).toBeInstanceOf(type)
    expect(error.message).toContain(message)
    expect(error.message).toContain('adapter/')
  })
})
