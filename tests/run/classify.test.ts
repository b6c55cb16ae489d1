// Labels of texts: PEFT's logits, heads of several adapters in a session, and errors.

import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  ConfigError,
  LoraAdapter,
  loadAdapter,
  MemoryDirectory,
  MismatchError,
  type Model,
  saveAdapter,
  type TextOrPair,
  UnsupportedError,
} from '../../src/api/node.js'
import { ModelSession } from '../../src/run/model-session.js'
import { directoryOf, makeAdapter, maxDifference, openModel } from './models.js'

const folder = 'tests/golden/text-classification'

interface Golden {
  rows: { text: string; textPair?: string }[]
  maxLength: number
  labels: string[]
  logits: number[][]
}

const textsOf = ({ rows }: Golden): TextOrPair[] =>
  rows.map(({ text, textPair }) => (textPair === undefined ? text : { text, textPair }))

const softmax = (logits: readonly number[]) => {
  const powers = logits.map(Math.exp)
  return powers.map((power) => power / powers.reduce((a, b) => a + b))
}

describe.each(['encoder', 'classifier'])('over the export of the %s', (name) => {
  const golden: Golden = JSON.parse(readFileSync(`${folder}/${name}/golden/golden.json`, 'utf8'))
  const { maxLength } = golden
  const texts = textsOf(golden)
  let model: Model
  let session: ModelSession<Model>
  beforeAll(async () => {
    model = await openModel(`${folder}/${name}`)
    const peft = await loadAdapter(directoryOf(`${folder}/${name}/golden/adapter-init`))
    session = await ModelSession.open(model, { adapters: { peft } })
  })
  afterAll(async () => {
    await session.dispose()
    await model.close()
  })

  it("gives PEFT's logits, with pairs and cut texts, in batches and alone", async () => {
    for (const batchSize of [1, 4, 64]) {
      const results = await session.classify(texts, { adapter: 'peft', maxLength, batchSize })
      results.forEach(({ logits }, i) => void expect(maxDifference(logits, golden.logits[i])).toBeLessThan(1e-5))
      expect(results.map(({ isTruncated }) => isTruncated)).toEqual([false, false, false, false, true, false])
    }
    const alone = await session.classify(texts[2], { adapter: 'peft', maxLength })
    expect(maxDifference(alone.logits, golden.logits[2])).toBeLessThan(1e-5)
  })

  it('lists the likeliest labels, best first', async () => {
    const [{ label, score, labels }] = await session.classify(texts, { adapter: 'peft', maxLength, topK: 9 })
    const expected = softmax(golden.logits[0])
    const best = expected.indexOf(Math.max(...expected))
    expect(label).toBe(golden.labels[best])
    expect(score).toBeCloseTo(expected[best], 5)
    expect(labels.map((one) => one.score)).toEqual([...labels.map((one) => one.score)].sort((a, b) => b - a))
    expect(labels).toHaveLength(3)
    const few = await session.classify(texts[0], { adapter: 'peft', maxLength, topK: 2 })
    expect(few.labels).toEqual([labels[0], labels[1]])
  })

  it('has heads of different sizes, with labels of their own, in one session', async () => {
    const widths = { two: 2, five: 5 }
    for (const [key, width] of Object.entries(widths)) {
      const adapter = await loadAdapter(directoryOf(`${folder}/${name}/golden/adapter-init`))
      adapter.remove('classifier.weight')
      adapter.remove('classifier.bias')
      const data = Float32Array.from({ length: width * 16 }, (_, i) => Math.sin(i))
      adapter.addReplacement('classifier.weight', { data, shape: [width, 16] })
      adapter.addReplacement('classifier.bias', { data: new Float32Array(width), shape: [width] })
      if (key === 'two') adapter.labels = ['ham', 'spam']
      await session.add(key, adapter)
    }
    const [two, five, three] = await Promise.all(
      ['two', 'five', 'peft'].map((adapter) => session.classify(texts[0], { adapter, maxLength, topK: 5 })),
    )
    expect(two.labels.map(({ label }) => label).sort()).toEqual(['ham', 'spam'])
    expect(five.labels.map(({ label }) => label).sort()).toEqual([0, 1, 2, 3, 4].map((i) => `LABEL_${i}`))
    expect(maxDifference(three.logits, golden.logits[0])).toBeLessThan(1e-5)
    const input_ids = { type: 'int64', data: BigInt64Array.of(1n, 2n), dims: [2, 1] } as const
    const rows = session.run({ input_ids }, { adapter: ['two', 'five'] })
    await expect(rows).rejects.toThrow(/heads of different sizes cannot share a batch/)
    const mixes = ['two', 'five'].map((adapter) => [{ name: adapter, weight: 1 }])
    expect(() => session.headFor(mixes)).toThrow(/heads with different labels/)
    await session.remove('two')
    await expect(session.classify(texts[0], { adapter: 'two' })).rejects.toThrow(/no adapter "two"/)
  })

  it('keeps labels with a saved adapter, and refuses those that are not as many as outputs', async () => {
    const adapter = await loadAdapter(directoryOf(`${folder}/${name}/golden/adapter-init`))
    expect(adapter.labels).toBeUndefined()
    adapter.labels = ['a', 'b', 'c']
    const saved = new MemoryDirectory()
    await saveAdapter(adapter, saved)
    const loaded = await loadAdapter(saved)
    expect(loaded.labels).toEqual(['a', 'b', 'c'])
    await session.add('named', loaded)
    const { label } = await session.classify(texts[0], { adapter: 'named', maxLength })
    expect(['a', 'b', 'c']).toContain(label)
    loaded.labels = ['a', 'b']
    await expect(session.add('wrong', loaded)).rejects.toThrow(MismatchError)
    expect(session.adapters).not.toContain('wrong')
  })

  it('refuses a head of another width, and tensors that are no part of a head', async () => {
    const wide = new LoraAdapter({ rank: 1, taskType: 'SEQ_CLS' })
    wide.addReplacement('classifier.weight', { data: new Float32Array(3 * 8), shape: [3, 8] })
    const first =
      name === 'encoder'
        ? /bert\.pooler\.dense\.weight.*needs it/
        : /classifier\.weight.*expected \(d, 16\).*got \(3, 8\)/
    await expect(session.add('wide', wide)).rejects.toThrow(first)
    const other = new LoraAdapter({ rank: 1, taskType: 'SEQ_CLS' })
    other.addReplacement('bert.embeddings.other.weight', { data: new Float32Array(16), shape: [16] })
    await expect(session.add('other', other)).rejects.toThrow(UnsupportedError)
    await expect(session.add('other', other)).rejects.toThrow(
      /bert\.embeddings\.other\.weight.*no tensor that is certain/,
    )
    await expect(session.classify([1 as never])).rejects.toThrow(/texts\[0\]/)
    await expect(session.classify([{ text: 'a', label: 'b' } as never])).rejects.toThrow(ConfigError)
  })
})

