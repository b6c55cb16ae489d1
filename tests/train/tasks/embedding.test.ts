// Embeddings: losses, gradients, steps and vectors equal those of sentence-transformers. Also errors.

import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  ConfigError,
  DataError,
  loadAdapter,
  MemoryDirectory,
  type Model,
  train,
  UnsupportedError,
} from '../../../src/api/node.js'
import { readSentenceModules } from '../../../src/model/sentence-modules.js'
import { ModelSession } from '../../../src/run/model-session.js'
import { embedding, type RelatedExample, sameTexts } from '../../../src/train/tasks/embedding.js'
import { meansOf, pearson, retrievalValues, spearman } from '../../../src/train/tasks/metrics.js'
import { multipleNegatives } from '../../../src/train/tasks/vectors/losses.js'
import { parseRelatedTexts } from '../../../src/train/tasks/vectors/related-texts.js'
import { StepVectors } from '../../../src/train/tasks/vectors/step-vectors.js'
import { train as trainAdapter } from '../../../src/train/train.js'
import { maxDifference, openModel } from '../../run/models.js'
import { checkEmbeddingRun, type GoldenEmbedding, lossCases, lossExamples } from './golden-embedding.js'

const folder = 'tests/golden/embedding'

const golden: GoldenEmbedding = JSON.parse(readFileSync(`${folder}/golden.json`, 'utf8'))
const { maxLength } = golden
const load = () => loadAdapter(`${folder}/adapter-init`)

const CASES = lossCases(golden)

let model: Model
beforeAll(async () => {
  model = await openModel('tests/golden/text-classification/encoder')
})
afterAll(() => model.close())

describe.each(Object.keys(CASES))('the loss %s', (name) => {
  it.each([
    [[0, 1, 2, 3]],
    [
      [0, 1],
      [2, 3],
    ],
    [[0], [1, 2, 3]],
  ])('is that of sentence-transformers, in runs of %j', async (...parts) => {
    const [examples, { options }] = [await lossExamples(model, golden, name, maxLength), CASES[name]]
    await checkEmbeddingRun(model, examples, { folder, golden, name, options, parts })
  })
})

it('tells PEFT that the pooler, which the graph does not have, is not adapted', async () => {
  const run = async (config: object) => {
    const data = [{ anchor: 'the sea was', positive: 'she saw sea' }]
    const { adapter } = await trainAdapter({ model, task: 'embedding', data, maxSteps: 1, threads: 1, config })
    return adapter
  }
  const all = await run({ rank: 2 })
  expect(all.names().some((name) => name.endsWith('.dense') && !name.includes('pooler'))).toBe(true)
  expect(all.config.excludeModules).toEqual(['pooler.dense'])
  // PEFT warns if an exclusion matches nothing.
  expect((await run({ rank: 2, targetModules: ['query', 'value'] })).config.excludeModules).toBeUndefined()
  const own = await run({ rank: 2, targetModules: ['query', 'dense'], excludeModules: ['key'] })
  expect(own.config.excludeModules).toEqual(['key', 'pooler.dense'])
})

