import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { type Init, LoraLayer } from '../../../src/api/node.js'
import { resolveConfig } from '../../../src/lora/config.js'
import { firstFactors } from '../../../src/lora/init/initializers.js'

function draw(init: Init, rank: number, k: number, seed = 1) {
  const { weightA } = firstFactors(resolveConfig({ init, rank, seed }), 'q', [rank, k], new Float64Array())
  return statistics(weightA.data)
}

function statistics(data: ArrayLike<number> & Iterable<number>) {
  let sum = 0
  let square = 0
  let fourth = 0
  let largest = 0
  for (const value of data) {
    sum += value
    square += value ** 2
    fourth += value ** 4
    largest = Math.max(largest, Math.abs(value))
  }
  const variance = square / data.length
  return {
    count: data.length,
    mean: sum / data.length,
    variance,
    kurtosis: fourth / data.length / variance ** 2,
    largest,
  }
}

describe.each([
  [4, 20_000],
  [16, 5_000],
])('rank %i', (rank, k) => {
  // Standard errors: σ/√n of a mean, σ²·√(2/n) of a normal variance; 4.5 of them.
  test('normal: mean 0, variance 1/r, the shape of a normal', () => {
    const { count, mean, variance, kurtosis } = draw('normal', rank, k)
    expect(Math.abs(mean)).toBeLessThan(4.5 / Math.sqrt(rank * count))
    expect(Math.abs(variance * rank - 1)).toBeLessThan(4.5 * Math.sqrt(2 / count))
    expect(kurtosis).toBeCloseTo(3, 0)
  })

  test('gaussian: standard deviation 1/r', () => {
    const { count, variance, kurtosis } = draw('gaussian', rank, k)
    expect(Math.abs(variance * rank ** 2 - 1)).toBeLessThan(4.5 * Math.sqrt(2 / count))
    expect(kurtosis).toBeCloseTo(3, 0)
  })

  test('kaiming-uniform: within ±1/√k and up to it, variance 1/(3k)', () => {
    const { count, mean, variance, kurtosis, largest } = draw('kaiming-uniform', rank, k)
    expect(largest).toBeLessThanOrEqual(1 / Math.sqrt(k))
    expect(largest).toBeGreaterThan(0.999 / Math.sqrt(k))
    expect(Math.abs(mean)).toBeLessThan(4.5 / Math.sqrt(3 * k * count))
    expect(Math.abs(variance * 3 * k - 1)).toBeLessThan(4.5 / Math.sqrt(count))
    expect(kurtosis).toBeCloseTo(1.8, 1)
  })
})

// Statistics of PEFT's draws for these shapes, and their theoretical values.
const golden = JSON.parse(readFileSync(new URL('../../golden/peft/init.json', import.meta.url), 'utf8'))

test.each([
  ['kaiming-uniform', golden.kaimingUniform],
  ['gaussian', golden.gaussian],
] as [Init, { r: number; k: number; std: number; expected: { bound?: number; std: number } }[]][])(
  '%s has the spread that PEFT has',
  (init, layers) => {
    for (const { r, k, std, expected } of layers) {
      const { count, variance, largest } = draw(init, r, k)
      const tolerance = 6 / Math.sqrt(2 * count)
      expect(Math.abs(Math.sqrt(variance) / expected.std - 1)).toBeLessThan(tolerance)
      expect(Math.abs(Math.sqrt(variance) / std - 1)).toBeLessThan(2 * tolerance)
      if (expected.bound !== undefined) expect(largest).toBeLessThanOrEqual(expected.bound)
    }
  },
)

test('A depends on seed, name and nothing else', () => {
  const draws = (seed: number, name: string, init: Init = 'normal') =>
    LoraLayer.ofShape([4, 8], { rank: 2, seed, init }, name).weightA.data
  expect(draws(1, 'a')).toEqual(draws(1, 'a'))
  expect(draws(1, 'a')).not.toEqual(draws(2, 'a'))
  expect(draws(1, 'a')).not.toEqual(draws(1, 'b'))
  const { weightA } = LoraLayer.ofShape([4, 8], { rank: 2, seed: 1, dropout: 0.5, alpha: 99 }, 'a')
  expect(weightA.data).toEqual(draws(1, 'a'))
})
