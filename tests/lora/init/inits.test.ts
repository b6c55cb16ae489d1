// First factors, base weights and EVA's ranks against PEFT's (tests/golden/inits), given the same draws.

import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { ConfigError, ShapeError, StateError, UnsupportedError } from '../../../src/base/errors.js'
import type { Matrix } from '../../../src/base/tensor.js'
import { NodeDirectory } from '../../../src/io/node/files.js'
import { norm, product } from '../../../src/linalg/product.js'
import { svd } from '../../../src/linalg/svd.js'
import { LoraAdapter } from '../../../src/lora/adapter.js'
import type { LoraConfigInput } from '../../../src/lora/config.js'
import {
  cordaInitialize,
  evaInitialize,
  type LoraGaOptions,
  loftqInitialize,
  loraGaInitialize,
} from '../../../src/lora/init/data-inits.js'
import { fastPissaFactors, orthogonalFactors } from '../../../src/lora/init/decomposed.js'
import { firstFactors } from '../../../src/lora/init/initializers.js'
import { INITS, type Init } from '../../../src/lora/init/inits.js'
import { LoraLayer } from '../../../src/lora/layer.js'
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

/** The largest difference when signs of the pairs of columns and rows are free. */
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

  test('pissa-niter-2, from PEFT’s draws', () => {
    const peft = golden('pissa-niter-2', module)
    const factors = fastPissaFactors(weightOf(module), peft.of('draw0'), 2, 5 / 3)
    expect(distanceOfPairs(factors, peft)).toBeLessThan(1e-5)
    expect(maxDifference(delta(factors), delta(peft))).toBeLessThan(1e-5)
  })

  test('orthogonal, from PEFT’s draws', () => {
    const peft = golden('orthogonal', module)
    const factors = orthogonalFactors(peft.of('draw0'), peft.of('draw1'), peft.of('draw2'))
    expect(maxDifference(factors.weightA, peft.weightA)).toBeLessThan(1e-5)
    expect(maxDifference(factors.weightB, peft.weightB)).toBeLessThan(1e-5)
  })

  test('mica: B spans what PEFT’s spans, A is zero, W stays', () => {
    const peft = golden('mica', module)
    const layer = new LoraLayer(weightOf(module), { ...CONFIG, init: 'mica' })
    expect(distanceOfPairs(layer, peft)).toBeLessThan(1e-5)
    expect(norm(layer.weightA)).toBe(0)
    expect(maxDifference(layer.baseWeight!, weightOf(module))).toBe(0)
  })

  test.each([
    ['lora-ga', {}],
    ['lora-ga-ArBr-unit', { direction: 'ArBr', scale: 'unit' }],
    ['lora-ga-A2rBr-gd_scale', { direction: 'A2rBr', scale: 'gd-scale' }],
  ] as [string, LoraGaOptions][])('%s: from a gradient', (kind, options) => {
    const peft = golden(kind, module)
    const layer = new LoraLayer(weightOf(module), { ...CONFIG, init: 'lora-ga' })
    for (let again = 0; again < 2; again++) {
      loraGaInitialize(layer, peft.of('gradient'), options)
      // A and B hold vectors of different triples, whose signs are free one by one.
      expect(distanceOfPairs(layer, peft)).toBeLessThan(1e-5)
      expect(maxDifference(layer.effectiveWeight(), weightOf(module))).toBeLessThan(1e-6)
    }
    expect(maxDifference(layer.baseWeight!, weightOf(module))).toBeGreaterThan(1e-3)
  })

  test('lora-ga-ArB2r-weight_svd: from a gradient', () => {
    const peft = golden('lora-ga-ArB2r-weight_svd', module)
    const layer = new LoraLayer(weightOf(module), { ...CONFIG, init: 'lora-ga' })
    loraGaInitialize(layer, peft.of('gradient'), { scale: 'weight-svd' })
    // PEFT estimates W's largest singular value by few iterations; here it is exact.
    const size = norm(peft.weightB) / norm(layer.weightB)
    expect(Math.abs(size - 1)).toBeLessThan(0.03)
    const weightB = { data: layer.weightB.data.map((value) => value * size), shape: layer.weightB.shape }
    expect(distanceOfPairs({ weightA: layer.weightA, weightB }, peft)).toBeLessThan(1e-5)
  })

  test.each(['ipm', 'kpm'] as const)('corda, %s: from a covariance', (method) => {
    const peft = golden(`corda-${method}`, module)
    const layer = new LoraLayer(weightOf(module), { ...CONFIG, init: 'corda' })
    cordaInitialize(layer, covarianceOf(peft.of('inputs')), { method })
    expect(distanceOfPairs(layer, peft)).toBeLessThan(2e-5)
    expect(maxDifference(delta(layer), delta(peft))).toBeLessThan(1e-5)
    expect(maxDifference(layer.baseWeight!, peft.baseWeight)).toBeLessThan(1e-5)
  })
})