describe('training', () => {
  const rows = ['sea', 'sun', 'ship', 'whale', 'king', 'night', 'rain', 'good'].map((word) => {
    return { anchor: `the ${word} was`, positive: `she saw ${word}` }
  })
  const trainRows = (out: MemoryDirectory | undefined, options: object = {}) =>
    trainAdapter({
      model,
      task: 'embedding',
      data: rows,
      evalData: rows,
      batchSize: 4,
      gradientAccumulation: 2,
      epochs: 40,
      learningRate: 2e-2,
      threads: 1,
      config: { rank: 4, dropout: 0.1 },
      out,
      ...options,
    })

  it('finds partners, saves what PEFT reads, and resumes to the same bytes', async () => {
    const [whole, broken] = [new MemoryDirectory(), new MemoryDirectory()]
    const { report } = await trainRows(whole)
    expect(report.trainLoss).toHaveLength(40)
    expect(report.trainLoss.at(-1)).toBeLessThan(report.trainLoss[0] / 2)
    expect(report.evalLoss!.after).toBeLessThan(report.evalLoss!.before)
    expect(report.evalMetrics!['recall@1']).toBeGreaterThan(0.8)
    expect(Object.keys(report.evalMetrics!)).toEqual([
      ...['recall@1', 'recall@10', 'mrr'],
      ...['corpusRecall@10', 'corpusMrr'],
    ])
    const config = JSON.parse(new TextDecoder().decode(whole.files.get('adapter_config.json')))
    expect(config).toMatchObject({ task_type: 'FEATURE_EXTRACTION', modules_to_save: null })

    const controller = new AbortController()
    const on = { step: ({ step }: { step: number }) => void (step === 5 && controller.abort()) }
    await trainRows(broken, { signal: controller.signal, on })
    await expect(trainRows(broken, { resume: true, taskOptions: { scale: 10 } })).rejects.toThrow(/scale/)
    await trainRows(broken, { resume: true })
    expect(broken.files.get('adapter_model.safetensors')).toEqual(whole.files.get('adapter_model.safetensors'))
  })

  it.each(['cls', 'lasttoken'])('trains vectors pooled by %s, behind the prompt', async (pooling) => {
    const own = { ...model, sentence: { ...model.sentence, pooling, prompts: { query: 'the king: ', document: 'a ' } } }
    const { report, adapter } = await trainRows(undefined, { model: own })
    expect(report.trainLoss.at(-1)).toBeLessThan(report.trainLoss[0] * 0.75)
    const session = await ModelSession.open(own, { adapters: { own: adapter } })
    const [a, b] = await Promise.all([
      session.embed(
        rows.map(({ anchor }) => anchor),
        { adapter: 'own', inputType: 'query' },
      ),
      session.embed(
        rows.map(({ positive }) => positive),
        { adapter: 'own', inputType: 'document' },
      ),
    ])
    const cosine = (x: Float32Array, y: Float32Array) => x.reduce((sum, value, i) => sum + value * y[i], 0)
    const places = retrievalValues(rows.length, (i, j) => cosine(a[i], b[j]), [1])
    expect(meansOf(places)['recall@1']).toBe(report.evalMetrics!['recall@1'])
    await session.dispose()
  })

  it('takes scores, and tells how well they are met', async () => {
    const scored = rows.map(({ anchor, positive }, i) => ({ sentence1: anchor, sentence2: positive, score: i / 8 }))
    const { report } = await trainRows(undefined, { data: scored, evalData: scored, epochs: 60 })
    expect(report.evalMetrics!.spearman).toBeGreaterThan(0.8)
  })

  it.each<[what: string, options: object, error: new (...args: never[]) => Error, message: RegExp]>([
    ['an unknown option', { taskOptions: { temprature: 1 } }, ConfigError, /temprature.*Did you mean temperature/],
    ['an old name', { taskOptions: { loss: 'in-batch' } }, ConfigError, /in-batch is MultipleNegativesRanking/],
    ['a temperature', { taskOptions: { temperature: 1 } }, ConfigError, /expected scale, which is 1 \/ temperature/],
    ['long vectors', { taskOptions: { matryoshkaDims: [17] } }, ConfigError, /at most 16, got 17/],
    [
      'a copy as negative',
      { data: [{ query: 'a', passage: 'b', negatives: ['c', 'b'] }] },
      DataError,
      /data\[0\].*a negative equals the right text/,
    ],
    ['a wrong option', { taskOptions: { loss: 'mse' } }, ConfigError, /loss.*MultipleNegativesRanking/],
    ['triplets without negatives', { taskOptions: { loss: 'Triplet' } }, ConfigError, /Triplet needs one "negative"/],
    ['rows without a partner', { data: [{ text: 'a' }] }, DataError, /no pair of texts.*got "text" \(string\)/],
    ['an empty text', { data: [{ text: 'a', textPair: ' ' }] }, DataError, /textPair is no text, or an empty one/],
    ['a score of 3', { data: [{ text: 'a', textPair: 'b', score: 3 }] }, DataError, /between −1 and 1/],
    [
      'some negatives',
      {
        data: [
          { text: 'a', textPair: 'b' },
          { text: 'a', textPair: 'b', negative: 'c' },
        ],
      },
      DataError,
      /some records have a negative/,
    ],
    [
      'some scores',
      {
        data: [
          { text: 'a', textPair: 'b' },
          { text: 'a', textPair: 'b', score: 0 },
        ],
      },
      DataError,
      /some records have a score/,
    ],
  ])('refuses %s', async (_, options, error, message) => {
    const training = trainRows(undefined, options)
    await expect(training).rejects.toThrow(error)
    await expect(training).rejects.toThrow(message)
  })

  it('refuses models without vectors of tokens, and other ways of pooling', async () => {
    const classifier = await openModel('tests/golden/text-classification/classifier')
    expect(() => embedding.check(classifier)).toThrow(/no vectors of tokens.*got logits/)
    await classifier.close()
    const check = (sentence: object) => embedding.check({ ...model, sentence: { ...model.sentence, ...sentence } })
    expect(() => check({ pooling: 'max' })).toThrow(/1_Pooling.*cannot be trained.*got max/)
    expect(() => check({ pooling: 'attention' })).toThrow(UnsupportedError)
    expect(() => check({ others: ['CNN'] })).toThrow(/modules\.json.*got CNN/)
    expect(() => check({ includesPrompt: false, prompt: 'a' })).toThrow(/cannot be trained.*include_prompt/)
  })
})

