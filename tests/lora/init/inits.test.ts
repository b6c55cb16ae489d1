// First factors and base weights against PEFT's (tests/golden/inits), given the same draws.

import { describe, expect, test } from 'vitest'
import {
  ConfigError,
  type Init,
  LoraAdapter,
  type LoraConfigInput,
  LoraLayer,
  type Matrix,
  ShapeError,
  UnsupportedError,
} from '../../../src/api/node.js'
import { norm, product } from '../../../src/core/linalg/product.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { orthogonalFactors } from '../../../src/lora/init/decomposed.js'
import { firstFactors } from '../../../src/lora/init/initializers.js'
import { STARTS } from '../../../src/lora/init/inits.js'
import { goldenPath, matricesIn } from '../../golden.js'
import { maxDifference, random } from '../matrices.js'

const directory = new NodeDirectory(goldenPath())
const base = await matricesIn(directory, 'kinds/qwen2.safetensors')
const first = await matricesIn(directory, 'inits/first.safetensors')
const MODULES = ['self_attn.q_proj', 'self_attn.k_proj', 'mlp.down_proj'].map((name) => `model.layers.0.${name}`)
const CONFIG: LoraConfigInput = { rank: 3, alpha: 5 }

function weightOf(module: string): Matrix {
  return base.get(`${module}.weight`)!
}

function golden(kind: string, module: string) {
  const of = (what: string) => first.get(`${kind}.${module}.${what}`)!
  return { weightA: of('A'), weightB: of('B'), baseWeight: of('base'), of }
}

function delta({ weightA, weightB }: { weightA: Matrix; weightB: Matrix }): Matrix {
  return product(weightB, weightA)
}

/** Returns the largest difference, where each pair of a column and a row may have both signs swapped. */
function distanceOfPairs(layer: { weightA: Matrix; weightB: Matrix }, peft: { weightA: Matrix; weightB: Matrix }) {
  const gram = (m: Matrix, columns: boolean) => product(m, m, columns ? { transposeB: true } : { transposeA: true })
  const abs = (m: Matrix): Matrix => ({ data: m.data.map(Math.abs), shape: m.shape })
  return Math.max(
    maxDifference(abs(layer.weightA), abs(peft.weightA)),
    maxDifference(abs(layer.weightB), abs(peft.weightB)),
    maxDifference(gram(layer.weightB, true), gram(peft.weightB, true)),
  )
}

describe.each(MODULES)('%s', (module) => {
  test.each([
    ['pissa', 'pissa', {}],
    ['pissa-rslora', 'pissa', { useRslora: true }],
    ['olora', 'olora', {}],
  ] as [string, Init, LoraConfigInput][])('%s: factors and what is left of W are PEFT’s', (kind, init, config) => {
    const peft = golden(kind, module)
    const layer = new LoraLayer(weightOf(module), { ...CONFIG, ...config, init })
    expect(distanceOfPairs(layer, peft)).toBeLessThan(1e-5)
    if (init === 'olora') {
      expect(maxDifference(layer.weightA, peft.weightA)).toBeLessThan(1e-5)
      expect(maxDifference(layer.weightB, peft.weightB)).toBeLessThan(1e-5)
    }
    expect(maxDifference(delta(layer), delta(peft))).toBeLessThan(1e-5)
    expect(maxDifference(layer.baseWeight!, peft.baseWeight)).toBeLessThan(1e-5)
    expect(maxDifference(layer.effectiveWeight(), weightOf(module))).toBeLessThan(1e-6)
    const loaded = LoraLayer.fromFactors(peft.weightA, peft.weightB, { ...CONFIG, ...config, init })
    expect(maxDifference(loaded.attachBase(weightOf(module)).baseWeight!, peft.baseWeight)).toBeLessThan(1e-5)
  })

  test('orthogonal, from PEFT’s draws', () => {
    const peft = golden('orthogonal', module)
    const factors = orthogonalFactors(peft.of('draw0'), peft.of('draw1'), peft.of('draw2'))
    expect(maxDifference(factors.weightA, peft.weightA)).toBeLessThan(1e-5)
    expect(maxDifference(factors.weightB, peft.weightB)).toBeLessThan(1e-5)
  })
})

test.each([
  ['eva', 'initialize_lora_eva_weights'],
  ['lora-ga', 'preprocess_loraga'],
  ['corda', 'preprocess_corda'],
  ['mica', "init_lora_weights='mica'"],
] as [Init, string][])('%s is read, and not started: the error names the call of PEFT', (init, call) => {
  const message = new RegExp(`q: init: .*got ${init}.*PEFT.*${call}`)
  expect(() => new LoraLayer(random(8, 6, 1), { rank: 2, init }, 'q')).toThrow(message)
  expect(() => LoraLayer.ofShape([8, 6], { rank: 2, init }, 'q')).toThrow(message)
  expect(() => new LoraAdapter({ rank: 2, init }).addLayer('q', random(8, 6, 1))).toThrow(message)
  expect(LoraLayer.fromFactors(random(2, 6, 1), random(8, 2, 2), { init }).config.init).toBe(init)
})

test('loftq is no start either', () => {
  expect(() => new LoraAdapter({ init: 'loftq' as Init })).toThrow(/init: .*got "loftq".*PEFT.*LoftQConfig/)
})

