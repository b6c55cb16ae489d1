// combine: PEFT's numbers on request, and the true sum by default, also where PEFT's result is another.

import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { MemoryDirectory } from '../../src/base/bytes.js'
import { transpose } from '../../src/base/tensor.js'
import { loadAdapter } from '../../src/index/adapters.js'
import { usePlatform } from '../../src/index/platform/platform.js'
import { combine } from '../../src/index/tools.js'
import { svd } from '../../src/linalg/svd.js'
import { LoraAdapter } from '../../src/lora/adapter.js'
import type { LoraConfigInput } from '../../src/lora/config.js'
import { nodePlatform } from '../../src/node/platform.js'
import { saveAdapter } from '../../src/peft/adapter-folder.js'
import type { CombineSettings } from '../../src/tools/combine-settings.js'
import { goldenPath, readJson, tensorsOf } from '../golden.js'
import { changes, distance, randomAdapter, sumOf } from './adapters.js'

usePlatform(nodePlatform)

interface Case {
  adapters: string[]
  weights: number[]
  options: { combination_type: string; svd_rank?: number; density?: number; majority_sign_method?: string }
}

const { cases } = JSON.parse(readFileSync(goldenPath('combine', 'cases.json'), 'utf8')) as {
  cases: Record<string, Case>
}
const deltas = await tensorsOf(goldenPath('combine', 'deltas.safetensors'))

const inputsOf = ({ adapters, weights }: Case) =>
  adapters.map((name, i) => ({ adapter: goldenPath('combine', name), weight: weights[i] }))

const settingsOf = ({ options }: Case) =>
  ({
    combinationType: options.combination_type,
    rank: options.svd_rank,
    density: options.density,
    majoritySignMethod: options.majority_sign_method,
  }) as CombineSettings

describe('combine as PEFT does', () => {
  it.each(Object.entries(cases))('%s', async (name, one) => {
    const { adapter } = await combine({ adapters: inputsOf(one), ...settingsOf(one), peftCompatible: true })
    const expected = [...deltas].filter(([key]) => key.startsWith(`${name}/`))
    expect(adapter.names().sort()).toEqual(expected.map(([key]) => key.slice(name.length + 1)).sort())
    const got = changes(adapter)
    for (const [key, { data }] of expected) {
      const layer = got.get(key.slice(name.length + 1))!
      expect(distance(layer.data, data), key).toBeLessThan(2e-5)
    }
    // PEFT loads what is saved.
    const folder = new MemoryDirectory()
    await saveAdapter(adapter, folder)
    expect(folder.files.size).toBe(2)
  })

  it('agrees with the default where PEFT is right, and not where its result is √r too large', async () => {
    for (const [name, isRight] of [
      ['svd', true],
      ['cat', true],
      ['svd-rslora', false],
      ['linear-rslora', false],
    ] as const) {
      const settings = { adapters: inputsOf(cases[name]), ...settingsOf(cases[name]) }
      const peft = changes((await combine({ ...settings, peftCompatible: true })).adapter)
      const ours = changes((await combine(settings)).adapter)
      for (const [layer, { data }] of ours) {
        const factor = isRight ? 1 : Math.sqrt(3)
        expect(
          distance(
            data.map((value) => factor * value),
            peft.get(layer)!.data,
          ),
          `${name} ${layer}`,
        ).toBeLessThan(1e-5)
      }
    }
  })
})

