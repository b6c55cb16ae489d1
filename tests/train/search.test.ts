// Search over a corpus: measures of sentence-transformers and ir_measures, what is read, and what is refused.

import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  DataError,
  type DataRecord,
  evaluate,
  loadAdapter,
  MemoryDirectory,
  type Model,
  NumericError,
  openSession,
} from '../../src/api/node.js'
import { checkRanges, quantized, rangesOf, restored } from '../../src/run/readings/quantize.js'
import type { TrainingData } from '../../src/train/options.js'
import { readCorpus, readQuestions } from '../../src/train/search/corpus.js'
import { measuresOf } from '../../src/train/search/measures.js'
import { best, rankOf, similarities } from '../../src/train/search/nearest.js'
import { meansOf } from '../../src/train/tasks/metrics.js'
import { openModel } from '../run/models.js'

const golden = JSON.parse(readFileSync('tests/golden/embedding/search.json', 'utf8'))
const unit = (vector: readonly number[]) => Float32Array.from(vector, (value) => value / Math.hypot(...vector))

describe('measures of a ranking', () => {
  const names = (letter: string) => Object.keys(golden.vectors).filter((name) => name.startsWith(letter))
  const vectorsOf = (letter: string) => names(letter).map((name) => unit(golden.vectors[name]))
  const [queries, documents] = [names('q'), names('d')]
  const found = [...similarities(vectorsOf('q'), vectorsOf('d'))].map(({ query, scores }) => {
    const grades = Object.entries<number>(golden.grades[queries[query]]).filter(([, grade]) => grade > 0)
    const ranked = grades.map(([name, grade]) => ({ rank: rankOf(scores, documents.indexOf(name)), grade }))
    return {
      all: measuresOf(ranked, golden.at),
      binary: measuresOf(
        ranked.map(({ rank }) => ({ rank, grade: 1 })),
        golden.at,
      ),
    }
  })
  const means = (kind: 'all' | 'binary') => {
    const columns = Object.keys(found[0][kind]).map((name) => [name, found.map((of) => of[kind][name])] as const)
    return meansOf(Object.fromEntries(columns))
  }

  it('are those of InformationRetrievalEvaluator, whose relevance is binary', () => {
    const own = means('binary')
    for (const [name, value] of Object.entries<number>(golden.sentenceTransformers)) {
      if (!name.startsWith('accuracy')) expect(own[name], name).toBeCloseTo(value, 6)
    }
  })

  it('are those of ir_measures, with linear grades in nDCG', () => {
    const own = means('all')
    const named = { nDCG: 'ndcg', P: 'precision', R: 'recall', RR: 'mrr', AP: 'map' } as Record<string, string>
    for (const [name, value] of Object.entries<number>(golden.irMeasures)) {
      const [measure, k] = name.split('@')
      expect(own[k === undefined ? named[measure] : `${named[measure]}@${k}`], name).toBeCloseTo(value, 6)
    }
  })

  it('keep the order of the corpus among equal scores', () => {
    const scores = Float32Array.of(0.5, 0.9, 0.5, 0.9, 0.1)
    expect(best(scores, 3)).toEqual([1, 3, 0])
    expect(best(scores, 9)).toEqual([1, 3, 0, 2, 4])
    expect([0, 1, 2, 3, 4].map((i) => rankOf(scores, i))).toEqual([3, 1, 4, 2, 5])
    expect(() => [...similarities([Float32Array.of(1)], [Float32Array.of(1, 0)])]).toThrow(/different sizes/)
  })
})

describe('vectors of few bits', () => {
  const vectors = Object.keys(golden.vectors)
    .filter((name) => name.startsWith('d'))
    .map((name) => Float32Array.from(golden.vectors[name]))
  const ranges = rangesOf(vectors.slice(0, 9))

  it.each(['int8', 'uint8', 'binary', 'ubinary'] as const)('are those of sentence-transformers: %s', (precision) => {
    const found = vectors.slice(9).map((vector) => [...quantized(vector, precision, ranges)])
    expect(found).toEqual(golden.quantized[precision])
  })

  it.each(['int8', 'uint8', 'binary', 'ubinary'] as const)('stand for values near the whole ones: %s', (precision) => {
    for (const vector of vectors.slice(0, 9)) {
      const stored = quantized(vector, precision, ranges)
      const found = restored(stored, precision, { ranges, size: vector.length })
      for (const [i, value] of vector.entries()) {
        const step = (ranges[1][i] - ranges[0][i]) / 255
        if (precision.endsWith('binary')) expect(found[i]).toBe(value > 0 ? 1 : -1)
        else expect(Math.abs(found[i] - value)).toBeLessThanOrEqual(0.51 * step)
      }
    }
  })

  it('are refused without the values that bytes stand for, or with those of other vectors', () => {
    expect(() => checkRanges('int8', undefined)).toThrow(/calibrate/)
    expect(() => checkRanges('binary', undefined)).not.toThrow()
    expect(() => quantized(vectors[0], 'uint8', [[0], [1]])).toThrow(/of vectors of another size/)
  })
})

