// A session does not read the same tokens twice: the earlier turns of a chat, and the common beginning of many prompts.

import { describe, expect, it } from 'vitest'
import type { GenerateOptions } from '../../src/api/node.js'
import { ModelSession } from '../../src/run/model-session.js'
import { makeAdapter, openModel } from './models.js'

const FORMS = ['llama-optimum', 'llama-genai', 'gpt2-optimum', 'llama-q4', 'llama-fp16'].map(
  (name) => `tests/golden/models/${name}`,
)
const QUICK: GenerateOptions = { temperature: 0, maxNewTokens: 6, logprobs: 2 }
const SYSTEM = 'In the beginning God created the heaven and the earth. And the earth was without form. '
const ids = (session: ModelSession<Awaited<ReturnType<typeof openModel>>>, text: string, count: number) => {
  const own = session.model.tokenizer!.encode(text.repeat(9))
  return own.slice(0, count)
}

async function openSession(path: string, prefixCache?: number) {
  const model = { ...(await openModel(path)), generationConfig: {}, eosTokenIds: [] }
  const adapter = (seed: number) =>
    makeAdapter(model, /(q_proj|v_proj|c_attn|qkv_proj|up_proj)$/, { seed, rank: 2, std: 0.3 })
  return ModelSession.open(model, { adapters: { a: adapter(1), b: adapter(2) }, prefixCache }, true)
}

describe.each(['models/union-3m', ...FORMS])('%s', (path) => {
  it('reads the next turn alone, and writes the text of a session that keeps nothing', async () => {
    const [session, plain] = [await openSession(path), await openSession(path, 0)]
    const first = { ids: ids(session, SYSTEM, 40) }
    const turn = async (prompt: { ids: number[] }, options: GenerateOptions) => {
      const [got, expected] = [await session.generate(prompt, options), await plain.generate(prompt, options)]
      expect(expected.cachedTokens).toBe(0)
      const at = expected.tokenIds.findIndex((id, i) => got.tokenIds[i] !== id)
      const [best, next] = expected.logprobs?.[at]?.top ?? []
      if (at < 0 || best.logprob - next.logprob > 1e-4) expect(got.tokenIds).toEqual(expected.tokenIds)
      return got
    }
    const answer = await turn(first, { ...QUICK, adapter: 'a' })
    expect(answer.cachedTokens).toBe(0)
    // The token that was written last is not in the cache.
    const next = { ids: [...first.ids, ...answer.tokenIds, ...first.ids.slice(0, 5)] }
    expect((await turn(next, { ...QUICK, adapter: 'a' })).cachedTokens).toBe(40 + answer.tokens - 1)
    const other = { ids: [...first.ids.slice(0, 36), ...first.ids.slice(0, 3)] }
    expect((await turn(other, { ...QUICK, adapter: 'a', temperature: 1, seed: 2 })).cachedTokens).toBe(36)
    expect((await turn(first, { ...QUICK, adapter: 'a' })).cachedTokens).toBe(39)
    // Fewer than 32 equal tokens are read again.
    const few = { ids: [...first.ids.slice(0, 31), ...first.ids.slice(0, 3)] }
    expect((await turn(few, { ...QUICK, adapter: 'a' })).cachedTokens).toBe(0)
    await session.dispose()
    await plain.dispose()
  })
})

it('finds nothing for equal prompts of one call if nothing is kept', async () => {
  const session = await openSession('models/union-3m', 0)
  const prompt = { ids: ids(session, SYSTEM, 40) }
  const results = await session.generate([prompt, prompt], QUICK)
  expect(results.map(({ cachedTokens }) => cachedTokens)).toEqual([0, 0])
  await session.dispose()
})

it('shares nothing with other adapters, weights and scopes, nor with an adapter that came again', async () => {
  const session = await openSession('models/union-3m')
  const prompt = { ids: ids(session, SYSTEM, 70) }
  const cached = async (options: GenerateOptions) =>
    (await session.generate(prompt, { ...QUICK, ...options })).cachedTokens
  const choices: GenerateOptions[] = [
    { adapter: 'a' },
    {},
    { adapter: 'b' },
    { adapter: { a: 0.5 } },
    { adapter: { a: 0.5, b: 1 } },
    { adapter: 'a', cacheScope: 'key' },
  ]
  for (const choice of choices) expect(await cached(choice)).toBe(0)
  for (const choice of choices) expect(await cached(choice)).toBe(69)
  const again = makeAdapter(session.model, /q_proj$/, { seed: 3, rank: 2, std: 0.3 })
  await session.remove('a')
  await session.add('a', again)
  expect(await cached({ adapter: 'a' })).toBe(0)
  expect(await cached({ adapter: 'b' })).toBe(69)
  // Eight callers at the same time share a prompt that was read before.
  const all = await Promise.all(Array.from({ length: 8 }, () => cached({ adapter: 'b' })))
  expect(all).toEqual(Array(8).fill(69))
  await session.dispose()
})

it('keeps within its bytes what was used last', async () => {
  // Keys and values of 6 layers, with two heads of 32.
  const bytes = (tokens: number) => tokens * 12 * 64 * 4
  const session = await openSession('models/union-3m', 2 * bytes(65))
  const prompts = [0, 7, 14].map((start) => ({ ids: ids(session, SYSTEM, 90).slice(start, start + 60) }))
  const cached = async (i: number) => (await session.generate(prompts[i], QUICK)).cachedTokens
  expect([await cached(0), await cached(1), await cached(0), await cached(2)]).toEqual([0, 0, 59, 0])
  expect([await cached(0), await cached(2)]).toEqual([59, 59])
  expect(await cached(1)).toBe(0)
  await session.dispose()
})