describe('session.embed', () => {
  const { texts } = golden
  let session: ModelSession<Model>
  beforeAll(async () => {
    session = await ModelSession.open(model, { adapters: { peft: await load() } })
  })
  afterAll(() => session.dispose())

  it('gives the vectors of sentence-transformers, in batches and alone', async () => {
    for (const batchSize of [1, 3, 64]) {
      const vectors = await session.embed(texts, { adapter: 'peft', maxLength, batchSize })
      vectors.forEach((vector, i) => void expect(maxDifference(vector, golden.mean[i])).toBeLessThan(1e-5))
    }
    const alone = await session.embed(texts[0], { adapter: 'peft', maxLength, normalize: false })
    expect(maxDifference(alone, golden.meanUnscaled[0])).toBeLessThan(1e-5)
    const [first] = await session.embed([texts[0]], { adapter: 'peft', maxLength, pooling: 'cls' })
    expect(maxDifference(first, golden.cls[0])).toBeLessThan(1e-5)
    const base = await session.embed(texts[0], { maxLength })
    expect(maxDifference(base, alone)).toBeGreaterThan(0.01)
  })

  it('gives bytes and bits, by ranges of other texts', async () => {
    const session = await ModelSession.open(model)
    const ranges = await session.calibrate(['the sea was calm', 'a good day', 'a grim night'])
    const text = 'the sea was calm'
    const vector = await session.embed(text)
    const bytes = await session.embed(text, { precision: 'uint8', ranges })
    for (const [i, byte] of bytes.entries()) {
      const step = (ranges[1][i] - ranges[0][i]) / 255
      expect(Math.abs(ranges[0][i] + step * byte - vector[i])).toBeLessThanOrEqual(step * 1.01)
    }
    const [bits] = await session.embed([text], { precision: 'ubinary' })
    expect([...bits].map((byte) => byte.toString(2).padStart(8, '0')).join('')).toBe(
      [...vector].map((value) => (value > 0 ? '1' : '0')).join(''),
    )
    await expect(session.embed(text, { precision: 'int8' })).rejects.toThrow(/calibrate/)
    await session.dispose()
  })

  it('keeps the first numbers of a vector, scaled', async () => {
    const short = await session.embed(texts[0], { adapter: 'peft', maxLength, dimensions: 4 })
    const norm = Math.hypot(...golden.mean[0].slice(0, 4))
    expect(
      maxDifference(
        short,
        golden.mean[0].slice(0, 4).map((value) => value / norm),
      ),
    ).toBeLessThan(1e-5)
    await expect(session.embed(texts[0], { dimensions: 17 })).rejects.toThrow(/at most 16, got 17/)
    await expect(session.embed([3 as never])).rejects.toThrow(/texts\[0\]/)
    await expect(session.embed('a', { pooling: 'max' as never })).rejects.toThrow(ConfigError)
  })

  const { versions: _, texts: encodedTexts, ...cases } = JSON.parse(readFileSync(`${folder}/modules.json`, 'utf8'))
  it.each(Object.keys(cases))('gives the vectors of `encode`: %s', async (name) => {
    const { files, vectors } = cases[name] as { files: Record<string, string>; vectors: number[][] }
    const bytes = ([path, text]: [string, string]) =>
      [path, path.endsWith('.json') ? text : Uint8Array.from(Buffer.from(text, 'base64'))] as const
    const directory = new MemoryDirectory(Object.fromEntries(Object.entries(files).map(bytes)))
    const sentence = await readSentenceModules(directory)
    const encoder = await ModelSession.open({ ...model, sentence }, {})
    const found: Float32Array[] = await encoder.embed(encodedTexts as string[], { normalize: false })
    found.forEach((vector, i) => {
      expect(vector).toHaveLength(vectors[i].length)
      expect(maxDifference(vector, vectors[i])).toBeLessThan(1e-5)
    })
    await encoder.dispose()
  })

  it('refuses Dense modules that it cannot compute', async () => {
    const { files } = cases.dense as { files: Record<string, string> }
    const refusal = async (changed: Record<string, string>) => {
      const { layers } = await readSentenceModules(new MemoryDirectory({ ...files, ...changed }))
      return layers[0]!().catch((error: Error) => error.message)
    }
    const config = (more: object) => ({ '2_Dense/config.json': JSON.stringify(more) })
    expect(await refusal(config({ activation_function: 'torch.nn.modules.activation.Mish' }))).toMatch(/got Mish/)
    expect(await refusal(config({ module_input_name: 'token_embeddings' }))).toMatch(/got token_embeddings/)
  })

  it('reads how a folder of sentence-transformers pools', async () => {
    const json = (value: unknown) => new TextEncoder().encode(JSON.stringify(value))
    const files = {
      'modules.json': json([
        { idx: 0, type: 'sentence_transformers.models.Transformer', path: '' },
        { idx: 1, type: 'sentence_transformers.models.Pooling', path: '1_Pooling' },
        { idx: 2, type: 'sentence_transformers.models.Normalize', path: '2_Normalize' },
      ]),
      '1_Pooling/config.json': json({ pooling_mode_cls_token: true, pooling_mode_mean_tokens: false }),
      'sentence_bert_config.json': json({ max_seq_length: 128 }),
    }
    const read = await readSentenceModules(new MemoryDirectory(files))
    const rest = { hasRawScores: false, others: [], includesPrompt: true, prompt: '', prompts: {}, lowersCase: false }
    expect(read).toEqual({ pooling: 'cls', normalize: true, layers: [undefined], maxLength: 128, ...rest })
    const newer = new MemoryDirectory({ '1_Pooling/config.json': json({ pooling_mode: 'mean' }) })
    expect((await readSentenceModules(newer)).pooling).toBe('mean')
    const none = await readSentenceModules(new MemoryDirectory())
    expect(none).toEqual({ pooling: 'mean', normalize: false, layers: [], maxLength: undefined, ...rest })
    const sixth = new MemoryDirectory({
      ...files,
      'sentence_bert_config.json': json({}),
      'tokenizer_config.json': json({ model_max_length: 64 }),
      'config_sentence_transformers.json': json({
        prompts: { query: 'query: ', document: '' },
        default_prompt_name: 'query',
      }),
    })
    expect(await readSentenceModules(sixth)).toMatchObject({
      maxLength: 64,
      prompt: 'query: ',
      pooling: 'cls',
      prompts: { query: 'query: ', document: '' },
    })
    const two = json({ pooling_mode_cls_token: true, pooling_mode_mean_tokens: true })
    expect((await readSentenceModules(new MemoryDirectory({ '1_Pooling/config.json': two }))).pooling).toBe('cls+mean')
  })
})