const lines = (...rows: object[]) => rows.map((row) => JSON.stringify(row)).join('\n')
const beir = () =>
  new MemoryDirectory(
    {
      'corpus.jsonl': lines(
        { _id: 'a', title: 'Sea', text: 'the sea was calm' },
        { _id: 'b', title: '', text: 'a grim night' },
      ),
      'queries.jsonl': lines(
        { _id: '1', text: 'how was the sea' },
        { _id: '2', text: 'the night' },
        { _id: '3', text: 'rain' },
      ),
      'test.tsv': 'query-id\tcorpus-id\tscore\n1\ta\t2\n2\tb\t1\n3\tb\t0\n1\tb\t1\n',
    },
    'beir',
  )

describe('reading', () => {
  it('takes BEIR’s layout', async () => {
    const folder = beir()
    const documents = await readCorpus(folder)
    expect(documents.map(({ id, text }) => [id, text])).toEqual([
      ['a', 'Sea the sea was calm'],
      ['b', 'a grim night'],
    ])
    const questions = await readQuestions(await folder.open('test.tsv'), folder, documents)
    expect(questions.map(({ text, grades }) => [text, [...grades]])).toEqual([
      [
        'how was the sea',
        [
          [0, 2],
          [1, 1],
        ],
      ],
      ['the night', [[1, 1]]],
      ['rain', [[1, 0]]],
    ])
  })

  it('takes folders of texts, records with ids, and questions by texts or ids', async () => {
    const files = { 'a.md': 'the sea', 'b.txt': 'a night', 'image.png': 'x' }
    const documents = await readCorpus(new MemoryDirectory(files, 'docs'))
    expect(documents.map(({ id, text }) => [id, text])).toEqual([
      ['a.md', 'the sea'],
      ['b.txt', 'a night'],
    ])
    const rows = [
      { query: 'q', passage: 'the sea' },
      { anchor: 'q', positive: ['a night'] },
      { text: 'r', relevant: { 'a.md': 2 } },
    ]
    const questions = await readQuestions(rows, [], documents)
    expect(questions.map(({ text, grades }) => [text, [...grades]])).toEqual([
      [
        'q',
        [
          [0, 1],
          [1, 1],
        ],
      ],
      ['r', [[0, 2]]],
    ])
  })

  const ask = async (corpus: object[] | MemoryDirectory, data: object[]) => {
    const given = corpus as TrainingData
    return readQuestions(data as DataRecord[], given, await readCorpus(given))
  }
  it.each<[string, object[] | MemoryDirectory, object[], RegExp]>([
    [
      'double ids',
      [
        { id: 1, text: 'a' },
        { id: 1, text: 'b' },
      ],
      [],
      /corpus\[1\].*the id "1" is that of corpus\[0\] too/,
    ],
    ['an empty passage', [{ id: 1, text: ' ' }], [], /corpus\[0\].*text is empty/],
    ['no text', [{ id: 1 }], [], /corpus\[0\].*without a text/],
    ['a qrel without a document', beir(), [{ 'query-id': 1, 'corpus-id': 'x' }], /data\[0\].*no document "x"/],
    ['a qrel without a question', beir(), [{ 'query-id': 9, 'corpus-id': 'a' }], /no question "9"/],
    ['qrels without queries', [{ id: 1, text: 'a' }], [{ 'query-id': 1, 'corpus-id': '1' }], /no queries\.jsonl/],
    [
      'a text that is nowhere',
      [{ text: 'a' }],
      [{ query: 'q', passage: 'b' }],
      /data\[0\].*no document with this text/,
    ],
    ['no question', [{ text: 'a' }], [{ x: 1 }], /no question with its documents/],
  ])('refuses %s', async (_, corpus, data, message) => {
    const asked = ask(corpus, data)
    await expect(asked).rejects.toThrow(DataError)
    await expect(asked).rejects.toThrow(message)
  })
})

