import { describe, expect, it } from 'vitest'
import { ConfigError } from '../../src/base/errors.js'
import { LoraAdapter } from '../../src/lora/adapter.js'
import { readParameters, writeParameters } from '../../src/train/parameters.js'
import { steadyMedian } from '../../src/train/report.js'
import { resolveSettings, TRAIN_DEFAULTS, withRateOfTask } from '../../src/train/settings.js'

const { config: _, ...DEFAULTS } = TRAIN_DEFAULTS

describe('resolveSettings', () => {
  it('fills in defaults, for undefined too', () => {
    expect(resolveSettings({})).toEqual(DEFAULTS)
    expect(resolveSettings({ batchSize: undefined, learningRate: 5e-3 })).toEqual({
      ...DEFAULTS,
      learningRate: 5e-3,
      loraPlusRatio: undefined,
    })
  })

  it('takes LoRA+ with the default learning rate alone', () => {
    expect(resolveSettings({})).toMatchObject({ learningRate: 3e-4, loraPlusRatio: 16 })
    expect(resolveSettings({ learningRate: 3e-4 }).loraPlusRatio).toBeUndefined()
    expect(resolveSettings({ learningRate: 1e-3, loraPlusRatio: 4 }).loraPlusRatio).toBe(4)
    expect(resolveSettings({ loraPlusRatio: 1 })).toMatchObject({ learningRate: 3e-4, loraPlusRatio: 1 })
  })

  it('takes the rate of the task where neither the options nor a preset say one', () => {
    const rateOf = (input: Parameters<typeof resolveSettings>[0], rate: number | undefined) =>
      withRateOfTask(resolveSettings(input), input, rate)
    expect(rateOf({}, 1e-3)).toMatchObject({ learningRate: 1e-3, loraPlusRatio: 16 })
    expect(rateOf({}, undefined).learningRate).toBe(3e-4)
    expect(rateOf({ loraPlusRatio: 2 }, 1e-3)).toMatchObject({ learningRate: 1e-3, loraPlusRatio: 2 })
    expect(rateOf({ learningRate: 3e-4 }, 1e-3)).toMatchObject({ learningRate: 3e-4, loraPlusRatio: undefined })
    expect(rateOf({ preset: 'peft' }, 1e-3).learningRate).toBe(5e-5)
  })

  it.each([
    ['epochs', 0],
    ['epochs', 1.5],
    ['maxSteps', -1],
    ['batchSize', 0],
    ['gradientAccumulation', Number.NaN],
    ['learningRate', 0],
    ['learningRate', -1e-3],
    ['learningRate', Number.POSITIVE_INFINITY],
    ['learningRate', '0.1'],
    ['warmupRatio', 1.1],
    ['weightDecay', -0.1],
    ['maxGradNorm', -1],
    ['maxGradNorm', Number.NaN],
    ['threads', 0],
    ['saveEvery', 0],
    ['evalEvery', 2.5],
    ['schedule', 'step'],
  ])('refuses %s %s', (key, value) => {
    expect(() => resolveSettings({ [key]: value })).toThrow(ConfigError)
    expect(() => resolveSettings({ [key]: value })).toThrow(new RegExp(`^${key}: `))
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