const fixed = JSON.parse(readFileSync(`${folder}/losses.json`, 'utf8'))
const { versions: _fixedVersions, vectors: fixedVectors, guide: fixedGuide, ...fixedLosses } = fixed
describe('the losses of sentence-transformers over fixed vectors', () => {
  it.each(Object.keys(fixedLosses))('%s: value and gradients', (name) => {
    const { options, groups, labels, loss: wanted, gradients } = fixedLosses[name]
    const count = fixedVectors[0].length
    const examples = Array.from({ length: count }, (_, i): RelatedExample => {
      const texts = Array.from({ length: groups }, (_, group) => {
        const inputIds = Int32Array.of(group, i)
        return { inputIds, tokenTypeIds: inputIds, text: `${group} ${i}` }
      })
      return { texts, score: labels?.[i] }
    })
    const open = embedding.open(model, examples, options)
    open.guided?.take((text) => {
      const [group, i] = text.split(' ').map(Number)
      return Float32Array.from(fixedGuide[group][i])
    })
    // The runs of a step, each with its texts group by group, as the graph has them.
    const parts = [examples.slice(0, 1), examples.slice(1)]
    const runs = parts.map((part) => {
      const rows = Array.from({ length: groups }, (_, group) =>
        part.map((e) => fixedVectors[group][examples.indexOf(e)]),
      )
      const data = Float32Array.from(rows.flat(2))
      return {
        examples: part,
        outputs: { vectors: { type: 'float32', data, dims: [groups * part.length, 7] } as const },
      }
    })
    const { loss, feeds } = open.stepLoss!(runs)
    expect(Math.abs(loss - wanted)).toBeLessThan(1e-5)
    const found = feeds.map((feed) => Object.values(feed)[0].data as Float32Array)
    parts.forEach((part, run) => {
      const own = gradients.flatMap((rows: number[][]) => part.map((example) => rows[examples.indexOf(example)])).flat()
      expect(maxDifference(found[run], own)).toBeLessThan(1e-5)
    })
  })
})