it('a run gives the logits of an adapter’s head on an export without a head, beside what the graph gives', async () => {
  const model = await openModel(`${folder}/encoder`)
  const peft = await loadAdapter(directoryOf(`${folder}/encoder/golden/adapter-init`))
  const session = await ModelSession.open(model, { adapters: { peft } })
  const { logits } = await session.classify('The sea was calm', { adapter: 'peft', topK: 2 })
  const { ids } = model.tokenizer!.encodeTexts('The sea was calm', undefined, 99)
  const input_ids = { type: 'int64', data: BigInt64Array.from(ids, BigInt), dims: [1, ids.length] } as const
  const all = await session.run({ input_ids }, { adapter: 'peft' })
  expect(Object.keys(all).sort()).toEqual([...session.outputNames, 'logits'].sort())
  expect(maxDifference(all.logits, logits)).toBeLessThan(1e-6)
  const some = await session.run({ input_ids }, { adapter: 'peft', outputNames: ['logits'] })
  expect(Object.keys(some)).toEqual(['logits'])
  expect(maxDifference(some.logits, logits)).toBeLessThan(1e-6)
  await expect(session.run({ input_ids }, { outputNames: ['logits'] })).rejects.toThrow(/no such output/)
  const pair = { ...input_ids, data: BigInt64Array.from([...ids, ...ids], BigInt), dims: [2, ids.length] }
  const both = await session.run({ input_ids: pair }, { adapter: ['peft', 'peft'] })
  expect(both.logits.dims).toEqual([2, logits.length])
  await expect(session.run({ input_ids: pair }, { adapter: ['peft', null] })).rejects.toThrow(
    /no logits for rows whose adapter brings no head/,
  )
  await session.dispose()
  await model.close()
})

