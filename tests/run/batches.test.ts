// Several prompts in a batch, also with a different adapter for each row. Each row gives the same result as alone.

import { describe, expect, it } from 'vitest'
import {
  ConfigError,
  loadAdapter,
  MismatchError,
  type Model,
  type RuntimeTensor,
  UnsupportedError,
} from '../../src/api/node.js'
import { batchesOf } from '../../src/run/generate/running-texts.js'
import { ModelSession } from '../../src/run/model-session.js'
import { cases } from '../thorough.js'
import { directoryOf, feedsOf, makeAdapter, maxDifference, openModel } from './models.js'

const MODELS = 'tests/golden/models'
const PROMPTS = [
  'The',
  'And the people of the United States',
  'In the beginning God',
  'Call me',
  'We hold these truths to be',
]

/** The largest difference of a row from its run alone, relative to the largest logit. */
const TOLERANCE = 1e-5

/** Returns the logits (sequence, vocabulary) of a row of a batch. */
function batchRow({ data, dims }: RuntimeTensor, row: number): Float32Array {
  const size = dims[1] * dims[2]
  return (data as Float32Array).slice(row * size, (row + 1) * size)
}

const largest = (values: Float32Array) => values.reduce((max, value) => Math.max(max, Math.abs(value)), 0)

/** Makes two adapters with different ranks and modules. */
function adaptersOf(model: Model) {
  return {
    a: makeAdapter(model, /(q_proj|v_proj|c_attn|up_proj)$/, { seed: 1, rank: 2, std: 0.3 }),
    b: makeAdapter(model, /(v_proj|c_attn|down_proj|c_proj)$/, { seed: 2, rank: 5, std: 0.3 }),
  }
}

describe.each([
  'models/union-3m',
  ...cases(
    ['llama-genai', 'llama-dynamo', 'gpt2-optimum'],
    ['llama-optimum', 'llama-genai-rotary', 'qwen2-optimum', 'llama-q4'],
  ).map((name) => `${MODELS}/${name}`),
])('%s', (path) => {
  it('gives each prompt of a batch the text and the scores that it has alone, with an adapter for each', async () => {
    const model = await openModel(path)
    const session = await ModelSession.open(model, { adapters: adaptersOf(model) })
    const adapter = ['a', null, 'b', { a: 0.5, b: -0.5 }, 'a']
    const options = { maxNewTokens: 9, logprobs: 2, temperature: 0 }
    const together = await session.generate(PROMPTS, { ...options, adapter })
    for (const [i, prompt] of PROMPTS.entries()) {
      const alone = await session.generate(prompt, { ...options, adapter: adapter[i] })
      expect(together[i].tokenIds, prompt).toEqual(alone.tokenIds)
      expect(together[i].text).toBe(alone.text)
      alone.logprobs!.forEach(({ logprob, top }, step) => {
        expect(together[i].logprobs![step].logprob).toBeCloseTo(logprob, 4)
        expect(together[i].logprobs![step].top.map(({ id }) => id)).toEqual(top.map(({ id }) => id))
      })
    }
    await session.dispose()
    await model.close()
  })

  it('run: each row equals its run alone, and a mix the sum of what its adapters add', async () => {
    const model = await openModel(path)
    // Products with A overflow in float32 although s·B·A is small.
    const wild = makeAdapter(model, /(q_proj|c_attn)$/, { seed: 3, rank: 3, std: 0.3 })
    for (const { weightA, weightB } of wild.parts('linear')) {
      for (const [i, value] of weightA.data.entries()) weightA.data[i] = Math.sign(value) * 2 ** 127
      for (const [i, value] of weightB.data.entries()) weightB.data[i] = value * 2 ** -120
    }
    const session = await ModelSession.open(model, { adapters: { ...adaptersOf(model), wild } })
    const rows = [
      [2, 7, 1, 8, 2],
      [3, 1, 4, 1, 5],
      [9, 2, 6, 5, 3],
      [5, 8, 9, 7, 9],
      [3, 2, 3, 8, 4],
    ]
    const adapter = ['wild', 'b', { a: 1, b: 1 }, null, 'a']
    const outputNames = ['logits']
    const { logits } = await session.run(feedsOf(model, rows), { adapter, outputNames })
    for (const [i, row] of rows.entries()) {
      const alone = await session.run(feedsOf(model, [row]), { adapter: adapter[i], outputNames })
      const expected = batchRow(alone.logits, 0)
      expect(maxDifference(batchRow(logits, i), expected) / largest(expected), `row ${i}`).toBeLessThan(TOLERANCE)
      const base = await session.run(feedsOf(model, [row]), { outputNames })
      if (adapter[i] !== null) expect(maxDifference(expected, base.logits)).toBeGreaterThan(1e-3)
    }
    await session.dispose()
    await model.close()
  })
})

