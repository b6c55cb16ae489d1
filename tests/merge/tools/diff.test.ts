// diff: norms and cosines against plain matrices.

import { describe, expect, it } from 'vitest'
import { diff, LoraAdapter } from '../../../src/api/node.js'
import { goldenPath } from '../../golden.js'
import { changes, randomAdapter } from './adapters.js'

const norm = (values: Float64Array) => Math.hypot(...values)

describe('diff of adapters', () => {
  it('has the norms, the cosine and the relative change of the full matrices', async () => {
    const [a, b] = [randomAdapter({ rank: 4, alpha: 3 }, 1), randomAdapter({ rank: 2, alpha: 5, useRslora: true }, 2)]
    const report = await diff(a, b)
    const [own, other] = [changes(a), changes(b)]
    let [off, all] = [0, 0]
    for (const layer of report.layers) {
      const [x, y] = [own.get(layer.name)!.data, other.get(layer.name)!.data]
      const between = y.map((value, i) => value - x[i])
      expect(layer.normA / norm(x)).toBeCloseTo(1, 6)
      expect(layer.normB / norm(y)).toBeCloseTo(1, 6)
      expect(layer.normDifference / norm(between)).toBeCloseTo(1, 6)
      expect(layer.relativeChange).toBeCloseTo(norm(between) / norm(x), 6)
      const shared = x.reduce((sum, value, i) => sum + value * y[i], 0)
      expect(layer.cosine).toBeCloseTo(shared / (norm(x) * norm(y)), 6)
      off += norm(between) ** 2
      all += norm(x) ** 2
    }
    expect(report.relativeChange).toBeCloseTo(Math.sqrt(off / all), 6)
    expect(report.layers.find(({ name }) => name === report.topMovers[0])!.normDifference).toBe(
      Math.max(...report.layers.map(({ normDifference }) => normDifference)),
    )
  })

  it('says nothing of equal ones, and −1 of opposite ones', async () => {
    const path = goldenPath('combine', 'first')
    const same = await diff(path, path)
    expect(same).toMatchObject({ relativeChange: 0, topMovers: [], onlyA: [], onlyB: [] })
    const made = (sign: number) => {
      const adapter = new LoraAdapter({ rank: 1, alpha: 1, targetModules: ['q'] })
      adapter.addFactors('q', [[1, 2, 2]], [[3 * sign], [4 * sign]])
      return adapter
    }
    const report = await diff(made(1), made(-1))
    expect(report.layers[0]).toMatchObject({ normA: 15, normB: 15, normDifference: 30, relativeChange: 2, cosine: -1 })
  })

  it('lists layers that only one has, compares replaced values, and refuses other shapes', async () => {
    const a = randomAdapter({ rank: 2 }, 1, ['linear', 'other'])
    const b = randomAdapter({ rank: 2 }, 2, ['linear', 'embedding'])
    a.addReplacement('head.weight', { data: Float32Array.of(3, 4), shape: [2] })
    b.addReplacement('head.weight', { data: Float32Array.of(3, 5), shape: [2] })
    const report = await diff(a, b)
    expect([report.onlyA, report.onlyB]).toEqual([['other'], ['embedding']])
    expect(report.layers.at(-1)).toMatchObject({
      name: 'head.weight',
      normA: 5,
      normDifference: 1,
      relativeChange: 0.2,
    })
    const small = new LoraAdapter({ rank: 1, targetModules: ['linear'] })
    small.addFactors('linear', [[1, 0]], [[1], [2]])
    await expect(diff(a, small)).rejects.toThrow(/linear: not the same layer.*different bases.*\(11, 14\).*\(2, 2\)/)
  })
})