test('starts that change the base say what they cannot do', () => {
  const w = random(8, 6, 1)
  expect(() => LoraLayer.ofShape([8, 6], { rank: 2, init: 'pissa' }, 'q')).toThrow(UnsupportedError)
  const loaded = LoraLayer.fromFactors(random(2, 6, 1), random(8, 2, 2), { init: 'lora-ga' }, 'q')
  expect(() => loaded.attachBase(w)).toThrow(/q\.attachBase: init lora-ga/)
  loaded.baseWeight = w
  expect(loaded.effectiveWeight().shape).toEqual([8, 6])
  expect(() => LoraLayer.fromFactors(random(7, 6, 1), random(8, 7, 2), { init: 'pissa' }).attachBase(w)).toThrow(
    /at most 6/,
  )
  for (const config of [
    { loraBias: true },
    { targetParameters: ['w'] },
    { init: 'olora', fanInFanOut: true },
  ] as const) {
    expect(() => new LoraAdapter({ init: 'pissa', ...config })).toThrow(ConfigError)
  }
  expect(() => new LoraLayer(w, { rank: 3, init: 'orthogonal' })).toThrow(/rank: .*even/)
})

test.each(STARTS.filter((init) => init !== 'random'))('%s: the first effective weight is W, in f32 and f64', (init) => {
  for (const precision of ['f32', 'f64'] as const) {
    const w = random(9, 14, 3, precision)
    const layer = new LoraLayer(w, { rank: 4, alpha: 3, init })
    expect(layer.weightA.data.constructor).toBe(w.data.constructor)
    expect(maxDifference(layer.effectiveWeight(), w)).toBeLessThan(precision === 'f32' ? 1e-6 : 1e-14)
  }
})

test.each(['pissa', 'olora'] as const)('%s: a rank above min(d, k) shrinks, s stays', (init) => {
  const weight = random(6, 12, 1)
  for (const useRslora of [false, true]) {
    const layer = new LoraLayer(weight, { rank: 8, alpha: 12, init, useRslora })
    expect([layer.rank, layer.weightA.shape, layer.weightB.shape]).toEqual([6, [6, 12], [6, 6]])
    expect(layer.scaling).toBeCloseTo(useRslora ? 12 / Math.sqrt(8) : 12 / 8, 12)
    expect(maxDifference(layer.effectiveWeight(), weight)).toBeLessThan(1e-12)
    const again = LoraLayer.fromFactors(layer.weightA, layer.weightB, { rank: 8, alpha: 12, init, useRslora })
    expect(again.config).toEqual(layer.config)
    expect(maxDifference(again.attachBase(weight).baseWeight!, layer.baseWeight!)).toBeLessThan(1e-12)
  }
  expect(() => LoraLayer.fromFactors(random(5, 12, 2), random(6, 5, 3), { rank: 8, init })).toThrow(ShapeError)
})

test('pissa-niter: PEFT’s draws are in no file, so it is read and not started', () => {
  const config = { rank: 2, init: 'pissa-niter-4' } as const
  expect(() => new LoraLayer(random(6, 12, 1), config)).toThrow(ConfigError)
  const layer = LoraLayer.fromFactors(random(2, 12, 1), random(6, 2, 1), config)
  expect(() => layer.attachBase(random(6, 12, 1))).toThrow(UnsupportedError)
})

test('orthogonal: A’s rows and B’s columns are in orthogonal halves, of the sizes that PEFT’s draws have', () => {
  const { weightA, weightB } = firstFactors(
    new LoraAdapter({ rank: 8, init: 'orthogonal' }).config,
    'q',
    [2000, 3000],
    new Float64Array(),
  )
  const nothing: Matrix = { data: new Float64Array(2000 * 3000), shape: [2000, 3000] }
  expect(maxDifference(product(weightB, weightA), nothing)).toBeLessThan(1e-12)
  // A = (N(0, 1) (k, 4) · orthonormal rows)ᵀ/10: ‖A‖² = 4·k/100 on average, and its relative deviation √(2/(4·k)).
  for (const { data, size } of [
    { data: weightA.data, size: 3000 },
    { data: weightB.data, size: 2000 },
  ]) {
    const square = norm({ data }) ** 2
    expect(Math.abs(square / ((4 * size) / 100) - 1)).toBeLessThan(4.5 * Math.sqrt(2 / (4 * size)))
  }
})

test('random: B within ±1/√r, uniform, A as kaiming-uniform', () => {
  const make = (init: Init) => LoraLayer.ofShape([3000, 50], { rank: 4, init }, 'q')
  const { weightA, weightB } = make('random')
  expect(weightA).toEqual(make('kaiming-uniform').weightA)
  const data = [...weightB.data]
  expect(data.every((value) => Math.abs(value) <= 0.5)).toBe(true)
  expect(Math.max(...data)).toBeGreaterThan(0.499)
  const [mean, square] = [1, 2].map((power) => data.reduce((sum, value) => sum + value ** power, 0) / data.length)
  expect(Math.abs(mean)).toBeLessThan(4.5 * Math.sqrt(1 / 12 / data.length))
  expect(Math.abs(square * 12 - 1)).toBeLessThan(4.5 / Math.sqrt(data.length))
})