describe('a mix', () => {
  it('of weight 1 is the adapter, of weight 0 the base, and two halves are the whole', async () => {
    const model = await openModel(`${MODELS}/llama-optimum`)
    const { a, b } = adaptersOf(model)
    const session = await ModelSession.open(model, { adapters: { a, b, again: a } })
    const feeds = feedsOf(model, [[3, 1, 4, 1, 5]])
    const logits = async (adapter: string | null | Record<string, number>) =>
      (await session.run(feeds, { adapter })).logits
    expect(maxDifference(await logits({ a: 1 }), await logits('a'))).toBe(0)
    expect(maxDifference(await logits({ a: 0 }), await logits(null))).toBe(0)
    expect(maxDifference(await logits({ a: 0.5, again: 0.5 }), await logits('a'))).toBeLessThan(1e-5)
    await session.dispose()
    await model.close()
  })

  it('adds up biases of B, and refuses DoRA by name unless it is alone', async () => {
    const path = `${MODELS}/llama-optimum`
    const model = await openModel(path)
    const [dora, plain] = [makeAdapter(model, /q_proj$/), makeAdapter(model, /q_proj$/, { seed: 3 })]
    const config = { ...dora.config, useDora: true }
    const { LoraAdapter } = await import('../../src/lora/adapter.js')
    const scaled = new LoraAdapter(config)
    for (const layer of dora.parts('linear')) {
      const magnitude = new Float32Array(layer.d).fill(2)
      scaled.addFactors(layer.name, layer.weightA, layer.weightB, { magnitude })
    }
    const session = await ModelSession.open(model, { adapters: { scaled, plain } })
    const feeds = feedsOf(model, [
      [3, 1, 4],
      [1, 5, 9],
    ])
    const { logits } = await session.run(feeds, { adapter: ['scaled', 'plain'] })
    const alone = await session.run(feedsOf(model, [[3, 1, 4]]), { adapter: 'scaled' })
    expect(maxDifference(batchRow(logits, 0), batchRow(alone.logits, 0))).toBeLessThan(1e-5)
    const other = await session.run(feedsOf(model, [[1, 5, 9]]), { adapter: 'plain' })
    expect(maxDifference(batchRow(logits, 1), batchRow(other.logits, 0))).toBeLessThan(1e-5)
    const mixes: Record<string, number>[] = [{ scaled: 0.5 }, { scaled: 1, plain: 1 }]
    for (const adapter of mixes) {
      await expect(session.run(feeds, { adapter })).rejects.toThrow(UnsupportedError)
      await expect(session.run(feeds, { adapter })).rejects.toThrow(/"scaled".*DoRA/s)
    }
    await session.dispose()
    await model.close()
  })
})

