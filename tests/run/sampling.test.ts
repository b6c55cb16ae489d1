import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { ConfigError, NumericError } from '../../src/api/node.js'
import { checkOptions } from '../../src/core/base/options.js'
import { Random } from '../../src/core/base/random.js'
import { GENERATE_OPTIONS } from '../../src/run/gen/options.js'
import {
  argmax,
  changedLogits,
  sampleToken,
  scoreTokens,
  tokenDistribution,
} from '../../src/run/generate/next-token.js'
import { resolveSampling } from '../../src/run/generate/sampling.js'

// Logits are multiples of 1/64, because smaller differences could be ties within the precision of exp.
const logit = fc.oneof(
  { weight: 8, arbitrary: fc.integer({ min: -2000, max: 2000 }).map((value) => value / 64) },
  fc.constant(Number.NEGATIVE_INFINITY),
)
const logits = fc
  .array(logit, { minLength: 1, maxLength: 60 })
  .filter((values) => values.some((value) => value > Number.NEGATIVE_INFINITY))
  .map((values) => Float32Array.from(values))
const sampling = fc.record({
  temperature: fc.double({ min: 0.05, max: 5, noNaN: true }),
  topK: fc.oneof(fc.integer({ min: 1, max: 80 }), fc.constant(Number.POSITIVE_INFINITY)),
  topP: fc.oneof(fc.double({ min: 0.01, max: 1, noNaN: true }), fc.constant(1)),
  minP: fc.oneof(fc.double({ min: 0, max: 1, noNaN: true }), fc.constant(0)),
})

/** Softmax of logits ÷ temperature over all tokens. */
function softmax(values: Float32Array, temperature: number): number[] {
  const max = Math.max(...values)
  const weights = Array.from(values, (value) => Math.exp((value - max) / temperature))
  const total = weights.reduce((a, b) => a + b, 0)
  return weights.map((weight) => weight / total)
}

describe('options', () => {
  test('greedy by default; temperature 1 as soon as a filter is asked for', () => {
    expect(resolveSampling()).toEqual({
      temperature: 0,
      topK: Number.POSITIVE_INFINITY,
      topP: 1,
      minP: 0,
      repetitionPenalty: 1,
      presencePenalty: 0,
      frequencyPenalty: 0,
    })
    expect(resolveSampling({ topK: 3 }).temperature).toBe(1)
    expect(resolveSampling({ topP: 0.5 }).temperature).toBe(1)
    expect(resolveSampling({ topP: 0.5, temperature: 0 }).temperature).toBe(0)
  })

  test('what is left out comes from generation_config.json, as in transformers.js', () => {
    const config = { do_sample: true, temperature: 0.6, top_p: 0.95, min_p: 0.1, repetition_penalty: 1.2 }
    const none = { presencePenalty: 0, frequencyPenalty: 0 }
    const expected = { temperature: 0.6, topK: 50, topP: 0.95, minP: 0.1, repetitionPenalty: 1.2, ...none }
    expect(resolveSampling({}, config)).toEqual(expected)
    expect(resolveSampling({ topK: 7, temperature: 0 }, config)).toEqual({ ...expected, topK: 7, temperature: 0 })
    expect(resolveSampling({}, { ...config, top_k: 20 }).topK).toBe(20)
    expect(resolveSampling({}, { ...config, top_k: 0 }).topK).toBe(Number.POSITIVE_INFINITY)
    // A temperature only matters if tokens are drawn.
    expect(resolveSampling({}, { temperature: 0.6 }).temperature).toBe(0)
    expect(resolveSampling({ minP: 0.1 }, { temperature: 0.6 }).temperature).toBe(0.6)
    // Values that no option accepts count as missing.
    expect(resolveSampling({}, { do_sample: true, temperature: null, top_k: -1, top_p: 'x' })).toMatchObject({
      temperature: 1,
      topK: 50,
      topP: 1,
    })
  })

  test.each([
    [{ temperature: -1 }, 'temperature'],
    [{ temperature: Number.NaN }, 'temperature'],
    [{ temperature: Number.POSITIVE_INFINITY }, 'temperature'],
    [{ topK: 0 }, 'topK'],
    [{ topK: 1.5 }, 'topK'],
    [{ topP: 0 }, 'topP'],
    [{ topP: 1.01 }, 'topP'],
    [{ topP: Number.NaN }, 'topP'],
    [{ minP: -0.1 }, 'minP'],
    [{ minP: 1.1 }, 'minP'],
    [{ repetitionPenalty: 0 }, 'repetitionPenalty'],
    [{ repetitionPenalty: Number.POSITIVE_INFINITY }, 'repetitionPenalty'],
  ])('%o is a ConfigError that names the option', (options, where) => {
    const check = () => checkOptions(options, 'generate', GENERATE_OPTIONS)
    expect(check).toThrow(expect.objectContaining({ code: 'CONFIG', where }))
    expect(check).toThrow(ConfigError)
  })
})

