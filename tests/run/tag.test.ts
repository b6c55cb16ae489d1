// Tags of words: PEFT's logits, merged heads, words and texts, and errors.

import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  ConfigError,
  type LoraAdapter,
  loadAdapter,
  loadModel,
  MemoryDirectory,
  type Model,
  UnsupportedError,
} from '../../src/api/node.js'
import { merge } from '../../src/merge/merge.js'
import { ModelSession } from '../../src/run/model-session.js'
import { directoryOf, inThread, maxDifference, openModel } from './models.js'

const folder = 'tests/golden/token-classification'
const BASES = { encoder: 'tests/golden/text-classification/encoder', distilbert: `${folder}/distilbert` }

interface Golden {
  rows: { words: string[]; tags: string[] }[]
  maxLength: number
  labels: string[]
  batch: { input_ids: number[][]; labels: number[][] }
  logits: number[][][]
}

const softmax = (logits: readonly number[]) => {
  const powers = logits.map(Math.exp)
  return powers.map((power) => power / powers.reduce((a, b) => a + b))
}

describe.each(Object.entries(BASES))('over %s', (name, base) => {
  const golden: Golden = JSON.parse(readFileSync(`${folder}/${name}/golden/golden.json`, 'utf8'))
  const { rows, maxLength, labels } = golden
  const adapterOf = async () => {
    const adapter = await loadAdapter(directoryOf(`${folder}/${name}/golden/adapter-init`))
    adapter.labels = labels
    return adapter
  }
  /** The likeliest tag of each remaining word, with its probability, from PyTorch's logits. */
  const wanted = golden.logits.map((tokens, row) =>
    tokens.flatMap((logits, i) => {
      if (golden.batch.labels[row][i] < 0) return []
      const scores = softmax(logits)
      const best = scores.indexOf(Math.max(...scores))
      return [{ tag: labels[best], score: scores[best] }]
    }),
  )
  const check = (results: { words: { tag: string; score: number }[] }[]) => {
    results.forEach(({ words }, row) => {
      expect(words.map(({ tag }) => tag)).toEqual(wanted[row].map(({ tag }) => tag))
      words.forEach(({ score }, i) => void expect(score).toBeCloseTo(wanted[row][i].score, 5))
    })
  }
  let model: Model
  let session: ModelSession<Model>
  beforeAll(async () => {
    model = await openModel(base)
    session = await ModelSession.open(model, { adapters: { peft: await adapterOf() } })
  })
  afterAll(async () => {
    await session.dispose()
    await model.close()
  })

  it("gives words PEFT's tags and probabilities, in batches and alone, as words and as texts", async () => {
    const given = rows.map(({ words }) => ({ words }))
    for (const batchSize of [1, 3, 64]) {
      check(await session.tag(given, { adapter: 'peft', maxLength, batchSize }))
    }
    const results = await session.tag(
      rows.map(({ words }) => words.join(' ')),
      { adapter: 'peft', maxLength },
    )
    check(results)
    expect(results.map(({ isTruncated }) => isTruncated)).toEqual([true, true, true, false, true])
    expect(await session.tag(given[2], { adapter: 'peft', maxLength })).toEqual(results[2])
  })

  it('is merged into a graph that gives the same, and again with a head of other labels', async () => {
    const mergeInto = async (from: typeof BASES.encoder | MemoryDirectory, adapter: LoraAdapter) => {
      const out = new MemoryDirectory({}, 'out')
      const directory = typeof from === 'string' ? directoryOf(from) : from
      await merge({ base: { directory }, adapters: adapter, out })
      const config = JSON.parse(new TextDecoder().decode(out.files.get('config.json')))
      return { out, config }
    }
    const { out, config } = await mergeInto(base, await adapterOf())
    expect(config.architectures).toEqual([
      name === 'encoder' ? 'BertForTokenClassification' : 'DistilBertForTokenClassification',
    ])
    expect(config.id2label).toEqual(Object.fromEntries(labels.entries()))
    expect(config.problem_type).toBeUndefined()
    const merged = await loadModel(out, { runtime: inThread })
    const own = await ModelSession.open(merged)
    expect(own.outputNames).toEqual(['logits'])
    const given = rows.map(({ words }) => ({ words }))
    check(await own.tag(given, { maxLength }))
    const ids = golden.batch.input_ids[2].filter((id) => id !== 0)
    const int64 = (values: number[]) =>
      ({ type: 'int64', data: BigInt64Array.from(values, BigInt), dims: [1, ids.length] }) as const
    const feeds = {
      input_ids: int64(ids),
      attention_mask: int64(ids.map(() => 1)),
      token_type_ids: int64(ids.map(() => 0)),
    }
    const { logits } = await own.run(
      Object.fromEntries(Object.entries(feeds).filter(([key]) => own.inputNames.includes(key))),
    )
    expect(logits.dims).toEqual([1, ids.length, labels.length])
    expect(maxDifference(logits, golden.logits[2].slice(0, ids.length).flat())).toBeLessThan(1e-5)

    const other = await adapterOf()
    for (const part of other.parts('linear')) other.remove(part.name)
    other.remove('classifier.weight')
    other.remove('classifier.bias')
    other.addReplacement('classifier.weight', {
      data: Float32Array.from({ length: 48 }, (_, i) => Math.sin(i)),
      shape: [3, 16],
    })
    other.addReplacement('classifier.bias', { data: new Float32Array(3), shape: [3] })
    other.labels = ['O', 'B-X', 'I-X']
    await own.add('other', other)
    const expected = await own.tag(given, { adapter: 'other' })
    const again = await mergeInto(out, other)
    const twice = await loadModel(again.out, { runtime: inThread })
    const last = await ModelSession.open(twice)
    const found = await last.tag(given)
    expect(found.map(({ words }) => words.map(({ tag }) => tag))).toEqual(
      expected.map(({ words }) => words.map(({ tag }) => tag)),
    )
    found[0].words.forEach(({ score }, i) => void expect(score).toBeCloseTo(expected[0].words[i].score, 5))
    for (const session of [own, last]) await session.dispose()
    for (const model of [merged, twice]) await model.close()
  })

  it('says where to read heads of the other kind', async () => {
    await expect(session.classify('a', { adapter: 'peft' })).rejects.toThrow(/gives labels to words.*Call tag/s)
    await expect(session.tag(['a', 1 as never])).rejects.toThrow(/texts\[1\]/)
    await expect(session.tag({ words: ['a', 1] } as never)).rejects.toThrow(ConfigError)
    expect(await session.tag({ words: [] }, { adapter: 'peft' })).toEqual({
      words: [],
      entities: [],
      isTruncated: false,
    })
    expect(await session.tag('', { adapter: 'peft' })).toEqual({ words: [], entities: [], isTruncated: false })
  })
})

