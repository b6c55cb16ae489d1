import { describe, expect, it } from 'vitest'
import { ConfigError, LoraAdapter, train } from '../../src/api/node.js'
import { readParameters, writeParameters } from '../../src/train/engine/parameters.js'
import { History, steadyMedian } from '../../src/train/saved/history.js'
import { resolveSettings, TRAIN_DEFAULTS, withDefaultRate } from '../../src/train/settings.js'

const { config: _, ...DEFAULTS } = TRAIN_DEFAULTS

describe('resolveSettings', () => {
  it('fills in defaults, for undefined too', () => {
    expect(resolveSettings({})).toEqual(DEFAULTS)
    expect(resolveSettings({ batchSize: undefined, learningRate: 5e-3 })).toEqual({ ...DEFAULTS, learningRate: 5e-3 })
  })

  describe('without a learning rate', () => {
    type Input = Parameters<typeof resolveSettings>[0]
    const set = (input: Input, widths: number[], { task = {}, trainsBase = false } = {}) =>
      withDefaultRate(resolveSettings(input), input, task, { widths, trainsBase })

    it('takes one that fits the width', () => {
      const rateOf = (...parts: Parameters<typeof set>) => set(...parts).learningRate
      // union-3m, MiniLM-L6, SmolLM2-135M, Gemma 3 270M, and models with 1, 8 and 70 billion parameters.
      const rates = [192, 384, 576, 640, 2048, 4096, 8192].map((width) => rateOf({}, [width]))
      expect(rates).toEqual([7.9e-3, 3.3e-3, 2e-3, 1.8e-3, 4.1e-4, 1.7e-4, 1e-4])
      expect(rateOf({}, [1536, 576, 576, 576, 1536])).toBe(2e-3)
      expect(rateOf({}, [64])).toBe(1e-2)
      expect(rateOf({}, [64], { trainsBase: true })).toBe(1e-3)
      expect(rateOf({}, [], { trainsBase: true })).toBe(1e-4)
      expect(rateOf({}, [576], { task: { rateShare: 0.5 } })).toBe(1e-3)
      expect(rateOf({ loraPlusRatio: 4 }, [576])).toBe(5e-4)
      expect(rateOf({ learningRate: 3e-4, loraPlusRatio: 4 }, [576])).toBe(3e-4)
      expect(rateOf({ preset: 'peft' }, [576])).toBe(5e-5)
    })

    it('takes that of the task, with LoRA+', () => {
      const task = { learningRate: 1e-3 }
      expect(set({}, [576], { task })).toMatchObject({ learningRate: 1e-3, loraPlusRatio: 16 })
      expect(set({ loraPlusRatio: 2 }, [576], { task })).toMatchObject({ learningRate: 1e-3, loraPlusRatio: 2 })
      expect(set({ learningRate: 3e-4 }, [576], { task })).toEqual({ ...DEFAULTS, learningRate: 3e-4 })
      expect(set({ preset: 'peft' }, [576], { task }).learningRate).toBe(5e-5)
    })
  })

  it.each([
    ['epochs', 0],
    ['epochs', -0.5],
    ['maxSteps', -1],
    ['batchSize', 0],
    ['gradientAccumulation', Number.NaN],
    ['learningRate', 0],
    ['learningRate', -1e-3],
    ['learningRate', Number.POSITIVE_INFINITY],
    ['learningRate', '0.1'],
    ['warmupRatio', 1.1],
    ['warmupSteps', -1],
    ['numLayers', 0],
    ['weightDecay', -0.1],
    ['maxGradNorm', -1],
    ['maxGradNorm', Number.NaN],
    ['threads', 0],
    ['saveEvery', 0],
    ['evalEvery', 2.5],
    ['schedule', 'step'],
    ['memory', 'high'],
    ['preset', 'trl'],
  ])('refuses %s %s, before the model is opened', async (key, value) => {
    const run = train({ model: 'nowhere', data: 'nothing', [key]: value })
    await expect(run).rejects.toThrow(ConfigError)
    await expect(run).rejects.toThrow(new RegExp(`^${key}: `))
  })
})

describe('parameters', () => {
  it('go to the graph, B transposed, and come back', () => {
    const adapter = new LoraAdapter({ rank: 2, targetModules: ['q'] })
    const layer = adapter.addFactors(
      'q',
      [
        [1, 2, 3],
        [4, 5, 6],
      ],
      [
        [7, 8],
        [9, 10],
      ],
    )
    const names = ['q.A', 'q.B']
    const values = readParameters(adapter, names)
    expect(values.map((array) => [...array])).toEqual([
      [1, 2, 3, 4, 5, 6],
      [7, 9, 8, 10],
    ])
    values[0][0] = 11
    writeParameters(adapter, names, values)
    expect([...layer.weightA.data]).toEqual([11, 2, 3, 4, 5, 6])
    expect([...layer.weightB.data]).toEqual([7, 8, 9, 10])
  })
})

describe('steadyMedian', () => {
  it('leaves out the first two', () => {
    expect(steadyMedian([900, 800, 3, 1, 2])).toBe(2)
    expect(steadyMedian([900, 800, 3, 1])).toBe(2)
    expect(steadyMedian([1, 2])).toBeNull()
  })
})

it('goes on with a run of more steps than a call takes arguments', () => {
  const steps = Array.from({ length: 200_000 }, () => ({}) as never)
  const history = new History(resolveSettings({}), undefined, 300_000)
  history.restore(steps, { step: steps.length, fingerprint: {}, evaluations: [], samples: [] })
  expect(history.steps).toBe(200_000)
})