describe('distribution', () => {
  test('is a distribution over distinct tokens, proportional to the full softmax', () => {
    fc.assert(
      fc.property(logits, sampling, (values, options) => {
        const { ids, probabilities } = tokenDistribution(values, options)
        const full = softmax(values, options.temperature)
        expect(new Set(ids).size).toBe(ids.length)
        expect(probabilities.reduce((a, b) => a + b, 0)).toBeCloseTo(1, 10)
        const kept = [...ids].reduce((sum, id) => sum + full[id], 0)
        ids.forEach((id, i) => {
          expect(probabilities[i]).toBeCloseTo(full[id] / kept, 10)
        })
      }),
    )
  })

  test('what is kept is at least as likely as what is dropped', () => {
    fc.assert(
      fc.property(logits, sampling, (values, options) => {
        const kept = new Set(tokenDistribution(values, options).ids)
        const least = Math.min(...[...kept].map((id) => values[id]))
        values.forEach((value, id) => {
          if (!kept.has(id)) expect(value).toBeLessThanOrEqual(least)
        })
        expect(kept.size).toBeLessThanOrEqual(options.topK)
        expect(kept.has(argmax(values))).toBe(true)
      }),
    )
  })

  test('top-p keeps the fewest tokens that reach p', () => {
    fc.assert(
      fc.property(logits, fc.double({ min: 0.01, max: 0.99, noNaN: true }), (values, topP) => {
        const full = softmax(values, 1)
        const kept = [
          ...tokenDistribution(values, { temperature: 1, topK: Number.POSITIVE_INFINITY, topP, minP: 0 }).ids,
        ]
        const mass = kept.reduce((sum, id) => sum + full[id], 0)
        expect(mass).toBeGreaterThanOrEqual(topP - 1e-9)
        expect(mass - Math.min(...kept.map((id) => full[id]))).toBeLessThan(topP + 1e-9)
      }),
    )
  })

  test.each([0.1, 1, 30])('of 2,000 tokens, top-p of logits up to %d keeps those that a sort keeps', (most) => {
    const values = Float32Array.from({ length: 2000 }, (_, i) => most * Math.sin(7 * i) ** 2)
    const full = softmax(values, 1)
    const sorted = [...values.keys()].sort((a, b) => values[b] - values[a] || a - b)
    const before = (i: number) => sorted.slice(0, i).reduce((sum, id) => sum + full[id], 0)
    const expected = sorted.filter((_, i) => before(i) < 0.8)
    const options = { temperature: 1, topK: Number.POSITIVE_INFINITY, topP: 0.8, minP: 0 }
    expect([...tokenDistribution(values, options).ids]).toEqual(expected)
    expect(expected.length > 1024).toBe(most <= 1)
  })

  test('top-k keeps exactly k of equal logits, the first ones', () => {
    const options = { temperature: 1, topK: 2, topP: 1, minP: 0 }
    expect([...tokenDistribution(Float32Array.of(1, 1, 1, 1), options).ids]).toEqual([0, 1])
    expect([...tokenDistribution(Float32Array.of(0, 1, 2, 1), options).ids]).toEqual([1, 2])
    expect([...tokenDistribution(Float32Array.of(1, 1, 2), options).ids]).toEqual([0, 2])
  })

  test('a temperature close to 0 does not overflow and is greedy', () => {
    const { ids, probabilities } = tokenDistribution(Float32Array.of(-3e38, 1e38, 3e38), {
      temperature: 1e-6,
      topK: Number.POSITIVE_INFINITY,
      topP: 1,
      minP: 0,
    })
    expect([...ids]).toEqual([0, 1, 2])
    expect([...probabilities]).toEqual([0, 0, 1])
  })
})