describe('combine', () => {
  const kinds: LoraConfigInput[] = [
    { rank: 3, alpha: 5 },
    { rank: 4, alpha: 4, useRslora: true },
    { rank: 2, alpha: 6, rankPattern: { other: 5 }, alphaPattern: { other: 1 } },
  ]
  const weights = [1, -0.5, 0.25]
  const inputs = () => kinds.map((config, i) => ({ adapter: randomAdapter(config, 7 + i), weight: weights[i] }))

  it.each(['exact', 'cat'] as const)(
    '%s gives the true sum of rsLoRA, patterns and all kinds of layers',
    async (combinationType) => {
      const given = inputs()
      const { adapter, error } = await combine({ adapters: given, combinationType })
      const [got, wanted] = [changes(adapter), sumOf(given)]
      expect([...got.keys()].sort()).toEqual([...wanted.keys()].sort())
      for (const [name, { data }] of wanted) expect(distance(got.get(name)!.data, data), name).toBeLessThan(2e-6)
      expect(error).toBeLessThan(1e-6)
    },
  )

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

  it('chooses ranks by energy, error and ratio', async () => {
    const { layers } = await combine({ adapters: inputs(), energy: 0.9 })
    for (const { error } of layers) expect(error).toBeLessThanOrEqual(Math.sqrt(0.1) + 1e-9)
    const close = await combine({ adapters: inputs(), error: 0.05 })
    for (const { error } of close.layers) expect(error).toBeLessThanOrEqual(0.05)
    const single = await combine({ adapters: inputs(), ratio: 1 })
    for (const { name, rank } of single.layers) expect(rank, name).toBe(name === 'groups' ? 2 : 1)
  })

  it.each(['dare_linear', 'dare_ties', 'dare_linear_svd', 'dare_ties_svd'] as const)(
    'keeps a share of the values at random: %s',
    async (combinationType) => {
      const [one] = [randomAdapter({ rank: 4, alpha: 4 }, 3, ['other'])]
      const of = async (seed: number, density: number) => {
        const { adapter } = await combine({
          adapters: [one, { adapter: one, weight: 0.5 }],
          combinationType,
          density,
          seed,
          rank: combinationType.endsWith('svd') ? 9 : undefined,
        })
        return changes(adapter).get('other')!.data
      }
      const [first, again, another, all] = [await of(1, 0.5), await of(1, 0.5), await of(2, 0.5), await of(1, 1)]
      expect(again).toEqual(first)
      expect(distance(another, first)).toBeGreaterThan(0.1)
      // The mean of many draws is the result without dropping, where sums are linear in the values.
      if (combinationType !== 'dare_linear_svd') return
      const mean = new Float64Array(all.length)
      for (let seed = 0; seed < 200; seed++)
        (await of(seed, 0.5)).forEach((value, i) => {
          mean[i] += value / 200
        })
      expect(distance(mean, all)).toBeLessThan(0.12)
      expect(distance(first, all)).toBeGreaterThan(0.4)
    },
  )

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
    await expect(combine({ adapters: [one], combinationType: 'ties', density: 0.5 })).rejects.toThrow(
      /lora_bias.*not combined by ties/,
    )
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
      /DoRA adapters cannot be combined without their base.*`base`/,
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

  it.each(['dora', 'dora-rslora', 'conv1d-dora'])('folds PEFT’s DoRA into the closest change: %s', async (name) => {
    const folder = goldenPath('kinds', name)
    const { base: model } = readJson(goldenPath('kinds', name, 'expected.json')) as { base: string }
    const [base, merged] = [
      await tensorsOf(goldenPath('kinds', `${model}.safetensors`)),
      await tensorsOf(goldenPath('kinds', name, 'tensors.safetensors')),
    ]
    const place = new MemoryDirectory({
      'model.safetensors': new Uint8Array(readFileSync(goldenPath('kinds', `${model}.safetensors`))),
    })
    const of = (settings: CombineSettings) => {
      return combine({ adapters: [{ adapter: folder, weight: -0.5 }, folder], base: place, ...settings })
    }
    const whole = await of({ energy: 1 })
    expect(whole.error).toBeLessThan(1e-5)
    expect(whole.adapter.config.useDora).toBe(false)
    const small = await of({ rank: 1 })
    for (const [layer, { data, shape }] of changes(whole.adapter)) {
      const [before, after] = [base.get(`${layer}.weight`)!, merged.get(`merged.${layer}.weight`)!]
      const delta = Float64Array.from(after.data, (value, i) => 0.5 * (value - before.data[i]))
      const stored = whole.adapter.config.fanInFanOut ? transpose({ data, shape: [shape[0], shape[1]] }).data : data
      expect(distance(stored, delta), layer).toBeLessThan(1e-4)
      const { s } = svd({ data, shape: [shape[0], shape[1]] })
      const energy = (from: number) => s.subarray(from).reduce((sum, value) => sum + value ** 2, 0)
      const report = small.layers.find((one) => one.name === layer)!
      expect(report.error, layer).toBeCloseTo(Math.sqrt(energy(1) / energy(0)), 4)
    }
    await expect(of({})).rejects.toThrow(/rank: missing.*DoRA/)
    await expect(of({ combinationType: 'cat' })).rejects.toThrow(/cat does not combine DoRA.*exact, svd, ties_svd/)
    await expect(of({ peftCompatible: true })).rejects.toThrow(/PEFT’s way does not combine DoRA/)
  })

  it('refuses DoRA of an embedding, and a base without the layer', async () => {
    const weights = new Uint8Array(readFileSync(goldenPath('kinds', 'qwen2.safetensors')))
    const base = new MemoryDirectory({ 'model.safetensors': weights })
    const embedding = combine({ adapters: [goldenPath('kinds', 'embedding-dora')], base, rank: 1 })
    await expect(embedding).rejects.toThrow(/embed_tokens.*kind embedding.*extract/)
    const other = new LoraAdapter({ rank: 1, useDora: true, targetModules: ['q'] })
    other.addFactors('q', [[1, 0]], [[1], [2]], { magnitude: [1, 1] })
    await expect(combine({ adapters: [other], base, rank: 1 })).rejects.toThrow(/none of its layers is in the base: q/)
  })

  it.each([
    [{ combinationType: 'linear' }, /rank 3.*3, 4.*exact, svd and cat/],
    [{ combinationType: 'ties' }, /density: missing/],
    [{ combinationType: 'ties', density: 0 }, /density.*\(0, 1\].*0/],
    [{ combinationType: 'exact', density: 0.5 }, /density: exact does not use it/],
    [{ combinationType: 'cat', rank: 4 }, /rank: cat has no choice/],
    [{ combinationType: 'exact', seed: 1 }, /seed: exact does not use it; expected a type of dare/],
    [
      { combinationType: 'magnitude_prune', density: 0.5, majoritySignMethod: 'total' },
      /majoritySignMethod.*ties or dare_ties/,
    ],
    [{ combinationType: 'magnitude_prune', density: 0.5 }, /rank 3.*3, 4/],
    [{ combinationType: 'dare_linear' }, /density: missing/],
    [{ combinationType: 'tie_svd' }, /combinationType.*ties_svd/],
    [{ peftCompatible: true, combinationType: 'exact' }, /PEFT has no method exact/],
    [{ energy: 0.5, ratio: 0.5 }, /ratio: not together with energy/],
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
      onProgress: ({ done }) => {
        seen.push(done)
        stop.abort()
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