it('rows that end early leave, and the others go on', async () => {
  const model = { ...(await openModel('models/union-3m')), generationConfig: {} }
  const plain = await ModelSession.open(model)
  const [first] = await plain.generate([PROMPTS[0]], { maxNewTokens: 12 })
  await plain.dispose()
  // The fourth token of the first text ends texts.
  const ending = { ...model, eosTokenIds: [1, first.tokenIds[3]] }
  const session = await ModelSession.open(ending, {
    adapters: { v: await loadAdapter(directoryOf('tests/golden/peft/f32')) },
  })
  const adapter = [null, 'v', null, 'v', null]
  const together = await session.generate(PROMPTS, { adapter, maxNewTokens: 12 })
  expect(together[0]).toMatchObject({ finish: 'eos', tokens: 3 })
  expect(new Set(together.map(({ tokens }) => tokens)).size).toBeGreaterThan(1)
  for (const [i, prompt] of PROMPTS.entries()) {
    const alone = await session.generate(prompt, { adapter: adapter[i], maxNewTokens: 12 })
    expect(together[i].tokenIds).toEqual(alone.tokenIds)
    expect(together[i].finish).toBe(alone.finish)
  }
  await session.dispose()
  await model.close()
})

it('texts that are drawn are those of their seeds alone, in batches of any size', async () => {
  const model = await openModel('models/union-3m')
  const session = await ModelSession.open(model)
  const drawn = { temperature: 1, topK: 40, repetitionPenalty: 1.1, maxNewTokens: 10, seed: 5 }
  const together = await session.generate(PROMPTS, drawn)
  const pieces = PROMPTS.map(() => '')
  const onText = (piece: string, index: number) => {
    pieces[index] += piece
  }
  const small = await session.generate(PROMPTS, { ...drawn, batchSize: 2, on: { text: onText } })
  for (const [i, prompt] of PROMPTS.entries()) {
    expect(together[i].seed).toBe(5 + i)
    const alone = await session.generate(prompt, { ...drawn, seed: 5 + i })
    expect(together[i].tokenIds).toEqual(alone.tokenIds)
    expect(small[i].tokenIds).toEqual(alone.tokenIds)
    expect(pieces[i]).toBe(alone.text)
  }
  await session.dispose()
  await model.close()
})

it('prompts of one length share a batch where nothing can be filled up', () => {
  expect(batchesOf([5, 3, 5, 4, 3], 8, 'left')).toEqual([[1, 4, 3, 0, 2]])
  expect(batchesOf([5, 3, 5, 4, 3], 2, 'right')).toEqual([[1, 4], [3, 0], [2]])
  expect(batchesOf([5, 3, 5, 4, 3], 8, 'none')).toEqual([[1, 4], [3], [0, 2]])
})

describe('bad input', () => {
  it('a list of another length, an unknown adapter in a list or a mix, weights that are no numbers', async () => {
    const model = await openModel(`${MODELS}/llama-optimum`)
    const session = await ModelSession.open(model, { adapters: adaptersOf(model) })
    const feeds = feedsOf(model, [[3, 1, 4]])
    const cases: [unknown, new (...args: never[]) => Error, RegExp][] = [
      [['a', 'b'], ConfigError, /adapter: a list has one adapter for each row; expected 1, got 2/],
      [['x'], MismatchError, /no adapter "x"/],
      [{ a: 1, x: 1 }, MismatchError, /no adapter "x"/],
      [{ a: Number.NaN }, ConfigError, /adapter: not valid/],
      [{ a: '1' }, ConfigError, /adapter: not valid/],
      [{}, ConfigError, /adapter: not valid/],
      [[['a']], ConfigError, /adapter: not valid/],
      [3, ConfigError, /adapter: not valid/],
    ]
    for (const [adapter, kind, message] of cases) {
      for (const call of [
        () => session.run(feeds, { adapter: adapter as never }),
        () => session.generate(['a'], { adapter: adapter as never }),
      ]) {
        const error = await call().catch((error: unknown) => error)
        expect(error, JSON.stringify(adapter)).toBeInstanceOf(kind)
        expect((error as Error).message).toMatch(message)
      }
    }
    await session.dispose()
    await model.close()
  })

  it('prompts that are none', async () => {
    const model = await openModel(`${MODELS}/llama-optimum`)
    const session = await ModelSession.open(model)
    for (const prompt of [[], [[]], 3, null, [3], [{ role: 'user' }, 'a']]) {
      await expect(session.generate(prompt as never), JSON.stringify(prompt)).rejects.toThrow(ConfigError)
    }
    await session.dispose()
    await model.close()
  })
})
