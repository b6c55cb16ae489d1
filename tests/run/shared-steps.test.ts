// Concurrent calls of a session share steps: each text is equal to the text alone, in far fewer runs.

import fc from 'fast-check'
import { afterEach, describe, expect, it, vi } from 'vitest'
import {
  type AdapterSessionOptions,
  type GenerateOptions,
  type GenerateResult,
  LoraAdapter,
  type Model,
  type RuntimeHost,
  UnsupportedError,
} from '../../src/api/node.js'
import { TextBatch } from '../../src/run/generate/text-batch.js'
import { ModelSession } from '../../src/run/model-session.js'
import { cases, runs as runsOf, some } from '../thorough.js'
import { inThread, makeAdapter, messageHost, openModel } from './models.js'

const UNION = 'models/union-3m'
const MODELS = cases(
  ['merged-if'],
  ['llama-genai', 'llama-fp16', 'llama-optimum', 'llama-genai-rotary', 'gpt2-optimum', 'llama-q4', 'llama-genai-int4'],
)

interface Request extends GenerateOptions {
  readonly prompt: string
}

/** Calls with different lengths, adapters, sampling and ends. */
const REQUESTS: readonly Request[] = [
  { prompt: 'The', adapter: 'a', maxNewTokens: 14 },
  { prompt: 'And the people of the United States', maxNewTokens: 9 },
  { prompt: 'In the beginning God created the heaven and the earth. And the earth', adapter: 'b', maxNewTokens: 20 },
  { prompt: 'Call me', adapter: { a: 0.5, b: -0.5 }, temperature: 1, topK: 20, seed: 3, maxNewTokens: 12 },
  { prompt: 'We hold these truths to be', adapter: 'b', temperature: 0.8, seed: 4, repetitionPenalty: 1.2 },
  { prompt: 'We', adapter: 'a', stop: ['e', 'th'], maxNewTokens: 16 },
  { prompt: 'Article one of the', maxNewTokens: 1 },
  { prompt: 'The sea', temperature: 1, seed: 9, maxNewTokens: 18 },
].map((request) => ({ temperature: 0, maxNewTokens: 10, logprobs: 2, ...request }))

const adaptersOf = (model: Model) => ({
  a: makeAdapter(model, /(q_proj|v_proj|c_attn|up_proj|qkv_proj)$/, { seed: 1, rank: 2, std: 0.3 }),
  b: makeAdapter(model, /(v_proj|c_attn|down_proj|c_proj|o_proj)$/, { seed: 2, rank: 5, std: 0.3 }),
})

async function withSession(
  path: string,
  options: AdapterSessionOptions,
  test: (session: ModelSession<Model>) => Promise<void>,
  runtime = inThread,
): Promise<void> {
  const model = { ...(await openModel(path, runtime)), generationConfig: {} }
  const session = await ModelSession.open(model, { adapters: adaptersOf(model), ...options })
  await test(session)
  await session.dispose()
  await model.close()
}

const write = (session: ModelSession<Model>, { prompt, ...options }: Request) => session.generate(prompt, options)

const alone = async (session: ModelSession<Model>, requests: readonly Request[] = REQUESTS) => {
  const results: GenerateResult[] = []
  for (const request of requests) results.push(await write(session, request))
  return results
}

/** Expects equal texts, up to a step at which the two best tokens are equally likely. */
function expectSame(got: GenerateResult, expected: GenerateResult, name: string): void {
  const at = expected.tokenIds.findIndex((id, i) => got.tokenIds[i] !== id)
  const [first, second] = expected.logprobs?.[at]?.top ?? []
  if (at >= 0 && second !== undefined && first.logprob - second.logprob < 1e-4) return
  const facts = ({ tokenIds, text, finish, seed }: GenerateResult) => ({ tokenIds, text, finish, seed })
  // Without a seed, each call draws a new one, which does not matter here.
  expect({ ...facts(got), seed: 0 }, name).toEqual({ ...facts(expected), seed: 0 })
}

const { step } = TextBatch.prototype
const runs = vi.spyOn(TextBatch.prototype, 'step')
const countOf = async (action: () => Promise<unknown>) => {
  runs.mockClear()
  await action()
  return runs.mock.calls.length
}
afterEach(() => void runs.mockReset())

