// Rerankers: losses as in sentence-transformers, records, a whole run, and rankings by what was trained.

import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { ConfigError, DataError, loadAdapter, MemoryDirectory, type Model } from '../../../src/api/node.js'
import { readSentenceModules } from '../../../src/model/sentence-modules.js'
import { ModelSession } from '../../../src/run/model-session.js'
import { type RankedExample, reranking } from '../../../src/train/tasks/reranking.js'
import { taskOfRow } from '../../../src/train/tasks/task-of-row.js'
import { type RankLossName, rankLoss } from '../../../src/train/tasks/vectors/rank-losses.js'
import { train } from '../../../src/train/train.js'
import { openModel } from '../../run/models.js'

interface Golden {
  readonly options: { readonly loss: RankLossName; readonly posWeight?: number; readonly k?: number }
  readonly logits: readonly number[][]
  readonly labels: readonly number[][]
  readonly loss: number
  readonly gradients: readonly number[]
}

const golden: Record<string, Golden> = JSON.parse(readFileSync('tests/golden/embedding/rerank.json', 'utf8')).losses

describe('losses of sentence-transformers', () => {
  it.each(Object.entries(golden))('%s: value and gradients', (_, { options, logits, labels, loss, gradients }) => {
    const lists = logits.map((list, i) => ({ logits: list, labels: labels[i] }))
    const found = rankLoss(options.loss, lists, options)
    expect(Math.abs(found.loss - loss)).toBeLessThan(1e-5 * Math.max(1, Math.abs(loss)))
    for (const [i, value] of found.gradients.flat().entries()) {
      expect(Math.abs(value - gradients[i]), String(i)).toBeLessThan(1e-5)
    }
  })

  it('have no pair to learn from: 0, and no gradient', () => {
    const same = rankLoss('Lambda', [{ logits: [1, 2], labels: [1, 1] }], {})
    expect(same).toEqual({ loss: 0, gradients: [[0, 0]] })
  })
})

describe('records', () => {
  it('are pairs with labels or scores, lists, and pairs with negatives', async () => {
    const parse = (row: object) => {
      const { documents, labels } = reranking.parse(row, 'row')
      return [documents, labels]
    }
    expect(parse({ query: 'q', document: 'a', label: 1 })).toEqual([['a'], [1]])
    expect(parse({ query: 'q', passage: 'a', score: 0.5 })).toEqual([['a'], [0.5]])
    expect(parse({ query: 'q', documents: ['a', 'b'], labels: [0, 2] })).toEqual([
      ['a', 'b'],
      [0, 2],
    ])
    expect(parse({ anchor: 'q', positive: 'a', negative_1: 'b', negative_2: 'c' })).toEqual([
      ['a', 'b', 'c'],
      [1, 0, 0],
    ])
    expect(parse({ anchor: 'q', positive: 'a', negative: 'b', scores: [3] })).toEqual([['a', 'b'], [3]])
    for (const row of reranking.records) expect((await taskOfRow(row, undefined)).name).toBe('reranking')
  })

  it.each<[object, RegExp]>([
    [{ query: 'q' }, /no question with documents/],
    [{ query: 'q', document: ' ', label: 1 }, /a text is empty/],
    [{ query: 'q', document: 'a' }, /no label/],
    [{ query: 'q', document: 'a', label: 'yes' }, /a label is no number/],
    [{ query: 'q', documents: ['a', 'b'], labels: [1] }, /2 documents, 1 labels/],
    [{ query: 'q', positive: 'a', negatives: ['a'] }, /a negative equals/],
  ])('%j is refused', (row, message) => {
    expect(() => reranking.parse(row, 'row')).toThrow(DataError)
    expect(() => reranking.parse(row, 'row')).toThrow(message)
  })
})

