// combine: PEFT's numbers if PEFT is right, and the true sum even if PEFT's result differs.

import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { nodePlatform } from '../../../src/api/node/platform.js'
import { LoraAdapter, type LoraConfigInput, loadAdapter, MemoryDirectory, saveAdapter } from '../../../src/api/node.js'
import { usePlatform } from '../../../src/api/platform/platform.js'
import { combine } from '../../../src/api/tools.js'
import { svd } from '../../../src/core/linalg/svd.js'
import type { CombineSettings } from '../../../src/merge/tools/combine.js'
import { goldenPath, tensorsOf } from '../../golden.js'
import { changes, distance, randomAdapter, sumOf } from './adapters.js'

usePlatform(nodePlatform)

interface Case {
  adapters: string[]
  weights: number[]
  options: { combination_type: string; svd_rank?: number }
}

const { cases } = JSON.parse(readFileSync(goldenPath('combine', 'cases.json'), 'utf8')) as {
  cases: Record<string, Case>
}
const deltas = await tensorsOf(goldenPath('combine', 'deltas.safetensors'))

const inputsOf = ({ adapters, weights }: Case) =>
  adapters.map((name, i) => ({ adapter: goldenPath('combine', name), weight: weights[i] }))

/** PEFT's cat and svd are the sum, of all ranks and of one. */
const settingsOf = ({ options: { combination_type: type, svd_rank: rank } }: Case) =>
  (type === 'cat' || type === 'svd' ? { rank } : { combinationType: type }) as CombineSettings

it.each(Object.entries(cases))('gives what PEFT gives: %s', async (name, one) => {
  const { adapter } = await combine({ adapters: inputsOf(one), ...settingsOf(one) })
  const expected = [...deltas].filter(([key]) => key.startsWith(`${name}/`))
  expect(adapter.names().sort()).toEqual(expected.map(([key]) => key.slice(name.length + 1)).sort())
  const got = changes(adapter)
  // With rsLoRA, PEFT's result is √r times too large.
  const factor = name.endsWith('rslora') ? Math.sqrt(3) : 1
  for (const [key, { data }] of expected) {
    const layer = got.get(key.slice(name.length + 1))!.data.map((value) => factor * value)
    expect(distance(layer, data), key).toBeLessThan(2e-5)
  }
  // PEFT can load the saved adapter.
  const folder = new MemoryDirectory()
  await saveAdapter(adapter, folder)
  expect(folder.files.size).toBe(2)
})