describe('drawing', () => {
  test('only tokens with a positive probability come out, whatever the random number', () => {
    fc.assert(
      fc.property(
        logits,
        sampling,
        fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
        (values, options, u) => {
          const token = sampleToken(values, options, () => u)
          const { ids, probabilities } = tokenDistribution(values, options)
          expect(probabilities[ids.indexOf(token)]).toBeGreaterThan(0)
        },
      ),
    )
  })

  test('temperature 0, and top-k 1 at any temperature, are argmax', () => {
    fc.assert(
      fc.property(logits, fc.double({ min: 0.1, max: 3, noNaN: true }), (values, temperature) => {
        const u = () => 0.999
        expect(sampleToken(values, resolveSampling(), u)).toBe(argmax(values))
        expect(sampleToken(values, resolveSampling({ topK: 1, temperature }), u)).toBe(argmax(values))
      }),
    )
  })

  test('frequencies follow the distribution', () => {
    const random = new Random(1, 'test')
    const values = Float32Array.of(0, Math.log(2), Math.log(5), Number.NEGATIVE_INFINITY)
    const counts = [0, 0, 0, 0]
    const draws = 20_000
    for (let i = 0; i < draws; i++)
      counts[sampleToken(values, resolveSampling({ temperature: 1 }), () => random.uniform())]++
      // Five standard deviations of a binomial count.
    ;[1 / 8, 2 / 8, 5 / 8, 0].forEach((p, id) => {
      expect(Math.abs(counts[id] - p * draws)).toBeLessThanOrEqual(5 * Math.sqrt(draws * p * (1 - p)))
    })
  })
})

test.each([
  [[1, Number.NaN, 2], 'NaN for token 1'],
  [[1, Number.POSITIVE_INFINITY], 'Infinity for token 1'],
  [[Number.NEGATIVE_INFINITY, Number.NEGATIVE_INFINITY], '2 values of -Infinity'],
])('logits %o are a NumericError', (values, got) => {
  const input = Float32Array.from(values)
  for (const options of [{}, { temperature: 1 }, { topK: 1 }]) {
    const draw = () => sampleToken(input, resolveSampling(options), () => 0.5)
    expect(draw).toThrow(NumericError)
    expect(draw).toThrow(expect.objectContaining({ got }))
  }
})

test('min-p keeps what is at least that share as likely as the most likely token', () => {
  const options = { temperature: 1, topK: Number.POSITIVE_INFINITY, topP: 1, minP: 0.25 }
  const values = Float32Array.from([0.5, 0.1, 0.13, 0.27], Math.log)
  expect([...tokenDistribution(values, options).ids]).toEqual([0, 2, 3])
})

test('the penalty on repetition is that of transformers: divided above 0, multiplied below', () => {
  const values = Float32Array.of(2, -2, 3, -3)
  const sampling = resolveSampling({ repetitionPenalty: 2 })
  const none = { written: new Map(), bias: [], banned: [] }
  expect([...changedLogits(values, { ...none, sampling, known: [0, 1] })]).toEqual([1, -4, 3, -3])
  expect([...values]).toEqual([2, -2, 3, -3])
})

test('the other penalties are those of OpenAI: on tokens of the text, once, and once for each time', () => {
  const sampling = resolveSampling({ presencePenalty: 0.5, frequencyPenalty: 0.25 })
  const written = new Map([
    [0, 1],
    [1, 4],
  ])
  const bias = [[2, 7] as const, [99, 1] as const]
  const changed = changedLogits(new Float32Array(4), { sampling, known: [3], written, bias, banned: [3, 99] })
  expect([...changed]).toEqual([-0.75, -1.5, 7, -Infinity])
})

test('scores are logarithms of the probabilities, the likeliest first', () => {
  const probabilities = [0.1, 0.4, 0.2, 0.3]
  const { chosen, top } = scoreTokens(Float32Array.from(probabilities, Math.log), 2, 2)
  expect(chosen.logprob).toBeCloseTo(Math.log(0.2), 6)
  expect(top.map(({ id }) => id)).toEqual([1, 3])
  expect(top[1].logprob).toBeCloseTo(Math.log(0.3), 6)
})
