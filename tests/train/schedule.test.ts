import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import type { Schedule } from '../../src/api/node.js'
import { learningRates, warmupStepsOf } from '../../src/train/settings.js'

const rates = (
  schedule: Schedule,
  learningRate: number,
  warmupRatio: number | undefined,
  total: number,
  warmupSteps?: number,
) => learningRates({ schedule, learningRate, warmupRatio, warmupSteps }, total)

describe('learningRates', () => {
  // The rates are those of transformers' get_linear_schedule_with_warmup and similar functions.
  it('warms up from 0 to the peak, then falls to 0 at the step after the last', () => {
    const rate = rates('linear', 1, 10 / 150, 150)
    expect([0, 4, 9, 10, 80, 149].map(rate)).toEqual([0, 0.4, 0.9, 1, 0.5, 1 / 140].map((x) => expect.closeTo(x, 12)))
    expect(rate(150)).toBe(0)
    const cosine = rates('cosine', 2, 0, 100)
    expect([0, 25, 50, 100].map(cosine)).toEqual([2, 1 + Math.SQRT1_2, 1, 0].map((x) => expect.closeTo(x, 12)))
    expect([0, 1, 5, 9].map(rates('constant', 3, 0.2, 10))).toEqual([0, 1.5, 3, 3])
    expect([0, 1, 2, 3, 9].map(rates('constant', 3, undefined, 10, 3))).toEqual([0, 1, 2, 3, 3])
    // If the warm-up is longer than the run, the peak is never reached, as in transformers.
    expect([0, 1, 2].map(rates('linear', 1, undefined, 3, 4))).toEqual([0, 0.25, 0.5])
  })

  it('warms up by default from the first part above 0', () => {
    expect([0, 1, 2, 3].map(rates('constant', 4, undefined, 100))).toEqual([1, 2, 3, 4])
    expect(rates('cosine', 1, undefined, 1)(0)).toBe(0.5)
    for (let total = 1; total <= 300; total++) {
      for (const schedule of ['cosine', 'linear', 'constant'] as const) {
        const all = Array.from({ length: total }, (_, step) => rates(schedule, 1, undefined, total)(step))
        expect(Math.min(...all), `${schedule} ${total}`).toBeGreaterThan(0)
      }
    }
  })

  it('has 0 steps of warm-up for a ratio of 0, and not −0', () => {
    expect(warmupStepsOf({ warmupRatio: 0, warmupSteps: undefined }, 10)).toBe(0)
  })

  it('stays above 0 after the first step, and below the peak', () => {
    fc.assert(
      fc.property(
        fc.constantFrom('cosine' as const, 'linear' as const, 'constant' as const),
        fc.double({ min: 0, max: 1, noNaN: true }),
        fc.integer({ min: 1, max: 300 }),
        (schedule, ratio, total) => {
          const rate = rates(schedule, 1e-3, ratio, total)
          for (let step = 0; step < total; step++) {
            if (step > 0) expect(rate(step)).toBeGreaterThan(0)
            expect(rate(step)).toBeLessThanOrEqual(1e-3)
          }
        },
      ),
    )
  })
})