describe.each(some([UNION, ...MODELS.map((name) => `tests/golden/models/${name}`)], 2))('%s', (path) => {
  it('gives each of many calls the text that it has alone, in far fewer runs', async () => {
    await withSession(path, {}, async (session) => {
      let expected: GenerateResult[] = []
      const apart = await countOf(async () => {
        expected = await alone(session)
      })
      let texts: GenerateResult[] = []
      const together = await countOf(async () => {
        texts = await Promise.all(REQUESTS.map((request) => write(session, request)))
      })
      for (const [i, text] of texts.entries()) expectSame(text, expected[i], REQUESTS[i].prompt)
      expect(together).toBeLessThan(apart / 3)
      // Further calls start while texts run.
      const staggered = await Promise.all(
        REQUESTS.map(async (request, i) => {
          await turns(7 * i)
          return write(session, request)
        }),
      )
      for (const [i, text] of staggered.entries()) expectSame(text, expected[i], REQUESTS[i].prompt)
    })
  })
})

/** Waits for this many turns of the event loop. */
async function turns(count: number): Promise<void> {
  for (let turn = 0; turn < count; turn++) await new Promise((resolve) => setImmediate(resolve))
}

it.each([
  UNION,
  ...cases([], ['llama-genai', 'llama-fp16', 'gpt2-optimum']).map((name) => `tests/golden/models/${name}`),
])('%s: a prompt that is read in pieces while others run has the text that it has alone', async (path) => {
  await withSession(path, {}, async (session) => {
    const [long, short] = [REQUESTS[2], { ...REQUESTS[0], maxNewTokens: 30 }]
    const expected = await alone(session, [short, long])
    let pieces = 0
    runs.mockReset()
    runs.mockImplementation(async function (this: TextBatch, most) {
      const tokens = await step.call(this, most && 3)
      if (tokens.length === 0) pieces++
      return tokens
    })
    const begun = write(session, short)
    while (runs.mock.calls.length < 3) await turns(1)
    const texts = await Promise.all([begun, write(session, long)])
    for (const [i, text] of texts.entries()) expectSame(text, expected[i], String(i))
    expect(pieces).toBeGreaterThan(3)
  })
})

it('groups that are ready in one round: a long chat that goes on does not join one that has joined another', async () => {
  await withSession(UNION, {}, async (session) => {
    Object.assign(session.model, { contextLength: 2048 })
    const [, , request] = REQUESTS
    const own = (count: number): Request => ({ ...request, prompt: `${request.prompt} `.repeat(count) })
    // The chat is in the store of prefixes, so it is read in one piece, like the others.
    const requests = [own(6), own(7), own(40)]
    const lengths = requests.map(({ prompt }) => session.model.tokenizer!.encode(prompt).length)
    expect(lengths[0]).toBeGreaterThan(64)
    expect(lengths[2]).toBeGreaterThan(2 * lengths[1] + 256)
    const expected = await alone(session, requests)
    const texts = await Promise.all(requests.map((request) => write(session, request)))
    for (const [i, text] of texts.entries()) expectSame(text, expected[i], String(i))
  })
})

describe.each(
  cases(
    [{ path: 'tests/golden/models/llama-genai', most: 90 }],
    [
      { path: UNION, most: 620 },
      ...['merged-if', 'llama-optimum', 'gpt2-optimum', 'llama-fp16', 'llama-q4'].map((name) => {
        return { path: `tests/golden/models/${name}`, most: 90 }
      }),
    ],
  ),
)('$path: texts of very different lengths', ({ path, most }) => {
  const drawn = fc.record({
    length: fc.oneof(fc.integer({ min: 1, max: 12 }), fc.integer({ min: most / 2, max: most })),
    adapter: fc.constantFrom(null, 'a', 'b'),
    maxNewTokens: fc.integer({ min: 1, max: 24 }),
    start: fc.nat(60),
    leavesAfter: fc.option(fc.integer({ min: 1, max: 8 }), { freq: 3 }),
  })

  it('come, leave, and are told apart at any step', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(drawn, { minLength: 5, maxLength: 8 }), fc.nat(120), async (texts, refused) => {
        await withSession(path, {}, async (session) => {
          Object.assign(session.model, { contextLength: 2048, eosTokenIds: [] })
          const words = session.model.tokenizer!.encode(REQUESTS[2].prompt.repeat(40))
          const write = (i: number, more: GenerateOptions = {}) => {
            const { length, adapter, maxNewTokens } = texts[i]
            const prompt = { ids: [...words.slice(0, length)] }
            return session.generate(prompt, { adapter, maxNewTokens, temperature: 0, logprobs: 2, ...more })
          }
          const expected: GenerateResult[] = []
          for (const i of texts.keys()) expected.push(await write(i))
          let count = 0
          runs.mockReset()
          runs.mockImplementation(async function (this: TextBatch, ...args) {
            if (++count === refused) throw new UnsupportedError({ where: 'logits', what: 'texts cannot be told apart' })
            return step.apply(this, args)
          })
          await Promise.all(
            texts.map(async ({ start, leavesAfter, ...facts }, i) => {
              await turns(start)
              const controller = new AbortController()
              let pieces = 0
              const onText = () => {
                if (++pieces === leavesAfter) controller.abort(new Error('enough'))
              }
              const text = await write(i, { on: { text: onText }, signal: controller.signal }).catch((error) => {
                if (pieces !== leavesAfter) throw error
              })
              if (text !== undefined) expectSame(text, expected[i], JSON.stringify(facts))
            }),
          )
        })
      }),
      { numRuns: runsOf(5) },
    )
  })
})