describe('evaluate with a corpus', () => {
  let model: Model
  beforeAll(async () => {
    model = await openModel('tests/golden/text-classification/encoder')
  })
  afterAll(() => model.close())
  const words = ['sea', 'sun', 'ship', 'whale', 'king', 'night', 'rain', 'good']
  const corpus = words.map((word) => ({ id: word, text: `she saw ${word}` }))
  const data = words.map((word) => ({ query: `the ${word} was`, relevant: [word] }))

  it('measures vectors of few bits, and orders the first results by whole questions', async () => {
    const measured = async (more: Partial<Parameters<typeof evaluate>[0]>) => {
      const { models } = await evaluate({ model, data, corpus, at: [1, 3], on: {}, threads: 1, ...more })
      return Object.values(models[0].metrics).map(({ value }) => value)
    }
    const whole = await measured({})
    expect(await measured({ precision: 'int8', rescore: 4 })).toEqual(whole)
    const bits = await measured({ precision: 'binary', rescore: 0 })
    const again = await measured({ precision: 'binary' })
    expect(bits).not.toEqual(whole)
    expect(again).not.toEqual(bits)
    // The same ranking by hand: bits with bits, then the first 2 · 3 by whole questions.
    const session = await openSession(model)
    const [asked, stored] = await Promise.all([
      session.embed(data.map(({ query }) => query)),
      session.embed(corpus.map(({ text }) => text)),
    ])
    await session.dispose()
    const bit = (value: number) => (value > 0 ? 1 : -1)
    const ranks = asked.map((question, own) => {
      const product = (of: (value: number) => number) =>
        stored.map((document) => document.reduce((sum, value, i) => sum + of(question[i]) * bit(value), 0))
      const [rough, fine] = [product(bit), product((value) => value)]
      const first = best(rough, 6)
      return rankOf(
        rough.map((score, i) => (first.includes(i) ? fine[i] : score - 1e6)),
        own,
      )
    })
    const mean = (of: (rank: number) => number) => ranks.reduce((sum, rank) => sum + of(rank), 0) / ranks.length
    const { models } = await evaluate({ model, data, corpus, at: [1, 3], precision: 'binary', on: {}, threads: 1 })
    expect(models[0].metrics.map.value).toBeCloseTo(
      mean((rank) => 1 / rank),
      9,
    )
    const cut = await measured({ dimensions: 4 })
    expect(cut).not.toEqual(whole)
    await expect(measured({ dimensions: 4096 })).rejects.toThrow(/larger than the vectors/)
  })

  it('measures base and adapter, with differences, won and lost questions', async () => {
    const adapter = await loadAdapter('tests/golden/embedding/adapter-init')
    const taskOptions = { queryPrompt: 'it was ', documentPrompt: '' }
    const report = await evaluate({
      model,
      adapters: { own: adapter },
      data,
      corpus,
      at: [1, 3],
      taskOptions,
      on: {},
      threads: 1,
    })
    expect([report.task, report.records, report.documents, report.differBy]).toEqual(['search', 8, 8, 'ndcg@3'])
    const session = await (await import('../../src/api/node.js')).openSession(model, { adapters: { own: adapter } })
    for (const [i, adapterName] of [null, 'own'].entries()) {
      const of = (texts: string[], prompt: string) => session.embed(texts, { adapter: adapterName, prompt })
      const blocks = similarities(
        await of(
          data.map(({ query }) => query),
          'it was ',
        ),
        await of(
          corpus.map(({ text }) => text),
          '',
        ),
      )
      const ranks = [...blocks].map(({ query, scores }) => rankOf(scores, query))
      const { metrics } = report.models[i]
      expect(metrics['recall@1'].value).toBeCloseTo(ranks.filter((rank) => rank === 1).length / 8, 9)
      expect(metrics.map.value).toBeCloseTo(ranks.reduce((sum, rank) => sum + 1 / rank, 0) / 8, 9)
      expect(metrics['mrr@3'].low).toBeLessThanOrEqual(metrics['mrr@3'].value)
    }
    await session.dispose()
    const [base, own] = report.models
    const { value } = own.differences!['recall@3']
    expect(value).toBeCloseTo(own.metrics['recall@3'].value - base.metrics['recall@3'].value, 9)
    for (const { values, answers, wanted } of report.differing) {
      expect(values[0]).not.toBe(values[1])
      expect(answers).toHaveLength(2)
      expect(answers![0]).toMatch(/^1\.( ✓)? \w+: she saw \w+\n2\./)
      expect(wanted).toMatch(/^\w+: she saw/)
    }
    const turned = await evaluate({
      model,
      adapters: { own: adapter },
      data,
      corpus,
      against: 'own',
      on: {},
      threads: 1,
    })
    expect(turned.models.map(({ name }) => name)).toEqual(['own', null])
  })

  it('writes nothing of vectors that are not finite', async () => {
    const adapter = await loadAdapter('tests/golden/embedding/adapter-init')
    for (const { weightA, weightB } of adapter.parts('linear'))
      for (const { data } of [weightA, weightB]) data.fill(3e38)
    const broken = evaluate({ model, adapters: { own: adapter }, data, corpus, on: {}, threads: 1 })
    await expect(broken).rejects.toThrow(NumericError)
  })
})
