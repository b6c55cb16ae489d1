import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { batchOf, EpochPlan, planEvaluation, stepsPerEpoch } from '../../src/train/rows/batches.js'

const lengthsOf = fc.array(fc.integer({ min: 1, max: 100 }), { minLength: 1, maxLength: 300 })
const sizeOf = fc.record({ batchSize: fc.integer({ min: 1, max: 9 }), accumulation: fc.integer({ min: 1, max: 4 }) })

describe('EpochPlan', () => {
  it('has every example once, in the announced number of steps, in shapes that hold it', () => {
    fc.assert(
      fc.property(lengthsOf, sizeOf, (lengths, size) => {
        const steps = [...new EpochPlan(lengths, 7, 0, { ...size, limit: 100 })]
        expect(steps).toHaveLength(stepsPerEpoch(lengths.length, size))
        const seen = steps.flat().flatMap(({ examples }) => examples)
        expect([...seen].sort((a, b) => a - b)).toEqual(lengths.map((_, i) => i))
        for (const { examples, sequence } of steps.flat()) {
          for (const index of examples) expect(lengths[index]).toBeLessThanOrEqual(sequence)
          expect(sequence).toBeLessThanOrEqual(100)
          expect(examples.length).toBeLessThanOrEqual(size.batchSize)
        }
      }),
    )
  })

  it('gives each step the same examples however they are split', () => {
    fc.assert(
      fc.property(
        lengthsOf,
        fc.integer({ min: 1, max: 4 }),
        fc.integer({ min: 1, max: 4 }),
        (lengths, batch, times) => {
          const whole = [...new EpochPlan(lengths, 3, 1, { batchSize: batch * times, accumulation: 1, limit: 256 })]
          const parts = [...new EpochPlan(lengths, 3, 1, { batchSize: batch, accumulation: times, limit: 256 })]
          const examples = (steps: typeof whole) => steps.map((step) => step.flatMap((micro) => micro.examples))
          expect(examples(parts)).toEqual(examples(whole))
        },
      ),
    )
  })

  it('depends on seed and epoch only', () => {
    const lengths = Array.from({ length: 64 }, (_, i) => (i * 37) % 50)
    const options = { batchSize: 4, accumulation: 1, limit: 256 }
    const plan = (seed: number, epoch: number) => JSON.stringify([...new EpochPlan(lengths, seed, epoch, options)])
    expect(plan(1, 0)).toBe(plan(1, 0))
    expect(new Set([plan(1, 0), plan(1, 1), plan(2, 0)]).size).toBe(3)
  })

  it('puts like lengths together and pads little', () => {
    const lengths = Array.from({ length: 512 }, (_, i) => 8 + ((i * 7919) % 240))
    const steps = [...new EpochPlan(lengths, 1, 0, { batchSize: 8, accumulation: 1, limit: 256 })]
    const padded = steps.flat().reduce((sum, { examples, sequence }) => sum + examples.length * sequence, 0)
    expect(padded / lengths.reduce((a, b) => a + b)).toBeLessThan(1.15)
  })
})

it('a batch may hold any number of examples', () => {
  const count = 200_000
  const [plan] = planEvaluation(Array(count).fill(4), { batchSize: count, limit: 256 })
  expect([plan.examples.length, plan.sequence]).toEqual([count, 8])
})

it('gives the examples of batches in their order', () => {
  const plans = planEvaluation([3, 4], { batchSize: 8, limit: 256 })
  expect(plans.map((plan) => plan.examples)).toEqual([[1, 0]])
  expect(batchOf(['a', 'b'], plans[0])).toEqual({ examples: ['b', 'a'], length: 8 })
})