it('by turns, where a graph has no cache: the texts are the same', async () => {
  await withSession('tests/golden/models/llama-dynamo', {}, async (session) => {
    const expected = await alone(session)
    const texts = await Promise.all(REQUESTS.map((request) => write(session, request)))
    for (const [i, text] of texts.entries()) expectSame(text, expected[i], REQUESTS[i].prompt)
  })
})

it('in a worker, steps need no message of the calling thread: one begins a call, and one ends it', async () => {
  const { host } = messageHost() as { host: Extract<RuntimeHost, { spawn: unknown }> }
  let sent = 0
  const spawn: typeof host.spawn = (kind) => {
    const port = host.spawn(kind)
    const post: typeof port.post = (message, buffers) => {
      sent++
      port.post(message, buffers)
    }
    return { ...port, post }
  }
  const test = async (session: ModelSession<Model>) => {
    const requests = REQUESTS.map((request) => ({ ...request, maxNewTokens: 24 }))
    const expected = await alone(session, requests)
    const before = sent
    const texts = await Promise.all(requests.map((request) => write(session, request)))
    for (const [i, text] of texts.entries()) expectSame(text, expected[i], requests[i].prompt)
    expect(sent - before).toBe(2 * requests.length)
  }
  await withSession(UNION, {}, test, { ...host, spawn })
})

it('in a worker, calls that end early leave at any step, and the others have their texts', async () => {
  await withSession(
    UNION,
    {},
    async (session) => {
      const requests = REQUESTS.map((request) => ({ ...request, maxNewTokens: 24, stop: [] }))
      const expected = await alone(session, requests)
      const texts = requests.map(async ({ prompt, ...options }, i) => {
        if (i % 4 === 1) {
          const controller = new AbortController()
          let pieces = 0
          const onText = () => {
            if (++pieces === i) controller.abort(new Error('enough'))
          }
          const stopped = session.generate(prompt, { ...options, signal: controller.signal, on: { text: onText } })
          await expect(stopped).rejects.toThrow('enough')
          expect(pieces).toBe(i)
        } else if (i % 4 === 2) {
          let pieces = ''
          for await (const piece of session.stream(prompt, options)) {
            pieces += piece
            if (pieces.length > 4 * i) break
          }
          expect(expected[i].text.startsWith(pieces)).toBe(true)
        } else if (i === 3) {
          const onText = () => {
            throw new Error('not mine')
          }
          await expect(session.generate(prompt, { ...options, on: { text: onText } })).rejects.toThrow('not mine')
        } else expectSame(await session.generate(prompt, options), expected[i], prompt)
      })
      await Promise.all(texts)
      // Earlier texts leave nothing in the batch, so this text has all steps for itself.
      expect(await countOf(() => session.generate('The', { temperature: 0, maxNewTokens: 5 }))).toBe(5)
    },
    messageHost().host,
  )
})

