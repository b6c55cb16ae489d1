// Runs for search without records to evaluate: which pairs they hold out, how those choose the weights and their
// strength, and what the report says.

import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { evaluate, loadAdapter, MemoryDirectory, type Model } from '../../src/api/node.js'
import { PairsToHoldOut } from '../../src/train/search/held-out.js'
import { train } from '../../src/train/train.js'
import { openModel } from '../run/models.js'

const words = ['sea', 'sun', 'ship', 'whale', 'king', 'night', 'rain', 'good', 'day', 'man', 'was', 'there']
const rows = words.flatMap((a) =>
  words.slice(0, 10).map((b) => ({ query: `the ${a} and ${b}`, passage: `she saw ${a} not ${b} in rain` })),
)

describe('pairs that are held out', () => {
  const chosen = (pairs: readonly (readonly string[])[]) => {
    const found = new PairsToHoldOut()
    for (const pair of pairs) found.add(pair)
    return found.choose()
  }
  const pairs = Array.from({ length: 400 }, (_, i) => [`question ${i}`, `passage ${Math.floor(i / 3)}`])
  const textsOf = (list: readonly (readonly string[])[]) =>
    [...chosen(list).heldOut].map((place) => list[place][0]).sort()

  it('are 15 %, at least 30, and none of fewer than 100', () => {
    expect(chosen(pairs).heldOut.size).toBe(60)
    expect(chosen(pairs.slice(0, 120)).heldOut.size).toBe(30)
    expect(chosen(pairs.slice(0, 99)).heldOut.size).toBe(0)
  })

  it('stay together if they share a document or a question', () => {
    const linked = [...pairs, ...pairs.map(([query], i) => [query, `other ${i >> 4}`])]
    const { heldOut } = chosen(linked)
    const side = new Map<string, boolean>()
    for (const [place, texts] of linked.entries()) {
      for (const text of texts) expect(side.get(text) ?? heldOut.has(place), text).toBe(heldOut.has(place))
      for (const text of texts) side.set(text, heldOut.has(place))
    }
    expect(heldOut.size).toBeGreaterThan(0)
  })

  it('are the same in another order and after mining', () => {
    expect(textsOf([...pairs].reverse())).toEqual(textsOf(pairs))
    expect(textsOf(pairs.map((pair) => [...pair, 'wrong', 'wrong too']))).toEqual(textsOf(pairs))
  })

  it('push away nobody’s document: other pairs that have it as a negative are left out', () => {
    const [held] = chosen(pairs).heldOut
    const free = [...pairs.keys()].find((place) => !chosen(pairs).heldOut.has(place))!
    const mined = pairs.map((pair, i) => [...pair, i === free ? pairs[held][1] : 'wrong'])
    expect([...chosen(mined).leftOut]).toEqual([free])
  })
})

describe('a run for search', () => {
  let model: Model
  beforeAll(async () => {
    model = await openModel('tests/golden/text-classification/encoder')
  })
  afterAll(() => model.close())
  const run = async (options: object = {}) => {
    const notes: string[] = []
    const on = { note: (text: string) => void notes.push(text), warning: () => {} }
    const given = {
      model,
      data: rows,
      batchSize: 16,
      gradientAccumulation: 1,
      epochs: 2,
      learningRate: 5e-3,
      threads: 1,
      on,
      ...options,
    }
    return { ...(await train({ task: 'embedding', config: { rank: 2 }, ...given })), notes }
  }
  const heldOut = () => {
    const pairs = new PairsToHoldOut()
    for (const { query, passage } of rows) pairs.add([query, passage])
    return [...pairs.choose().heldOut].map((place) => rows[place])
  }

  it('is measured on what is held out, over all documents, and keeps the strength that finds most', async () => {
    const out = new MemoryDirectory()
    const { report, adapter, notes } = await run({ out })
    expect(notes).toEqual(['30 of 120 pairs are held out to choose the weights'])
    expect(report.trainLoss).toHaveLength(2 * Math.ceil(90 / 16))
    expect(report.warnings).toEqual([])
    // Half of what this run learns finds more than all of it.
    expect(report.strength).toBeLessThan(1)
    const saved = await loadAdapter(out)
    expect(adapter.config.alpha).toBe(16 * report.strength)
    expect(saved.config.alpha).toBe(16 * report.strength)
    const corpus = rows.map(({ passage }, id) => ({ id, text: passage }))
    const { models } = await evaluate({ model, adapters: { saved }, data: heldOut(), corpus, at: [10], on: {} })
    for (const [i, metrics] of [report.evaluations[0].metrics, report.evalMetrics!].entries()) {
      expect(models[i].metrics['recall@10'].value).toBeCloseTo(metrics['corpusRecall@10'], 6)
    }
  })

  it('says that it found nothing better, and is the base', async () => {
    const { report, adapter } = await run({ learningRate: 1e-12 })
    expect(report).toMatchObject({ keptStep: 0, strength: 1 })
    expect(report.warnings.at(-1)).toMatch(/made nothing better \(corpusRecall@10 .* so the adapter is as it was/)
    expect(adapter.parts('linear').every(({ weightB }) => weightB.data.every((value) => value === 0))).toBe(true)
  })

  it('holds nothing out of few pairs, or if told so, and says that it cannot tell', async () => {
    const few = await run({ data: rows.slice(0, 99), epochs: 1 })
    expect(few.report).toMatchObject({ evalLoss: null, keptStep: 7 })
    expect(few.report.warnings.at(-1)).toMatch(/^99 pairs are too few .* cannot tell/)
    expect((await run({ evalSplit: 0, epochs: 1 })).report).toMatchObject({ evalLoss: null, warnings: [] })
  })
})
