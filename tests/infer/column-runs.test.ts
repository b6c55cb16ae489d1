import { expect, it } from 'vitest'
import { tokenInputs } from '../../src/graph/inputs/tokens.js'
import { Graph } from '../../src/graph/view/graph.js'
import { ModelSession } from '../../src/infer/model-session.js'
import type { Feeds } from '../../src/runtime/runtime.js'
import { makeAdapter, maxDifference, openModel } from './models.js'

/** Two texts, one padded on the left: three tokens, and then three more tokens in one run. */
const FIRST = { batch: 2, sequence: 3, inputIds: [5, 6, 7, 0, 8, 9], attentionMask: [1, 1, 1, 0, 1, 1] }
const MORE = { ...FIRST, past: 3, inputIds: [1, 2, 3, 4, 5, 6], attentionMask: [1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1] }

it.each(['models/union-3m', 'tests/golden/models/qwen2-optimum'])(
  '%s: several new tokens of several texts behind a cache give what they give in one run without it',
  async (folder) => {
    const model = await openModel(folder)
    const { feeds, emptyCache, cache } = tokenInputs(new Graph(model.onnx.proto))
    const session = await ModelSession.open(model, {
      adapters: { a: makeAdapter(model, /q_proj|down_proj/), b: makeAdapter(model, /v_proj|up_proj/, { seed: 2 }) },
    })
    for (const adapter of [undefined, 'a', ['a', 'b']] as const) {
      const before = await session.run({ ...feeds(FIRST), ...emptyCache(2) }, { adapter })
      const pasts: Feeds = Object.fromEntries(cache.map(({ past, present }) => [past, before[present]]))
      const outputs = await session.run({ ...feeds(MORE), ...pasts }, { adapter })
      const inputIds = [5, 6, 7, 1, 2, 3, 0, 8, 9, 4, 5, 6]
      const whole = { batch: 2, sequence: 6, inputIds, attentionMask: MORE.attentionMask }
      const expected = await session.run({ ...feeds(whole), ...emptyCache(2) }, { adapter })
      expect(outputs.logits.dims).toEqual([2, 3, expected.logits.dims[2]])
      const half = expected.logits.data.length / 4
      const late = [1, 3].flatMap((part) => [...expected.logits.data.slice(part * half, (part + 1) * half)] as number[])
      expect(maxDifference(outputs.logits, late)).toBeLessThan(1e-4)
      for (const { present } of cache) {
        expect(outputs[present].dims).toEqual(expected[present].dims)
        // What fills a text up has other keys, which nothing reads.
        const [, heads, , size] = expected[present].dims
        const first = (data: ArrayLike<number>) => Array.from(data).slice(0, heads * 6 * size)
        expect(
          maxDifference(first(outputs[present].data as never), first(expected[present].data as never)),
        ).toBeLessThan(1e-4)
      }
    }
    await session.dispose()
  },
)
