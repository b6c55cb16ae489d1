// Texts whose caches grow in arrays with spare space, compared with a run over the whole text without a cache.

import { afterAll, expect, it } from 'vitest'
import { fuseAttention } from '../../src/model/fuse/attention.js'
import { giveNewRows } from '../../src/model/fuse/new-rows.js'
import { FIRST_INPUT } from '../../src/model/inject/sites.js'
import type { RuntimeTensor } from '../../src/onnx/runtime/runtime.js'
import { Graph } from '../../src/onnx/view/graph.js'
import { generate } from '../../src/run/generate/generate.js'
import { GrowingCache } from '../../src/run/generate/growing-cache.js'
import { argmax } from '../../src/run/generate/next-token.js'
import { freeTensors } from '../../src/run/generate/row-cache.js'
import { ModelSession } from '../../src/run/model-session.js'
import { makeAdapter, openModel, recordingRuntime } from './models.js'

const model = await openModel('models/union-3m')
const adapter = makeAdapter(model, /proj$/)
const session = await ModelSession.open(model, { adapters: { adapter }, threads: 1 })
const GREEDY = { temperature: 0, repetitionPenalty: 1 }

afterAll(async () => {
  await session.dispose()
  await model.close()
})

/** Returns the likeliest next token after each token of the text, from a single run. */
async function likeliest(ids: readonly number[], name: string | null, of = session): Promise<number[]> {
  const input_ids = { type: 'int64' as const, data: BigInt64Array.from(ids, BigInt), dims: [1, ids.length] }
  const { logits } = await of.run({ input_ids }, { adapter: name, outputNames: ['logits'] })
  const [, , width] = logits.dims
  return ids.map((_, i) => argmax((logits.data as Float32Array).subarray(i * width, (i + 1) * width)))
}

it.each([null, 'adapter'])('a text that outgrows the first arrays twice, with adapter %s', async (name) => {
  const prompt = 'And the people'
  const start = [...model.tokenizer!.encode(prompt)]
  const { tokenIds } = await generate(session, prompt, { ...GREEDY, adapter: name, maxNewTokens: 140 })
  expect(tokenIds.length).toBe(140)
  const expected = await likeliest([...start, ...tokenIds.slice(0, -1)], name)
  expect(tokenIds).toEqual(expected.slice(start.length - 1))
})

it('frees the arrays that it no longer needs, without waiting for the garbage collector', () => {
  const parts = [{ past: 'past', present: 'present', heads: 2, size: 4096 }]
  const cache = new GrowingCache({ isByHead: false, output: 'rows', ids: '', mask: '', parts, takesMissing: false }, 3)
  const add = (tokens: number) => {
    const data = Float32Array.from({ length: 3 * tokens * 8192 }, (_, i) => i)
    cache.add({ type: 'float32', data, dims: [3, tokens, 8192] })
    return cache.feeds.past.data
  }
  const first = add(5)
  const before = first.slice(0, 5 * 4096)
  const later = add(20)
  expect(first.byteLength).toBe(0)
  expect(later.subarray(0, 5 * 4096)).toEqual(before)
  cache.release()
  cache.release()
  expect(later.byteLength).toBe(0)
})

it('frees tensors on a GPU, whose data cannot be read then', () => {
  const tensor = {
    location: 'gpu-buffer',
    dispose() {
      this.location = 'none'
    },
    get data(): never {
      throw new Error('The tensor is disposed.')
    },
  }
  freeTensors([tensor as unknown as RuntimeTensor])
  expect(tensor.location).toBe('none')
})

it('texts of a batch that begin at other lengths and end one after the other', async () => {
  const prompts = ['The sea', 'And the people of the United States, in order to form', 'Article one', 'We']
  const options = { ...GREEDY, maxNewTokens: 90, stop: [' of the', 'ship'] }
  const together = await generate(session, prompts, { ...options, adapter: ['adapter', null, null, 'adapter'] })
  expect(new Set(together.map(({ tokens }) => tokens)).size).toBeGreaterThan(2)
  for (const [i, { tokenIds }] of together.entries()) {
    const start = [...model.tokenizer!.encode(prompts[i])]
    const expected = await likeliest([...start, ...tokenIds.slice(0, -1)], i === 0 || i === 3 ? 'adapter' : null)
    expect(tokenIds, prompts[i]).toEqual(expected.slice(start.length - 1))
  }
})

