import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { Random } from '../../src/core/base/random.js'
import { type AdamWOptions, clipFactor, gradientNorm, stepAdamW } from '../../src/train/engine/optimizer.js'

const PLAIN: AdamWOptions = { weightDecay: 0 }

function startOf(parameters: Float32Array[]) {
  const zeros = () => parameters.map(({ length }) => new Float32Array(length))
  return { parameters, firstMoments: zeros(), secondMoments: zeros(), updates: 0 }
}

/** Loshchilov and Hutter's algorithm 2 in f64, one number at a time. */
function reference(parameter: number, gradients: number[], rates: number[], weightDecay: number): number {
  const [beta1, beta2, epsilon] = [0.9, 0.999, 1e-8]
  let [m, v] = [0, 0]
  gradients.forEach((g, i) => {
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    const mHat = m / (1 - beta1 ** (i + 1))
    const vHat = v / (1 - beta2 ** (i + 1))
    parameter -= rates[i] * weightDecay * parameter
    parameter -= (rates[i] * mHat) / (Math.sqrt(vHat) + epsilon)
  })
  return parameter
}

describe('AdamW', () => {
  it('is the algorithm, to f32 rounding', () => {
    const random = new Random(1, 'test')
    const steps = 40
    const start = Float32Array.from({ length: 50 }, () => random.normal())
    const gradients = Array.from({ length: steps }, () =>
      Float32Array.from(start, (_, i) => random.normal() * 10 ** ((i % 9) - 6)),
    )
    const rates = Array.from({ length: steps }, (_, i) => 0.05 / (i + 1))
    const [a, b] = [start.slice(0, 20), start.slice(20)]
    const state = startOf([a, b])
    // LoRA+ gives B a higher rate, which multiplies its weight decay too.
    const options = { rates: [1, 4], weightDecay: 0.1 }
    gradients.forEach((g, i) => void stepAdamW(state, [g.slice(0, 20), g.slice(20)], rates[i], options))
    const result = [...a, ...b]
    result.forEach((value, i) => {
      const expected = reference(
        start[i],
        gradients.map((g) => g[i]),
        rates.map((rate) => (i < 20 ? rate : 4 * rate)),
        0.1,
      )
      expect(Math.abs(value - expected)).toBeLessThan(2e-6 * Math.max(1, Math.abs(expected)))
    })
    expect(state.updates).toBe(steps)
  })

  // torch.optim.AdamW([0.5, -1.5], lr=0.01, weight_decay=0.1), gradients (0.3, -2), (0.1, 0), (-0.4, 1e-4), torch 2.15.
  it('gives what PyTorch gives', () => {
    const parameter = Float32Array.of(0.5, -1.5)
    const state = startOf([parameter])
    for (const gradient of [
      [0.3, -2],
      [0.1, 0],
      [-0.4, 1e-4],
    ])
      stepAdamW(state, [Float32Array.from(gradient)], 0.01, { weightDecay: 0.1 })
    expect(parameter[0]).toBeCloseTo(0.48065924644470215, 6)
    expect(parameter[1]).toBeCloseTo(-1.4736512899398804, 6)
  })

  it('goes on from a saved state', () => {
    const gradient = Float32Array.of(0.5, -1)
    const whole = startOf([Float32Array.of(1, 2)])
    for (let i = 0; i < 3; i++) stepAdamW(whole, [gradient], 0.1, PLAIN)
    const resumed = structuredClone(whole)
    for (const state of [whole, resumed]) stepAdamW(state, [gradient], 0.1, PLAIN)
    expect(resumed).toEqual(whole)
  })

  it('scales gradients without touching them', () => {
    const gradient = Float32Array.of(3, 4)
    const scaled = Float32Array.of(1, 1)
    const halved = Float32Array.of(1, 1)
    stepAdamW(startOf([scaled]), [gradient], 0.1, PLAIN, 0.5)
    stepAdamW(startOf([halved]), [Float32Array.of(1.5, 2)], 0.1, PLAIN)
    expect(scaled).toEqual(halved)
    expect(gradient).toEqual(Float32Array.of(3, 4))
  })
})

describe('clipping', () => {
  it('limits the norm over all tensors together', () => {
    fc.assert(
      fc.property(
        fc.float32Array({ minLength: 1, noNaN: true, noDefaultInfinity: true, min: -1e3, max: 1e3 }),
        (values) => {
          const norm = gradientNorm([values.slice(0, 1), values.slice(1)])
          expect(norm).toBeCloseTo(Math.hypot(...values), 3)
          const factor = clipFactor(norm, 1)
          expect(norm * factor).toBeLessThanOrEqual(1)
          if (norm < 0.999) expect(factor).toBe(1)
          else expect(norm * factor).toBeGreaterThan(0.99)
        },
      ),
    )
  })

  it('is off at 0, and shows what is not finite', () => {
    expect(clipFactor(1e9, 0)).toBe(1)
    expect(gradientNorm([Float32Array.of(1, Number.NaN)])).toBeNaN()
    expect(gradientNorm([Float32Array.of(1, Number.POSITIVE_INFINITY)])).toBe(Number.POSITIVE_INFINITY)
  })
})
