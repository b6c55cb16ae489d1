// Feeds of a language model besides its tokens: defaults for feeds that the caller leaves out, and feeds of `generate`.

import { describe, expect, it } from 'vitest'
import type { Feeds, RuntimeTensor } from '../../src/api/node.js'
import { generate } from '../../src/run/generate/generate.js'
import { ModelSession } from '../../src/run/model-session.js'
import { feedsOf, maxDifference, openModel, recordingRuntime, rowOf } from './models.js'

const UNION = 'models/union-3m'
const ROWS = [
  [0, 54, 260, 1356, 270, 262],
  [0, 43, 80, 262, 1833, 1528],
]

describe('what a run leaves out', () => {
  const int64 = (rows: readonly (readonly number[])[]): RuntimeTensor => ({
    type: 'int64',
    data: BigInt64Array.from(rows.flat(), BigInt),
    dims: [rows.length, rows[0].length],
  })

  it.each([
    UNION,
    ...['llama-genai', 'llama-genai-rotary', 'llama-dynamo', 'gpt2-optimum'].map(
      (name) => `tests/golden/models/${name}`,
    ),
  ])('%s: tokens are enough', async (path) => {
    const model = await openModel(path)
    const session = await ModelSession.open(model)
    const whole = await session.run(feedsOf(model, ROWS))
    const short = await session.run({ input_ids: int64(ROWS) })
    for (const name in whole) expect(maxDifference(short[name], whole[name])).toBe(0)
    await session.dispose()
    await model.close()
  })

  // GPT-2 has learned vectors of positions. For rotary positions, only distances matter.
  it.each([UNION, 'tests/golden/models/gpt2-optimum'])('%s: positions follow mask and cache', async (path) => {
    const model = await openModel(path)
    const session = await ModelSession.open(model)
    const [row] = ROWS
    const whole = rowOf((await session.run({ input_ids: int64([row]) })).logits)
    const attention_mask = int64([[0, 0, ...row.map(() => 1)]])
    const padded = await session.run({ input_ids: int64([[2, 2, ...row]]), attention_mask })
    expect(maxDifference(rowOf(padded.logits), whole)).toBeLessThan(1e-4)
    const { logits: _, ...presents } = await session.run({ input_ids: int64([row.slice(0, 4)]) })
    const feeds: Feeds = { input_ids: int64([row.slice(4)]) }
    for (const [name, tensor] of Object.entries(presents)) feeds[name.replace('present', 'past_key_values')] = tensor
    expect(maxDifference(rowOf((await session.run(feeds)).logits), whole)).toBeLessThan(1e-4)
    delete feeds['past_key_values.1.key']
    await expect(session.run(feeds)).rejects.toThrow(/past_key_values\.1\.key/)
    await session.dispose()
    await model.close()
  })
})

it('a text feeds its newest token alone, behind the cache', async () => {
  const { module, fed } = recordingRuntime()
  const model = await openModel(UNION, { module })
  const session = await ModelSession.open(model)
  await generate(session, 'And the people', { maxNewTokens: 4 })
  const dims = (name: string) => fed.map((feeds) => [...feeds[name].dims])
  expect(dims('input_ids')).toEqual([
    [1, 5],
    [1, 1],
    [1, 1],
    [1, 1],
  ]) // the first token of all texts, and 4 of the prompt
  // The cache has space for later tokens after the prompt. The mask tells how many tokens are valid.
  expect(dims('past_key_values.5.value').map(([, , past]) => past)).toEqual([0, 16, 16, 16])
  expect(dims('attention_mask').map(([, total]) => total)).toEqual([5, 6, 7, 8])
  expect(fed.map((feeds) => Number(feeds.position_ids.data.at(-1)))).toEqual([4, 5, 6, 7])
  await session.dispose()
  await model.close()
})