it('reads queries with lists of negatives, labels and scores', () => {
  const read = (row: object) => parseRelatedTexts(row, 'data.jsonl, line 1')
  const pair = { groups: [['q', 'p']], score: undefined, isSymmetric: false }
  expect(read({ query: 'q', passage: 'p' })).toEqual(pair)
  expect(read({ question: 'q', answer: 'p' })).toEqual(pair)
  expect(read({ sentence1: 'q', sentence2: 'p', score: 0.5 })).toEqual({ ...pair, score: 0.5, isSymmetric: true })
  const many = { anchor: 'q', positive: 'p', negative_10: 'c', negative_2: 'b', negatives: null, negative: 'a' }
  expect(read(many).groups).toEqual([['q', 'p', 'a', 'b', 'c']])
  const labeled = read({ query: 'q', passage: ['a', 'p', 'b', 'r'], labels: [0, 1, 0, 2] })
  expect(labeled).toEqual({ ...pair, groups: ['p', 'r'].map((right) => ['q', right, 'a', 'b']) })
  expect(read({ query: 'q', positive: 'p', negatives: ['a'], scores: [3, 1] }).score).toEqual([3, 1])
  expect(() => read({ query: 'q', passage: ['a'], labels: [0] })).toThrow(
    /line 1.*no text of passage has a label above 0/,
  )
  expect(() => read({ query: 'q', passage: ['a'], labels: [1, 0] })).toThrow(/1 texts in passage have 2 labels/)
  expect(() => read({ query: 'q', passage: 'a', negatives: ['b', ' '] })).toThrow(
    /negatives is no text, or an empty one/,
  )
  expect(() => read({ query: 'q', passage: 'a', score: 'x' })).toThrow(/score is no number/)
})

