// resize: the closest change of each rank, the rank by each rule, and the parts of an adapter that stay.

import { describe, expect, it } from 'vitest'
import { nodePlatform } from '../../../src/api/node/platform.js'
import {
  LoraAdapter,
  loadAdapter,
  loadAdapter as loadFolder,
  MemoryDirectory,
  saveAdapter,
} from '../../../src/api/node.js'
import { usePlatform } from '../../../src/api/platform/platform.js'
import { resize } from '../../../src/api/tools.js'
import { svd } from '../../../src/core/linalg/svd.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { goldenPath } from '../../golden.js'
import { random } from '../../lora/matrices.js'
import { changes, distance, randomAdapter } from './adapters.js'

usePlatform(nodePlatform)

/** Returns the singular values of each layer with a single matrix. */
function spectra(adapter: LoraAdapter): Map<string, Float64Array> {
  const single = [...changes(adapter)].filter(([name]) => !['groups', 'block.experts'].includes(name))
  return new Map(single.map(([name, { data, shape }]) => [name, svd({ data, shape: shape as [number, number] }).s]))
}

const energy = (s: Float64Array, first: number) => s.subarray(first).reduce((sum, value) => sum + value ** 2, 0)

describe('resize', () => {
  const adapter = () => randomAdapter({ rank: 6, alpha: 9, useRslora: true }, 3)

  it('loses what the singular values say, and nothing more', async () => {
    const { adapter: small, layers, error } = await resize(adapter(), { rank: 4 })
    const [before, after] = [changes(adapter()), changes(small)]
    for (const [name, s] of spectra(adapter())) {
      const best = Math.sqrt(energy(s, 4) / energy(s, 0))
      const layer = layers.find((one) => one.name === name)!
      expect(distance(after.get(name)!.data, before.get(name)!.data), name).toBeCloseTo(best, 6)
      expect(layer.error).toBeCloseTo(best, 8)
      expect(layer).toMatchObject({ fromRank: 6, rank: 4 })
      expect(layer.norm ** 2 / energy(s, 0)).toBeCloseTo(1, 6)
    }
    for (const name of ['groups', 'block.experts']) {
      const layer = layers.find((one) => one.name === name)!
      expect(distance(after.get(name)!.data, before.get(name)!.data)).toBeCloseTo(layer.error, 6)
      expect(layer.rank).toBe(4)
    }
    const square = layers.reduce((sum, layer) => sum + (layer.norm * layer.error) ** 2, 0)
    expect(error).toBeCloseTo(Math.sqrt(square / layers.reduce((sum, { norm }) => sum + norm ** 2, 0)), 12)
    expect(small.config).toMatchObject({ rank: 4, alpha: 4, useRslora: false, rankPattern: {} })
  })

  it('takes the smallest rank that keeps the energy', async () => {
    const { layers, adapter: made } = await resize(adapter(), { energy: 0.8 })
    for (const [name, s] of spectra(adapter())) {
      const share = (rank: number) => energy(s, rank) / energy(s, 0)
      const rank = Array.from({ length: 7 }, (_, r) => r).find((r) => r > 0 && share(r) <= 0.2)
      expect(layers.find((one) => one.name === name)?.rank, name).toBe(rank)
      expect(made.get(name)).toMatchObject({ rank, scaling: 1 })
    }
    const most = await resize(adapter(), { energy: 0.8, rank: 1 })
    expect(new Set(most.layers.filter(({ name }) => name !== 'groups').map(({ rank }) => rank))).toEqual(new Set([1]))
  })

  it('gives a larger rank only the directions that there are', async () => {
    const { adapter: same, error, layers } = await resize(adapter(), { rank: 64 })
    expect(error).toBeLessThan(1e-7)
    expect(layers.find(({ name }) => name === 'linear')?.rank).toBe(6)
    const after = changes(same)
    for (const [name, { data }] of changes(adapter())) expect(distance(after.get(name)!.data, data)).toBeLessThan(1e-6)
  })

  it('keeps DoRA, biases, replaced values and types, and writes a folder that reads back', async () => {
    for (const name of [
      'all-together',
      'lora-bias',
      'embedding',
      'tokens',
      'convolution-groups-lora-bias',
      'dora-rslora',
    ]) {
      const before = await loadFolder(new NodeDirectory(goldenPath('kinds', name)))
      const { adapter: after } = await resize(goldenPath('kinds', name), { rank: 64 })
      const folder = new MemoryDirectory()
      await saveAdapter(after, folder)
      const again = await loadAdapter(folder)
      expect(again.names().sort()).toEqual(before.names().sort())
      const [got, wanted] = [changes(again), changes(before)]
      for (const [layer, { data }] of wanted) expect(distance(got.get(layer)!.data, data), layer).toBeLessThan(2e-6)
      for (const part of before.parts()) {
        const other = again.get(part.name)!
        if ('magnitude' in part) expect('magnitude' in other && other.magnitude).toEqual(part.magnitude)
        if ('biasB' in part && 'biasB' in other && part.biasB !== undefined) {
          const [own, bias] = [other, part].map(({ biasB, scaling }) => biasB!.map((value) => scaling * value))
          expect(distance(own, bias)).toBeLessThan(1e-6)
        }
        if (part.kind === 'replacement' || part.kind === 'token-rows') {
          expect(other.kind === part.kind && other.data).toEqual(part.data)
        }
        expect('dtype' in other && other.dtype).toBe(part.dtype)
      }
    }
  })

  it('gives all layers the largest rank where a pattern would fit the end of another name', async () => {
    const made = new LoraAdapter({ rank: 2, targetModules: ['proj'] })
    const full = [
      [1, 0, 0],
      [0, 1, 0],
    ]
    const single = [
      [1, 2, 3],
      [2, 4, 6],
    ]
    const b = [
      [1, 2],
      [3, 5],
      [2, 2],
    ]
    made.addFactors('a.proj', single, b)
    made.addFactors('b.a.proj', full, b)
    made.addFactors('c.proj', full, b)
    const { adapter: small, layers } = await resize(made, { energy: 1 })
    expect(layers.map(({ rank }) => rank)).toEqual([1, 2, 2])
    expect(small.config).toMatchObject({ rank: 2, rankPattern: {} })
    const after = changes(small)
    for (const [name, { data }] of changes(made)) expect(distance(after.get(name)!.data, data)).toBeLessThan(1e-12)
  })

  it.each([
    [{}, /rank: missing.*rank, energy or both/],
    [undefined, /rank: missing/],
    [{ energy: 1.5 }, /energy.*\(0, 1\].*1.5/],
    [{ rank: 0 }, /rank.*at least 1.*0/],
    [{ rnak: 4 }, /rnak.*no such option.*rank/],
  ])('refuses %o', async (options, message) => {
    await expect(resize(adapter(), options as never)).rejects.toThrow(message)
  })

  it('says when nothing changed', async () => {
    const adapter = new LoraAdapter({ rank: 8 })
    adapter.addFactors('q', random(8, 20, 1), random(20, 8, 2))
    adapter.addFactors('k', random(8, 20, 3), random(20, 8, 4))
    const { warnings, layers } = await resize(adapter, { rank: 16 })
    expect(layers.map(({ rank }) => rank)).toEqual([8, 8])
    expect(warnings).toEqual(['nothing changed: the highest rank of a layer was 8 and is 8 now'])
    expect((await resize(adapter, { rank: 8 })).warnings).toHaveLength(1)
    expect((await resize(adapter, { rank: 7 })).warnings).toEqual([])
    expect((await resize(adapter, { energy: 1 })).warnings).toHaveLength(1)
  })

  it('refuses an adapter that started from its base, and one without ranks', async () => {
    await expect(resize(goldenPath('peft', 'pissa'), { rank: 1 })).rejects.toThrow(/pissa.*to-plain/)
    const head = new LoraAdapter({})
    head.addReplacement('head.weight', { data: Float32Array.of(1, 2), shape: [1, 2] })
    await expect(resize(head, { rank: 1 })).rejects.toThrow(/no layers with a rank/)
  })
})