describe.each(MODULES)('loftqInitialize: %s', (module) => {
  const eighths = ({ data, shape }: Matrix): Matrix => ({ data: data.map((v) => Math.round(v * 8) / 8), shape })

  test.each([1, 3])('%i times: factors and what is quantized are PEFT’s', (iterations) => {
    const peft = golden(`loftq-${iterations}`, module)
    const layer = new LoraLayer(weightOf(module), { rank: 3, alpha: 3, init: 'kaiming-uniform' })
    loftqInitialize(layer, eighths, { iterations })
    expect(maxDifference(layer.baseWeight!, peft.baseWeight)).toBeLessThan(1e-7)
    expect(distanceOfPairs(layer, peft)).toBeLessThan(1e-5)
    expect(maxDifference(delta(layer), delta(peft))).toBeLessThan(1e-5)
  })

  test('s·B·A makes up for a given Q as well as its rank can', () => {
    const weight = weightOf(module)
    const layer = new LoraLayer(weight, { ...CONFIG, init: 'kaiming-uniform' })
    const quantized = eighths(weight)
    loftqInitialize(layer, () => quantized)
    const loss = { data: weight.data.map((value, i) => value - quantized.data[i]), shape: weight.shape }
    const rest = layer.effectiveWeight().data.map((value, i) => weight.data[i] - value)
    expect(norm({ data: rest }) / norm({ data: svd(loss).s.slice(3) })).toBeCloseTo(1, 5)
  })

  test('refuses layers whose init takes from the base, and other shapes', () => {
    const layer = new LoraLayer(weightOf(module), { ...CONFIG, init: 'pissa' })
    expect(() => loftqInitialize(layer, eighths)).toThrow(/init: .*plain LoRA/)
    const plain = new LoraLayer(weightOf(module), CONFIG)
    expect(() => loftqInitialize(plain, () => random(2, 2, 1))).toThrow(ShapeError)
    expect(() => loftqInitialize(plain, eighths, { iterations: 0 })).toThrow(ConfigError)
  })
})

/** As PEFT gathers it from two batches of 20 rows. */
function covarianceOf({ data, shape: [n, k] }: Matrix): Matrix {
  const sum: Matrix = { data: new Float64Array(k * k), shape: [k, k] }
  for (let from = 0; from < n; from += 20) {
    const batch = Float64Array.from(data.subarray(from * k, (from + 20) * k))
    const size = Math.abs(batch.reduce((most, value) => Math.max(most, value)))
    const x: Matrix = { data: batch.map((value) => value / size), shape: [20, k] }
    product(x, x, { transposeA: true, scale: 0.5, addTo: sum })
  }
  return sum
}

