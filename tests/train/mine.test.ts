// Mined negatives: those of sentence-transformers on the same vectors, what is never mined, and parts of documents.

import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { ConfigError, DataError, type Model, mineNegatives, openSession } from '../../src/api/node.js'
import { chunksOf } from '../../src/train/search/chunks.js'
import { type Minable, type MineSettings, mine } from '../../src/train/search/mine.js'
import { openModel } from '../run/models.js'

interface Case {
  readonly options: Readonly<Record<string, number | boolean>>
  readonly form: MineSettings['form']
  readonly columns: readonly string[]
  readonly records: readonly (readonly unknown[])[]
}

const golden = JSON.parse(readFileSync('tests/golden/embedding/search.json', 'utf8'))
const vectors: Record<string, number[]> = golden.vectors
const unit = (vector: readonly number[]) => Float32Array.from(vector, (value) => value / Math.hypot(...vector))
const documents = Object.keys(vectors).filter((name) => name.startsWith('d'))

function minable(): Minable {
  const byQuery = new Map<string, number[]>()
  for (const { anchor, positive } of golden.pairs) {
    byQuery.set(anchor, [...(byQuery.get(anchor) ?? []), documents.indexOf(positive)])
  }
  const queries = [...byQuery].map(([text, positives]) => ({ text, vector: unit(vectors[text]), positives }))
  const mostPositives = Math.max(...queries.map(({ positives }) => positives.length))
  return { queries, mostPositives, documents, vectors: documents.map((name) => unit(vectors[name])), kept: new Set() }
}

async function rerank(query: string, texts: readonly string[]) {
  const half = (text: string) => vectors[text].slice(0, 4)
  return texts.map((text) => Math.fround(half(query).reduce((sum, value, i) => sum + value * half(text)[i], 0)))
}

const camel = (name: string) => name.replaceAll(/_(\w)/g, (_, letter: string) => letter.toUpperCase())

describe('mine', () => {
  it.each<[string, Case]>(golden.mining.map((of: Case) => [`${of.form} ${JSON.stringify(of.options)}`, of]))(
    'finds what sentence-transformers finds: %s',
    async (_, { options, form, columns, records }) => {
      const { reranker, ...others } = options
      const settings: MineSettings = Object.fromEntries(
        Object.entries(others).map(([name, value]) => [camel(name), value]),
      )
      const given = { ...minable(), ...(reranker === true && { rerank }) }
      const found = await mine(given, { ...settings, form, outputScores: form === 'n-tuple' }, 1)
      expect(records.length).toBeGreaterThan(0)
      const rows = (list: readonly (readonly unknown[])[]) =>
        list.map((row) => {
          return row.map((value, i) =>
            columns[i] === 'scores' ? (value as number[]).map((score) => Number(score.toFixed(5))) : value,
          )
        })
      expect(rows(found.records.map((record) => columns.map((name) => record[name])))).toEqual(rows(records))
    },
  )

  it('draws among what `top` would take from, in order, by the seed', async () => {
    const settings = { samplingStrategy: 'random', rangeMax: 9, form: 'n-tuple' } as const
    const take = async (seed: number) =>
      (await mine(minable(), settings, seed)).records.map((record) => {
        return [1, 2, 3].map((i) => String(record[`negative_${i}`]))
      })
    const top = (await mine(minable(), { rangeMax: 9, numNegatives: 9, form: 'labeled-list' }, 1)).records
    const allowed = top.map(({ positive }) => (positive as string[]).slice(1))
    for (const [i, names] of (await take(1)).entries()) {
      const places = names.map((name) => allowed[i].indexOf(name))
      expect(places).toEqual([...places].sort((a, b) => a - b))
      expect(places[0]).toBeGreaterThan(-1)
    }
    expect(await take(1)).toEqual(await take(1))
    expect(await take(2)).not.toEqual(await take(1))
  })

  it('never takes what is kept for others, counts what it drops, and refuses what cannot be mined', async () => {
    const all = await mine(minable(), { numNegatives: 5 }, 1)
    const named = new Set(all.records.map(({ negative }) => negative))
    const kept = new Set([documents.indexOf([...named][0] as string)])
    const { records } = await mine({ ...minable(), kept }, { numNegatives: 5 }, 1)
    expect(records.map(({ negative }) => negative)).not.toContain([...named][0])
    const { dropped } = await mine(minable(), { maxScore: 0.3, minScore: 0.2, form: 'n-tuple', numNegatives: 8 }, 1)
    expect(Object.values(dropped).map((count) => count > 0)).toEqual([false, false, true, true, true])
    await expect(mine(minable(), { rangeMax: 2 }, 1)).rejects.toThrow(ConfigError)
    const broken = {
      ...minable(),
      vectors: minable().vectors.map((vector, i) => (i === 3 ? vector.fill(NaN) : vector)),
    }
    await expect(mine(broken, {}, 1)).rejects.toThrow(/d3.*not finite/)
  })
})