it('refuses models without a head for words', async () => {
  const model = await openModel('tests/golden/text-classification/classifier')
  const labels = await loadAdapter(directoryOf('tests/golden/text-classification/classifier/golden/adapter-init'))
  const session = await ModelSession.open(model, { adapters: { labels } })
  await expect(session.tag('a')).rejects.toThrow(UnsupportedError)
  await expect(session.tag('a')).rejects.toThrow(/no head that gives labels to words.*Call classify/s)
  await expect(session.tag('a', { adapter: 'labels' })).rejects.toThrow(/gives labels to whole texts.*Call classify/s)
  await session.dispose()
  await model.close()
})

it('finds the places of entities in a text', async () => {
  const model = await openModel(BASES.distilbert)
  const session = await ModelSession.open(model)
  const text = 'Captain Ahab, of the ship Pequod, saw (Nantucket).'
  const { words, entities } = await session.tag(text)
  expect(words.map((word) => word.text)).toEqual(
    [...['Captain', 'Ahab', ',', 'of', 'the', 'ship', 'Pequod', ',', 'saw', '(', 'Nantucket', ')', '.']].slice(
      0,
      words.length,
    ),
  )
  for (const part of [...words, ...entities]) expect(text.slice(part.start, part.end)).toBe(part.text)
  expect(entities.length).toBeGreaterThan(0)
  await session.dispose()
  await model.close()
})
