// Texts of models with states of convolutions and linear attention share steps and reuse the states of earlier prompts.
// Each is equal to the text alone.

import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { type GenerateOptions, type GenerateResult, loadAdapter, type Model } from '../../src/api/node.js'
import { Random } from '../../src/core/base/random.js'
import { loadTokenizer } from '../../src/model/text/tokenizer.js'
import { TextBatch } from '../../src/run/generate/text-batch.js'
import { ModelSession } from '../../src/run/model-session.js'
import { directoryOf, openModel } from '../run/models.js'

const FOLDERS = [
  // The last number is the length of a long prompt. The rotary tables of the last two models only have 128 rows.
  ['hybrids/lfm2/liquid-q4', 'hybrids/lfm2/adapter', 300],
  ['hybrids/granite_h/mobius', 'hybrids/granite_h/adapter', 300],
  ['hybrids/qwen3_5/mobius', 'hybrids/qwen3_5/adapter', 300],
  ['genai-decoders/qwen3_5', 'genai-decoders/qwen3_5/golden/adapter', 60],
  ['genai-decoders/lfm2', 'genai-decoders/lfm2/golden/adapter', 60],
] as const

type Request = GenerateOptions & { readonly ids: number[] }

const random = new Random(5, 'prompts')
const prompt = (count: number) => Array.from({ length: count }, () => 3 + Math.floor(90 * random.uniform()))
const requests = (long: number) =>
  [4, 4, 9, 33, 70, long, 1].map(
    (count, i): Request => ({
      ...{ ids: prompt(count), maxNewTokens: 5 + ((i * 7) % 11), logprobs: 2, adapter: i % 3 === 0 ? null : 'own' },
      ...(i % 2 === 0 ? { temperature: 0 } : { temperature: 1, seed: i }),
    }),
  )

/** Expects equal texts, up to a step at which the two best tokens are equally likely. */
function expectSame(got: GenerateResult, expected: GenerateResult): void {
  const at = expected.tokenIds.findIndex((id, i) => got.tokenIds[i] !== id)
  const [first, second] = expected.logprobs?.[at]?.top ?? []
  if (at < 0 || first.logprob - second.logprob > 1e-4) expect(got.tokenIds).toEqual(expected.tokenIds)
}

describe.each(FOLDERS)('%s', (folder, adapter, long) => {
  const all = requests(long)
  let [session, forgetful]: (ModelSession<Model> | undefined)[] = []
  beforeAll(async () => {
    const tokenizer = await loadTokenizer(directoryOf('models/union-3m'))
    const own = await loadAdapter(directoryOf(`tests/golden/${adapter}`))
    const open = async (prefixCache?: number) => {
      const model = {
        ...(await openModel(`tests/golden/${folder}`)),
        tokenizer,
        eosTokenIds: [],
        contextLength: undefined,
      }
      return ModelSession.open(model, { adapters: { own }, prefixCache }, true)
    }
    ;[session, forgetful] = [await open(), await open(0)]
  })
  afterAll(async () => {
    await session?.dispose()
    await forgetful?.dispose()
  })
  const write = (of: typeof session, { ids, ...options }: Request) => of!.generate({ ids }, options)

  it('gives each of several calls the text that it has alone, in fewer runs', async () => {
    const runs = vi.spyOn(TextBatch.prototype, 'step')
    const expected: GenerateResult[] = []
    for (const request of all) expected.push(await write(forgetful, request))
    const apart = runs.mock.calls.length
    const together = await Promise.all(all.map((request) => write(forgetful, request)))
    expect(runs.mock.calls.length - apart).toBeLessThan(apart / 2)
    const staggered = await Promise.all(
      all.map(async (request, i) => {
        for (let turn = 0; turn < 9 * i; turn++) await new Promise((resolve) => setImmediate(resolve))
        return write(forgetful, request)
      }),
    )
    for (const [i, text] of expected.entries()) {
      expectSame(together[i], text)
      expectSame(staggered[i], text)
    }
    runs.mockRestore()
  })

  it('begins after a turn that it has read, and after a beginning that two texts shared', async () => {
    const turn = async (ids: number[], cachedTokens: number) => {
      const request = { ids, temperature: 0, maxNewTokens: 6, logprobs: 2, adapter: 'own' }
      const got = await write(session, request)
      expectSame(got, await write(forgetful, request))
      expect(got.cachedTokens).toBe(cachedTokens)
      return got
    }
    const system = prompt(40)
    const first = [...system, 3, ...prompt(4)]
    const { tokenIds } = await turn(first, 0)
    const next = [...first, ...tokenIds, ...prompt(7)]
    await turn(next, first.length + tokenIds.length - 1)
    // A state cannot be cut, so the second text with this beginning is read again, and the third can use its state.
    await turn([...system, 4, ...prompt(long)], 0)
    await turn([...system, 5, ...prompt(4)], 40)
    await turn(first, 40)
    await turn([...first, 5], first.length)
  })
})