describe('bounds', () => {
  const rowsOfRuns = () => {
    const most = { rows: 0 }
    runs.mockImplementation(async function (this: TextBatch, ...args) {
      const tokens = await step.apply(this, args)
      most.rows = Math.max(most.rows, tokens.length)
      return tokens
    })
    return most
  }
  const requests = REQUESTS.map((request) => ({ ...request, maxNewTokens: 12, stop: [] }))

  it('maxBatch: so many texts run, and the others wait in order', async () => {
    await withSession(UNION, { maxBatch: 3 }, async (session) => {
      const expected = await alone(session, requests)
      const most = { rows: 0 }
      const known = requests.map(({ prompt }) => String([...session.model.tokenizer!.encode(prompt)]))
      const begun: number[] = []
      runs.mockImplementation(async function (this: TextBatch, ...args) {
        if (!this.isRead)
          begun.push(...this.texts.map(({ request }) => known.indexOf(String(request.promptIds))).sort())
        const tokens = await step.apply(this, args)
        most.rows = Math.max(most.rows, tokens.length)
        return tokens
      })
      const texts = await Promise.all(requests.map((request) => write(session, request)))
      for (const [i, text] of texts.entries()) expectSame(text, expected[i], requests[i].prompt)
      expect(most.rows).toBe(3)
      expect(begun).toEqual([...requests.keys()])
    })
  })

  it('cacheBytes: a call waits until its prompt and its most new tokens fit, or until it is alone', async () => {
    const { config, close } = await openModel(UNION)
    await close()
    // 2 heads of 32 numbers of 4 bytes, for keys and values, in each layer.
    const tokenBytes = Number(config.num_hidden_layers) * 2 * 2 * 32 * 4
    await withSession(UNION, { cacheBytes: 70 * tokenBytes }, async (session) => {
      const expected = await alone(session, requests)
      const most = rowsOfRuns()
      const texts = await Promise.all(requests.map((request) => write(session, request)))
      for (const [i, text] of texts.entries()) expectSame(text, expected[i], requests[i].prompt)
      expect(most.rows).toBeGreaterThan(1)
      expect(most.rows).toBeLessThan(5)
    })
  })

  it('batchSize: so many prompts of a call, and a call that comes later does not wait for all of them', async () => {
    await withSession(UNION, {}, async (session) => {
      const prompts = requests.map(({ prompt }) => prompt)
      const options = { temperature: 0, maxNewTokens: 12 }
      const most = rowsOfRuns()
      const order: string[] = []
      const many = session.generate([...prompts, ...prompts], { ...options, batchSize: 2 }).then((results) => {
        order.push('many')
        return results
      })
      await turns(3)
      const one = await session.generate('The', options)
      order.push('one')
      const results = await many
      expect(order).toEqual(['one', 'many'])
      expect(most.rows).toBe(3)
      expect(results[0].tokenIds).toEqual(one.tokenIds)
      expect(results.slice(8).map(({ text }) => text)).toEqual(results.slice(0, 8).map(({ text }) => text))
    })
  })
})

it('an adapter that makes the logits infinite ends its own call alone', async () => {
  await withSession(UNION, {}, async (session) => {
    const bad = makeAdapter(session.model, /v_proj$/)
    const huge = new LoraAdapter(bad.config)
    for (const { name, weightA, weightB } of bad.parts('linear')) {
      huge.addFactors(
        name,
        { ...weightA, data: weightA.data.map((value) => value * 1e20) },
        { ...weightB, data: weightB.data.map(() => 1.5e38) },
      )
    }
    await session.add('huge', huge)
    const expected = await alone(session, [REQUESTS[0], REQUESTS[2]])
    const [first, failed, last] = await Promise.allSettled(
      [REQUESTS[0], { ...REQUESTS[1], adapter: 'huge' }, REQUESTS[2]].map((request) => write(session, request)),
    )
    expect(failed).toMatchObject({ status: 'rejected', reason: { code: 'NUMERIC' } })
    for (const [i, text] of [first, last].entries()) {
      expect(text.status).toBe('fulfilled')
      if (text.status === 'fulfilled') expectSame(text.value, expected[i], String(i))
    }
  })
})

it('an adapter that is removed before its text begins fails that call, and no other', async () => {
  await withSession(UNION, { maxBatch: 1 }, async (session) => {
    const [expected] = await alone(session, [REQUESTS[0]])
    const first = write(session, REQUESTS[0])
    const second = write(session, { ...REQUESTS[0], adapter: 'b' })
    const third = write(session, REQUESTS[0])
    const failed = expect(second).rejects.toThrow(/b: no such adapter/)
    await turns(2)
    await session.remove('b')
    await failed
    expectSame(await first, expected, 'first')
    expectSame(await third, expected, 'third')
  })
})

it('texts of which the graph cannot tell the adapters apart go on by turns', async () => {
  await withSession(UNION, {}, async (session) => {
    const requests = REQUESTS.slice(0, 3).map((request) => ({ ...request, maxNewTokens: 12 }))
    const expected = await alone(session, requests)
    runs.mockReset()
    let rows = 0
    let refused = 0
    runs.mockImplementation(async function (this: TextBatch, ...args) {
      // The third run of several texts and all later ones fail.
      if (rows > 1 && runs.mock.calls.length > 2) {
        refused++
        rows = 0
        throw new UnsupportedError({ where: 'logits', what: 'texts cannot be told apart' })
      }
      const tokens = await step.apply(this, args)
      rows = tokens.length
      return tokens
    })
    const texts = await Promise.all(requests.map((request) => write(session, request)))
    for (const [i, text] of texts.entries()) expectSame(text, expected[i], requests[i].prompt)
    expect(refused).toBe(1)
    expect(rows).toBe(1)
  })
})