describe('parts of documents', () => {
  const words = (text: string) => text.split(/\s+/).filter((word) => word !== '').length

  it('end with sentences, begin again with the last ones, and lose no word', () => {
    const text = Array.from({ length: 30 }, (_, i) => `Sentence ${i} has five words.`).join(' ')
    const parts = chunksOf(text, words, { chunk: 16, overlap: 5 })
    expect(parts.every((part) => words(part) <= 16 && part.endsWith('.'))).toBe(true)
    for (let i = 1; i < parts.length; i++)
      expect(parts[i].startsWith(parts[i - 1].split(/(?<=\.) /).at(-1)!)).toBe(true)
    expect(new Set(parts.join(' ').match(/\d+/g))).toEqual(new Set(text.match(/\d+/g)))
    const long = Array.from({ length: 50 }, (_, i) => `w${i}`).join(' ')
    const pieces = chunksOf(long, words, { chunk: 16 })
    expect(pieces.every((part) => words(part) <= 16)).toBe(true)
    expect(pieces.join(' ')).toBe(long)
    expect(chunksOf(text, words, {})).toEqual([text])
  })
})

describe('mineNegatives', () => {
  let model: Model
  beforeAll(async () => {
    model = await openModel('tests/golden/text-classification/encoder')
  })
  afterAll(() => model.close())
  const nouns = ['sea', 'sun', 'ship', 'whale', 'king', 'night', 'rain', 'good', 'day', 'man', 'was', 'there']
  const data = nouns.flatMap((a) =>
    nouns.slice(0, 10).map((b) => ({ query: `the ${a} and ${b}`, passage: `she saw ${a} not ${b}` })),
  )
  const corpus = [{ id: 1, text: 'the night was good. the day was there. the king saw rain' }]

  it('keeps documents of held-out questions, and of given ones, out of the negatives', async () => {
    const options = { model, data, corpus, on: {}, numNegatives: 2 }
    const negatives = ({ records }: Awaited<ReturnType<typeof mineNegatives>>) =>
      new Set(records.map(({ negative }) => negative as string))
    const unheld = negatives(await mineNegatives({ ...options, evalData: [{ query: 'x', passage: 'x y' }] }))
    const held = negatives(await mineNegatives(options))
    expect([...unheld].filter((text) => !held.has(text)).length).toBeGreaterThan(5)
    const [first] = held
    expect(negatives(await mineNegatives({ ...options, evalData: [{ query: 'x', passage: first }] }))).not.toContain(
      first,
    )
  })

  it('takes the best part of a document, and no document around a right passage', async () => {
    const parts = { model, on: {}, chunk: 8, numNegatives: 1 }
    const [{ negative }] = (await mineNegatives({ ...parts, data: [{ query: 'a', passage: 'b' }], corpus })).records
    expect(corpus[0].text).toContain(negative)
    expect(negative).not.toBe(corpus[0].text)
    const right = [{ query: 'a', passage: 'the day was there.' }]
    const none = await mineNegatives({ ...parts, data: right, corpus })
    expect(none).toMatchObject({ records: [], dropped: { pairs: 1 } })
  })

  it('lets a reranker decide what margins pass over', async () => {
    const options = { model, data, corpus, on: {}, numNegatives: 2, relativeMargin: 0.001, rangeMax: 30 }
    // Without a head, it scores by the cosine, here of other vectors.
    const reranker = { ...model, sentence: { ...model.sentence, pooling: 'cls' } }
    const session = await openSession(reranker)
    const { records } = await mineNegatives({ ...options, reranker, outputScores: true })
    expect(records.length).toBeGreaterThan(0)
    for (const { anchor, positive, negative, scores } of records.slice(0, 5)) {
      const ranked = await session.rerank(anchor as string, [positive as string, negative as string])
      const wanted = ranked.sort((a, b) => a.index - b.index).map(({ score }) => score)
      for (const [i, score] of (scores as number[]).entries()) expect(score).toBeCloseTo(wanted[i], 5)
      expect((scores as number[])[1]).toBeLessThanOrEqual(0.9991 * (scores as number[])[0])
    }
    await session.dispose()
  })

  it('refuses scores, and an unknown option', async () => {
    const scored = [{ text: 'a', textPair: 'b', score: 1 }]
    await expect(mineNegatives({ model, data: scored, on: {} })).rejects.toThrow(DataError)
    await expect(mineNegatives({ model, data, margin: 1 } as never)).rejects.toThrow(/margin/)
  })
})