describe('evaInitialize', async () => {
  const tensors = await matricesIn(directory, 'inits/eva.safetensors')
  const { layers, dropped, rankPattern, alphaPattern } = JSON.parse(readFileSync(goldenPath('inits/eva.json'), 'utf8'))
  const inputs = [...tensors]
    .filter(([name]) => name.startsWith('inputs.'))
    .map(([name, x]) => [name.slice('inputs.'.length), x] as const)

  function fresh(): LoraAdapter {
    const adapter = new LoraAdapter({ rank: 2, alpha: 3, init: 'eva', rankPattern: { 'layers.1.mlp.down_proj': 4 } })
    for (const [name] of inputs) adapter.addLayer(name, weightOf(name))
    return adapter
  }

  test('gives the ranks, alphas and directions that PEFT gives', () => {
    const adapter = evaInitialize(fresh(), inputs)
    expect(adapter.config).toMatchObject({ rankPattern, alphaPattern, init: 'eva' })
    const summary = adapter.parts('linear').map(({ name, rank, config }) => ({ name, rank, alpha: config.alpha }))
    const byName = (a: { name: string }, b: { name: string }) => (a.name < b.name ? -1 : 1)
    expect(summary.sort(byName)).toEqual(layers.sort(byName))
    expect(inputs.map(([name]) => name).filter((name) => !adapter.has(name))).toEqual(dropped)
    for (const layer of adapter.parts('linear')) {
      const { name } = layer
      // PEFT's decomposition is a randomized one in float32.
      expect(maxDifference(layer.weightA, tensors.get(`A.${name}`)!)).toBeLessThan(5e-4)
      expect(norm(layer.weightB)).toBe(0)
      expect(maxDifference(layer.effectiveWeight(), weightOf(name))).toBe(0)
    }
    expect(adapter.parts('linear').reduce((sum, { rank }) => sum + rank, 0)).toBe(14)
  })

  test('leaves ranks alone with ρ = 1, and layers without inputs as they start', () => {
    const adapter = evaInitialize(fresh(), inputs.slice(1), { rho: 1, whiten: true })
    const ranks = (of: LoraAdapter) => of.parts('linear').map(({ rank }) => rank)
    expect(ranks(adapter)).toEqual(ranks(fresh()))
    const [{ name, weightA }] = adapter.parts('linear')
    expect(weightA).toEqual(fresh().layer(name).weightA)
  })

  test('refuses what does not fit', () => {
    expect(() => evaInitialize(fresh(), inputs, { rho: 0.5 })).toThrow(ConfigError)
    expect(() => evaInitialize(fresh(), [[inputs[0][0], random(1, 12, 1)]])).toThrow(ShapeError)
    expect(() => evaInitialize(fresh(), [[inputs[0][0], random(9, 11, 1)]])).toThrow(ShapeError)
  })
})

test('starts that need data, or change the base, say so', () => {
  const w = random(8, 6, 1)
  const layer = new LoraLayer(w, { rank: 2, init: 'kaiming-uniform' }, 'q')
  expect(() => loraGaInitialize(layer, w)).toThrow(/q\.init: .*expected lora-ga/)
  expect(() => cordaInitialize(LoraLayer.ofShape([8, 6], { rank: 2, init: 'corda' }), random(6, 6, 1))).toThrow(
    StateError,
  )
  expect(() => loraGaInitialize(new LoraLayer(w, { rank: 4, init: 'lora-ga' }), w)).toThrow(/rank.*at most 3/)
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

test.each(INITS.filter((init) => init !== 'random'))('%s: the first effective weight is W, in f32 and f64', (init) => {
  for (const precision of ['f32', 'f64'] as const) {
    const w = random(9, 14, 3, precision)
    const layer = new LoraLayer(w, { rank: 4, alpha: 3, init })
    expect(layer.weightA.data.constructor).toBe(w.data.constructor)
    expect(maxDifference(layer.effectiveWeight(), w)).toBeLessThan(precision === 'f32' ? 1e-6 : 1e-14)
  }
})

test.each(['pissa', 'pissa-niter-4', 'olora'] as const)('%s: a rank above min(d, k) shrinks, s stays', (init) => {
  const weight = random(6, 12, 1)
  for (const useRslora of [false, true]) {
    const layer = new LoraLayer(weight, { rank: 8, alpha: 12, init, useRslora })
    expect([layer.rank, layer.weightA.shape, layer.weightB.shape]).toEqual([6, [6, 12], [6, 6]])
    expect(layer.scaling).toBeCloseTo(useRslora ? 12 / Math.sqrt(8) : 12 / 8, 12)
    expect(maxDifference(layer.effectiveWeight(), weight)).toBeLessThan(1e-12)
    const again = LoraLayer.fromFactors(layer.weightA, layer.weightB, { rank: 8, alpha: 12, init, useRslora })
    expect(again.config).toEqual(layer.config)
    // The draws of pissa-niter are in no file.
    if (init === 'pissa-niter-4') expect(() => again.attachBase(weight)).toThrow(UnsupportedError)
    else expect(maxDifference(again.attachBase(weight).baseWeight!, layer.baseWeight!)).toBeLessThan(1e-12)
  }
  expect(() => LoraLayer.fromFactors(random(5, 12, 2), random(6, 5, 3), { rank: 8, init })).toThrow(ShapeError)
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