it('masks by a guide, by default the base', async () => {
  const data = ['sea', 'sun', 'ship', 'whale'].map((word) => ({ query: `the ${word} was`, passage: `she saw ${word}` }))
  const taskOptions = { loss: 'CachedGISTEmbed', temperature: 0.05 }
  const out = new MemoryDirectory()
  const { report } = await train({ model, task: 'embedding', data, taskOptions, epochs: 20, threads: 1, out, on: {} })
  expect(report.trainLoss.at(-1)).toBeLessThan(report.trainLoss[0])
})

it('takes no second copy of a partner for a negative', () => {
  const [text, near] = [Float32Array.of(1, 0), Float32Array.of(1, 0.1)]
  const vectors = new StepVectors([
    [text, text],
    [near, text],
  ])
  const isSame = () => true
  expect(multipleNegatives(vectors, 20, false, isSame)).toBe(0)
  expect(multipleNegatives(vectors, 20)).toBeCloseTo(Math.log(2), 6)
})

it('takes equal texts for one document, in the measures and in the loss', () => {
  // Texts 0 and 1 ask for the same passage, text 2 is text 3 and has two; text 4 is wrong about one passage, twice.
  const texts = [0, 1, 2, 2, 4].map((id) => Int32Array.of(id))
  const partners = [10, 10, 12, 13, 14].map((id) => Int32Array.of(id))
  const isSame = sameTexts(
    texts.map((inputIds, i) => ({
      texts: [inputIds, partners[i]].map((ids) => ({ inputIds: ids, tokenTypeIds: ids })),
      score: undefined,
    })),
  )
  const scores = [
    [0.9, 0.9, 0.1, 0.1, 0.1],
    [0.9, 0.9, 0.1, 0.1, 0.1],
    [0.1, 0.1, 0.7, 0.8, 0.1],
    [0.1, 0.1, 0.8, 0.7, 0.1],
    [0.8, 0.8, 0.1, 0.1, 0.7],
  ]
  const score = (query: number, candidate: number) => scores[query][candidate]
  expect(retrievalValues(5, score, [1], isSame)).toEqual({ 'recall@1': [1, 1, 1, 1, 0], mrr: [1, 1, 1, 1, 1 / 2] })
  const same = Float32Array.of(1, 0)
  const vectors = new StepVectors(texts.map(() => [same, same]))
  // All cosines are equal, so the loss is ln(documents that are right or wrong once).
  const documents = [4, 4, 3, 3, 4]
  const expected = documents.reduce((sum, count) => sum + Math.log(count), 0) / 5
  expect(multipleNegatives(vectors, 20, false, isSame)).toBeCloseTo(expected, 6)
})

it('counts places as they are', () => {
  // scores of three queries: partner first, second, last
  const scores = [
    [0.9, 0.1, 0.2],
    [0.5, 0.4, 0.3],
    [0.8, 0.7, 0.6],
  ]
  const metrics = meansOf(retrievalValues(3, (query, candidate) => scores[query][candidate], [1, 2]))
  expect(metrics['recall@1']).toBeCloseTo(1 / 3)
  expect(metrics['recall@2']).toBeCloseTo(2 / 3)
  expect(metrics.mrr).toBeCloseTo((1 + 1 / 2 + 1 / 3) / 3)
  // scipy.stats.spearmanr([1, 2, 2, 4], [10, 30, 20, 25]) and pearsonr
  expect(spearman([1, 2, 2, 4], [10, 30, 20, 25])).toBeCloseTo(0.6324555, 6)
  expect(pearson([1, 2, 2, 4], [10, 30, 20, 25])).toBeCloseTo(0.5816751, 6)
})