it('a long prompt is read in pieces, also where no other text waits', async () => {
  const { module, fed } = recordingRuntime()
  const read = { ...(await openModel('models/union-3m', { module })), contextLength: 2048 }
  const own = await ModelSession.open(read, { threads: 1 })
  const ids = Array.from({ length: 1100 }, (_, i) => (i * i) % 2000)
  const { tokenIds } = await generate(own, { ids }, { ...GREEDY, maxNewTokens: 3 })
  expect(fed.map(({ input_ids }) => input_ids.dims[1])).toEqual([512, 512, 76, 1, 1])
  const expected = await likeliest([...ids, ...tokenIds.slice(0, -1)], null, own)
  expect(tokenIds).toEqual(expected.slice(ids.length - 1))
  await own.dispose()
  await read.close()
})

it('the rows are given out beside the caches, and runs give what the model gives', async () => {
  const input_ids = { type: 'int64' as const, data: BigInt64Array.of(5n, 6n), dims: [1, 2] }
  expect(Object.keys(await session.run({ input_ids })).sort()).toEqual([...session.outputNames].sort())
  const graph = new Graph(model.onnx.proto)
  expect(giveNewRows(graph)).toBeUndefined()
  fuseAttention(graph)
  const { parts, output } = giveNewRows(graph)!
  expect(parts[3]).toEqual({ past: 'past_key_values.1.value', present: 'present.1.value', heads: 2, size: 32 })
  expect(graph.outputs.at(-1)?.name).toBe(output)
})

it.each([
  ['models/union-3m', Math.max],
  // The shortest prompt ends first. Its row is padded on the right.
  ['tests/golden/models/llama-genai', Math.min],
])('%s: while texts are written, no logits but those of the last tokens are computed', async (path, of) => {
  const { module, fed } = recordingRuntime()
  const read = await openModel(path, { module })
  const own = await ModelSession.open(read, { threads: 1 })
  const prompts = ['We', 'And the people of the United States']
  const lengths = prompts.map((prompt) => read.tokenizer!.encode(prompt).length)
  await generate(own, prompts, { ...GREEDY, maxNewTokens: 2 })
  const input_ids = { type: 'int64' as const, data: BigInt64Array.of(5n, 6n), dims: [1, 2] }
  const { logits } = await own.run({ input_ids }, { outputNames: ['logits'] })
  expect(fed.map((feeds) => Number(feeds[FIRST_INPUT].data[0]))).toEqual([of(...lengths) - 1, 0, 0])
  expect(logits.dims.slice(0, 2)).toEqual([1, 2])
  await own.dispose()
  await read.close()
})

it.each(['llama-genai', 'llama-genai-rotary'])('%s: texts whose attention makes the rows itself', async (name) => {
  const fused = await openModel(`tests/golden/models/${name}`)
  const own = await ModelSession.open(fused, { threads: 1 })
  expect(own.newRows?.isByHead).toBe(name === 'llama-genai')
  const prompts = ['And the people', 'We']
  const starts = prompts.map((prompt) => [...fused.tokenizer!.encode(prompt)])
  expect(starts[0].length).not.toBe(starts[1].length)
  const options = { ...GREEDY, maxNewTokens: 80 }
  // A single text, two texts of the same length, and two of different lengths, which are padded on the right.
  const texts = [
    await generate(own, prompts[0], options),
    ...(await generate(own, [prompts[0], prompts[0]], options)),
    ...(await generate(own, prompts, options)),
  ]
  for (const [i, { tokenIds }] of texts.entries()) {
    const start = starts[i === 4 ? 1 : 0]
    const expected = await likeliest([...start, ...tokenIds.slice(0, -1)], null, own)
    expect(tokenIds, String(i)).toEqual(expected.slice(start.length - 1))
  }
  await own.dispose()
  await fused.close()
})