describe('combine', () => {
  const kinds: LoraConfigInput[] = [
    { rank: 3, alpha: 5 },
    { rank: 4, alpha: 4, useRslora: true },
    { rank: 2, alpha: 6, rankPattern: { other: 5 }, alphaPattern: { other: 1 } },
  ]
  const weights = [1, -0.5, 0.25]
  const inputs = () => kinds.map((config, i) => ({ adapter: randomAdapter(config, 7 + i), weight: weights[i] }))

  it('gives the true sum of rsLoRA, patterns and all kinds of layers', async () => {
    const given = inputs()
    const { adapter, error } = await combine({ adapters: given })
    const [got, wanted] = [changes(adapter), sumOf(given)]
    expect([...got.keys()].sort()).toEqual([...wanted.keys()].sort())
    for (const [name, { data }] of wanted) expect(distance(got.get(name)!.data, data), name).toBeLessThan(2e-6)
    expect(error).toBeLessThan(1e-6)
  })

  it('keeps the closest change of the rank that is asked for', async () => {
    const given = inputs()
    const { adapter, layers } = await combine({ adapters: given, rank: 2 })
    const [got, wanted] = [changes(adapter), sumOf(given)]
    for (const name of ['linear', 'other', 'embedding']) {
      const { data, shape } = wanted.get(name)!
      const { s } = svd({ data, shape: shape as [number, number] })
      const best = Math.sqrt(s.subarray(2).reduce((sum, value) => sum + value ** 2, 0))
      const norm = Math.sqrt(s.reduce((sum, value) => sum + value ** 2, 0))
      const layer = layers.find((one) => one.name === name)!
      expect(distance(got.get(name)!.data, data)).toBeCloseTo(best / norm, 5)
      expect(layer.error).toBeCloseTo(best / norm, 6)
      expect(layer).toMatchObject({ rank: 2, fromRank: name === 'other' ? 3 + 4 + 5 : 9 })
    }
  })

  it('chooses ranks by energy', async () => {
    const { layers } = await combine({ adapters: inputs(), energy: 0.9 })
    for (const { error } of layers) expect(error).toBeLessThanOrEqual(Math.sqrt(0.1) + 1e-9)
  })

  it('tells how far linear is from the sum', async () => {
    const given = [1, 2].map((seed) => ({ adapter: randomAdapter({ rank: 4, alpha: 3 }, seed), weight: 1 }))
    const { adapter, layers } = await combine({ adapters: given, combinationType: 'linear' })
    const [got, wanted] = [changes(adapter), sumOf(given)]
    for (const { name, error } of layers) {
      expect(error).toBeGreaterThan(0.1)
      if (name !== 'groups') expect(error, name).toBeCloseTo(distance(got.get(name)!.data, wanted.get(name)!.data), 4)
    }
  })

  it('adds biases of B, and keeps what replaces the base’s values with weight 1', async () => {
    const one = new LoraAdapter({ rank: 1, alpha: 2, loraBias: true, targetModules: ['q'] })
    one.addFactors('q', [[1, 0]], [[1], [2]], { biasB: [1, 2] })
    const two = new LoraAdapter({ rank: 1, alpha: 1, targetModules: ['q'] })
    two.addFactors('q', [[0, 1]], [[1], [2]])
    two.addReplacement('head.weight', { data: Float32Array.of(1, 2), shape: [1, 2] })
    const { adapter } = await combine({ adapters: [{ adapter: one, weight: 3 }, two] })
    expect([...adapter.layer('q').biasDelta()!]).toEqual([6, 12])
    expect(adapter.get('head.weight', 'replacement')!.weight.data).toEqual(Float32Array.of(1, 2))
    await expect(combine({ adapters: [one, { adapter: two, weight: 2 }] })).rejects.toThrow(
      /head.weight.*no weight.*weight 1/,
    )
    await expect(combine({ adapters: [two, two] })).rejects.toThrow(/head.weight.*replace the same values/)
  })

  it.each([
    [
      'another shape',
      { rank: 1 },
      (made: LoraAdapter) => made.addFactors('q', [[1, 0, 0]], [[1], [2]]),
      /different bases; expected linear \(2, 2\), got linear \(2, 3\)/,
    ],
    [
      'another kind',
      { rank: 1 },
      (made: LoraAdapter) => made.addEmbedding('q', [[1, 0]], [[1], [2]]),
      /different bases; expected linear/,
    ],
    [
      'DoRA',
      { rank: 1, useDora: true },
      (made: LoraAdapter) => made.addFactors('q', [[1, 0]], [[1], [2]], { magnitude: [1, 1] }),
      /DoRA adapters cannot be combined.*mergekit-extract-lora/,
    ],
    [
      'PiSSA',
      { rank: 1, init: 'pissa' },
      (made: LoraAdapter) => made.addFactors('q', [[1, 0]], [[1], [2]]),
      /pissa.*to-plain/,
    ],
  ] as const)('refuses %s by name', async (_, config, add, message) => {
    const first = new LoraAdapter({ rank: 1, targetModules: ['q'] })
    first.addFactors('q', [[1, 0]], [[1], [2]])
    const other = new LoraAdapter({ ...config, targetModules: ['q'] } as LoraConfigInput)
    add(other)
    await expect(combine({ adapters: [first, other] })).rejects.toThrow(message)
  })

  it.each([
    [{ combinationType: 'linear' }, /rank 3.*3, 4.*exact takes/],
    [{ combinationType: 'linear', rank: 4 }, /rank: linear has no choice/],
    [{ combinationType: 'ties' }, /combinationType.*got "ties"\. TIES and DARE are gone: exact adds/],
    [{ seed: 1 }, /seed: combine has no such option\. TIES and DARE are gone: exact adds/],
    [{ combinationType: 'cat' }, /leave it out: exact is the whole sum/],
  ])('refuses %o', async (settings, message) => {
    await expect(combine({ adapters: inputs(), ...(settings as CombineSettings) })).rejects.toThrow(message)
  })

  it('warns of layers that change nothing, and stops on a signal', async () => {
    const still = new LoraAdapter({ rank: 1, targetModules: ['q'] })
    still.addFactors('q', [[1, 0]], [[0], [0]])
    const { warnings, adapter } = await combine({ adapters: [still, { adapter: still, weight: 2 }] })
    expect(warnings).toEqual(['1 of 1 layers change nothing: q'])
    expect(adapter.layer('q').normDelta()).toBe(0)
    const stop = new AbortController()
    const seen: number[] = []
    const run = combine({
      adapters: inputs(),
      signal: stop.signal,
      on: {
        progress: ({ done }) => {
          seen.push(done)
          stop.abort()
        },
      },
    })
    await expect(run).rejects.toThrow(/abort/)
    expect(seen).toEqual([1])
  })
})

describe('readings', () => {
  it('keeps s·B·A through a saved folder', async () => {
    const given = [{ adapter: randomAdapter({ rank: 2 }, 5, ['linear', 'other']), weight: 2 }]
    const { adapter } = await combine({ adapters: given })
    const folder = new MemoryDirectory()
    await saveAdapter(adapter, folder)
    const again = changes(await loadAdapter(folder))
    for (const [name, { data }] of sumOf(given)) expect(distance(again.get(name)!.data, data)).toBeLessThan(2e-6)
  })
})
