import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { ConfigError, type LoraConfigInput } from '../../src/api/node.js'
import { configForLayer, resolveConfig, scalingOf } from '../../src/lora/config.js'
import { TRAIN_DEFAULTS } from '../../src/train/settings.js'

test('defaults', () => {
  expect(resolveConfig()).toMatchObject({
    rank: 8,
    alpha: 8,
    dropout: 0,
    targetModules: [],
    seed: 42,
    init: 'normal',
    useRslora: false,
    rankPattern: {},
    alphaPattern: {},
    bias: 'none',
  })
  expect(resolveConfig({ rank: undefined })).toEqual(resolveConfig())
})

test('training has its own, in one place', () => {
  expect(resolveConfig(TRAIN_DEFAULTS.config)).toMatchObject({
    rank: 8,
    alpha: 16,
    dropout: 0,
    init: 'kaiming-uniform',
    targetModules: 'all-linear',
  })
})

describe('out of range', () => {
  test.each<[string, LoraConfigInput, RegExp]>([
    ['rank 0', { rank: 0 }, /^rank: not valid; expected an integer of at least 1, got 0$/],
    ['rank negative', { rank: -4 }, /^rank: .*got -4/],
    ['rank fractional', { rank: 2.5 }, /^rank: .*got 2.5/],
    ['rank NaN', { rank: Number.NaN }, /^rank: .*got NaN/],
    ['rank as text', { rank: '8' as never }, /^rank: .*got "8"/],
    ['alpha infinite', { alpha: Number.POSITIVE_INFINITY }, /^alpha: .*got Infinity/],
    ['dropout above 1', { dropout: 1.5 }, /^dropout: .*\[0, 1\], got 1\.5/],
    ['dropout negative', { dropout: -0.1 }, /^dropout: /],
    ['dropout NaN', { dropout: Number.NaN }, /^dropout: /],
    ['seed fractional', { seed: 0.5 }, /^seed: .*a safe integer, got 0.5/],
    ['seed too large', { seed: 2 ** 53 }, /^seed: /],
    [
      'init unknown',
      { init: 'xavier' as never },
      /^init: .*normal, kaiming-uniform, gaussian, .*pissa, olora, got "xavier"/,
    ],
    ['targetModules a number', { targetModules: 3 as never }, /^targetModules: /],
    ['targetModules with an empty name', { targetModules: [''] }, /^targetModules: /],
    ['targetModules no expression', { targetModules: '(q_proj' }, /^targetModules: not a regular expression/],
    ['rankPattern with rank 0', { rankPattern: { q: 0 } }, /^rankPattern: .*got \{"q":0\}/],
    ['a Map of ranks with rank 0', { rankPattern: new Map([['q', 0]]) }, /^rankPattern: .*got \{"q":0\}/],
    ['a Map of alphas with none', { alphaPattern: new Map([['q', null]]) as never }, /^alphaPattern: /],
    ['a Map of tokens', { trainableTokenIndices: new Map([['embed', [1]]]) as never }, /^trainableTokenIndices: /],
    ['rankPattern no expression', { rankPattern: { '(q': 2 } }, /^rankPattern \(q: not a regular expression/],
    ['alphaPattern with no number', { alphaPattern: { q: Number.NaN } }, /^alphaPattern: /],
    [
      'layers with an expression',
      { targetModules: 'q', layersToTransform: [1] },
      /^layersToTransform: works only with a list/,
    ],
    ['layersPattern alone', { targetModules: ['q'], layersPattern: 'h' }, /^layersPattern: has no effect without/],
    [
      'a field that does not exist',
      { ranks: 8 } as never,
      /^ranks: a LoRA config has no such option. Did you mean rank/,
    ],
    ['a field in the spelling of PEFT', { use_rslora: true } as never, /^use_rslora: .*useRslora/],
  ])('%s', (_, input, message) => {
    expect(() => resolveConfig(input)).toThrow(ConfigError)
    expect(() => resolveConfig(input)).toThrow(message)
  })

  test('DoRA with a bias of B, which PEFT has not', () => {
    expect(() => resolveConfig({ useDora: true, loraBias: true })).toThrow(
      /^loraBias: cannot be used together with DoRA/,
    )
  })
})

test('a config cannot change once it is resolved, nor through what it was made from', () => {
  const targetModules = ['q_proj']
  const rankPattern = { q_proj: 2 }
  const config = resolveConfig({ targetModules, rankPattern })
  targetModules.push('k_proj')
  rankPattern.q_proj = 3
  expect(config.targetModules).toEqual(['q_proj'])
  expect(config.rankPattern).toEqual({ q_proj: 2 })
  expect(() => {
    ;(config as { rank: number }).rank = 3
  }).toThrow(TypeError)
  expect(() => (config.targetModules as string[]).push('x')).toThrow(TypeError)
  expect(resolveConfig(config)).toBe(config)
})

test('scaling', () => {
  expect(scalingOf({ rank: 8, alpha: 16, useRslora: false })).toBe(2)
  expect(scalingOf({ rank: 16, alpha: 8, useRslora: true })).toBe(2)
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 512 }), fc.double({ min: 0.1, max: 512, noNaN: true }), (rank, alpha) => {
      expect(scalingOf({ rank, alpha, useRslora: false }) * rank).toBeCloseTo(alpha, 9)
      expect(scalingOf({ rank, alpha, useRslora: true }) * Math.sqrt(rank)).toBeCloseTo(alpha, 9)
    }),
  )
})

describe('patterns', () => {
  const config = resolveConfig({
    rank: 8,
    alpha: 16,
    rankPattern: { 'layers\\.0\\..*': 2, q_proj: 4 },
    alphaPattern: { '^model\\.layers\\.1\\.q_proj': 32, proj: 1 },
  })

  test.each([
    ['model.layers.0.q_proj', 2, 16],
    ['model.layers.1.q_proj', 4, 32],
    ['model.layers.2.q_proj', 4, 16],
    ['q_proj', 4, 16],
    ['model.layers.2.xq_proj', 8, 16],
    ['a.proj', 8, 1],
  ])('%s has rank %i and alpha %i', (name, rank, alpha) => {
    expect(configForLayer(config, name)).toMatchObject({ rank, alpha, rankPattern: {}, alphaPattern: {} })
  })

  test('without patterns a layer shares its adapter’s config', () => {
    const plain = resolveConfig({ rank: 3 })
    expect(configForLayer(plain, 'x')).toBe(plain)
  })
})