it('classifies with a head alone, and with the head that the graph has', async () => {
  const golden: Golden = JSON.parse(readFileSync(`${folder}/classifier/golden/golden.json`, 'utf8'))
  const model = await openModel(`${folder}/classifier`)
  const head = new LoraAdapter({ rank: 1, taskType: 'SEQ_CLS' })
  const data = Float32Array.from({ length: 2 * 16 }, (_, i) => Math.cos(i))
  head.addReplacement('classifier.weight', { data, shape: [2, 16] })
  const session = await ModelSession.open(model, { adapters: { head } })
  const [first] = textsOf(golden)
  const base = await session.classify(first)
  expect(golden.labels).toContain(base.label)
  const own = await session.classify(first, { adapter: 'head', topK: 2 })
  expect(own.logits).toHaveLength(2)

  // `run` takes the logits from the adapter's head too. It returns no outputs that the model does not have.
  const ids = model.tokenizer!.encodeTexts(first as string, undefined, 99).ids
  const input_ids = { type: 'int64', data: BigInt64Array.from(ids, BigInt), dims: [1, ids.length] } as const
  const outputs = await session.run({ input_ids }, { adapter: 'head' })
  expect(Object.keys(outputs)).toEqual(['logits'])
  expect(maxDifference(outputs.logits, own.logits)).toBeLessThan(1e-6)
  const plain = await session.run({ input_ids })
  expect(maxDifference(plain.logits, base.logits)).toBeLessThan(1e-6)
  await session.dispose()
  await model.close()
})

it('reads the logits of a graph whose own classifier an adapter changes by LoRA', async () => {
  const model = await openModel(`${folder}/classifier`)
  const session = await ModelSession.open(model, { adapters: { lora: makeAdapter(model, /^classifier$/, { std: 1 }) } })
  const [base, adapted] = [await session.classify('The sea'), await session.classify('The sea', { adapter: 'lora' })]
  expect(maxDifference(base.logits, adapted.logits)).toBeGreaterThan(0.01)
  await session.dispose()
  await model.close()
})

it('refuses models and adapters without a head for labels', async () => {
  const encoder = await openModel(`${folder}/encoder`)
  const plain = makeAdapter(encoder, /query$/)
  const session = await ModelSession.open(encoder, { adapters: { plain } })
  await expect(session.classify('a')).rejects.toThrow(/the model has no head that gives labels.*got last_hidden_state/)
  await expect(session.classify('a', { adapter: 'plain' })).rejects.toThrow(/nor the adapter "plain" has a head/)
  const partial = new LoraAdapter({ rank: 1, taskType: 'SEQ_CLS' })
  partial.addReplacement('bert.pooler.dense.weight', { data: new Float32Array(256), shape: [16, 16] })
  await expect(session.add('partial', partial)).rejects.toThrow(/classifier\.weight.*follows it/)
  await session.dispose()
  await encoder.close()

  const causal = await openModel('tests/golden/models/llama-optimum')
  const texts = await ModelSession.open(causal)
  await expect(texts.classify('a')).rejects.toThrow(/call generate/)
  await texts.dispose()
  await causal.close()
})