describe('a run', () => {
  let model: Model
  beforeAll(async () => {
    model = await openModel('tests/golden/text-classification/encoder')
  })
  afterAll(() => model.close())
  const words = ['sea', 'sun', 'ship', 'whale', 'king', 'night', 'rain', 'good']
  const lists = words.map((word, i) => {
    const others = [1, 3].map((step) => `she saw ${words[(i + step) % words.length]}`)
    return { query: `the ${word} was`, documents: [...others, `she saw ${word}`], labels: [0, 0, 1] }
  })
  const run = (options: object = {}) =>
    train({
      ...{ model, task: 'reranking', data: lists, evalData: lists, batchSize: 4, epochs: 60, learningRate: 1e-2 },
      ...{ threads: 1, config: { rank: 4 }, on: { warning: () => {} }, ...options },
    })

  it('learns lists, saves one logit, and keeps the best order', async () => {
    const out = new MemoryDirectory()
    const { report } = await run({ out })
    expect(report.evalMetrics!['ndcg@10']).toBeGreaterThan(report.evaluations[0].metrics['ndcg@10'] + 0.1)
    const saved = await loadAdapter(out)
    expect(saved.labels).toEqual(['LABEL_0'])
    expect(saved.config.taskType).toBe('SEQ_CLS')
    expect(saved.get('classifier.weight', 'replacement')?.shape).toEqual([1, 16])
  })

  it('ranks as it was trained, by a sigmoid, or by raw scores if the folder of sentence-transformers says so', async () => {
    const { adapter, report } = await run({ keep: 'last', evalData: undefined })
    expect(report.evalMetrics).toBeNull()
    const rank = async (sentence = model.sentence) => {
      const session = await ModelSession.open({ ...model, sentence }, { adapters: { adapter } })
      const ranked = await session.rerank(lists[0].query, lists[0].documents, { adapter: 'adapter' })
      const pairs = lists[0].documents.map((textPair) => ({ text: lists[0].query, textPair }))
      const found = await session.classify(pairs, { adapter: 'adapter' })
      await session.dispose()
      return { ranked, logits: found.map(({ logits }) => logits[0]) }
    }
    const { ranked, logits } = await rank()
    expect(ranked.map(({ index }) => index)).toEqual([0, 1, 2].sort((a, b) => logits[b] - logits[a]))
    expect(ranked[0].index).toBe(2)
    for (const { index, score } of ranked) expect(score).toBeCloseTo(1 / (1 + Math.exp(-logits[index])), 6)
    const raw = await rank({ ...model.sentence, hasRawScores: true })
    for (const { index, score } of raw.ranked) expect(score).toBe(raw.logits[index])
  })

  it.each<[object, boolean]>([
    [{ 'config.json': { sentence_transformers: { activation_fn: 'torch.nn.modules.activation.Sigmoid' } } }, false],
    [{ 'config.json': { sentence_transformers: { activation_fn: 'torch.nn.modules.linear.Identity' } } }, true],
    [{ 'config.json': { sbert_ce_default_activation_function: 'torch.nn.modules.linear.Identity' } }, true],
    [{ 'config_sentence_transformers.json': { activation_fn: 'torch.nn.modules.linear.Identity' } }, true],
    [{ 'config.json': {} }, false],
  ])('reads the folder of a CrossEncoder: %j', async (files, isRaw) => {
    const entries = Object.entries(files).map(([name, json]) => [name, JSON.stringify(json)] as const)
    const { hasRawScores } = await readSentenceModules(new MemoryDirectory(Object.fromEntries(entries)))
    expect(hasRawScores).toBe(isRaw)
  })

  it('has one value for a step, however it is divided into runs', async () => {
    const context = { model, maxLength: 64, chatTemplate: () => undefined, chatTemplateArgs: undefined }
    const examples = lists.flatMap(
      (row) => reranking.encode(reranking.parse(row, 'row'), context).examples as RankedExample[],
    )
    const open = reranking.open(model, examples, { loss: 'Lambda' })
    const outputs = (part: readonly RankedExample[]) => ({
      scores: {
        type: 'float32' as const,
        dims: [3 * part.length, 1],
        data: Float32Array.from(part.flatMap(({ query }) => [query.length, 2, 3].map((value) => value / 7))),
      },
    })
    const stepOf = (...parts: (readonly RankedExample[])[]) =>
      open.stepLoss!(parts.map((part) => ({ outputs: outputs(part), examples: part })))
    const whole = stepOf(examples)
    const divided = stepOf(examples.slice(0, 3), examples.slice(3))
    expect(divided.loss).toBe(whole.loss)
    const gradients = (feeds: readonly object[]) =>
      feeds.flatMap((feed) => Object.values(feed).flatMap(({ data }: { data: Float32Array }) => [...data]))
    expect(gradients(divided.feeds)).toEqual(gradients(whole.feeds))
  })

  it('refuses lists for margins, single documents for lists, and options of other losses', async () => {
    const single = [{ query: 'q', document: 'a', label: 1 }]
    await expect(run({ data: single, taskOptions: { loss: 'Lambda' } })).rejects.toThrow(/compares documents/)
    await expect(run({ taskOptions: { posWeight: 2 } })).rejects.toThrow(ConfigError)
    const graded = [{ query: 'q', document: 'a', label: 2 }]
    await expect(run({ data: graded, evalData: graded })).rejects.toThrow(/between 0 and 1/)
  })
})
