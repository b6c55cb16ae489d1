// MPNet, ELECTRA and DeBERTa-v2 with labels for texts, labels for words, and vectors. optimum's exports give PEFT's
// losses, gradients and logits.

import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { LoraAdapter, loadAdapter, loadModel, MemoryDirectory, type Model } from '../../../src/api/node.js'
import { readRows } from '../../../src/files/data/read-rows.js'
import { defaultTargetModules } from '../../../src/lora/peft/default-targets.js'
import { merge } from '../../../src/merge/merge.js'
import { ModelSession } from '../../../src/run/model-session.js'
import { encodeRows } from '../../../src/train/rows/examples.js'
import { embedding, type RelatedExample } from '../../../src/train/tasks/embedding.js'
import type { Task } from '../../../src/train/tasks/task.js'
import { type LabeledExample, textClassification } from '../../../src/train/tasks/text-classification.js'
import { type TaggedExample, tokenClassification } from '../../../src/train/tasks/token-classification.js'
import { train as trainAdapter } from '../../../src/train/train.js'
import { relativeError } from '../../model/golden.js'
import { directoryOf, inThread, maxDifference, openModel } from '../../run/models.js'
import { some } from '../../thorough.js'
import { checkEmbeddingRun, type GoldenEmbedding } from './golden-embedding.js'
import { checkGoldenRun, type GoldenRun } from './golden-run.js'

const root = 'tests/golden/encoder-families'

interface Golden extends GoldenRun {
  maxLength: number
  labels: string[]
}

interface Texts extends Golden {
  rows: { text: string; textPair?: string; label: string }[]
  batch: { input_ids: number[][]; attention_mask: number[][] }
  logits: number[][]
}

interface Words extends Golden {
  rows: { words: string[]; tags: string[] }[]
  batch: { labels: number[][] }
  logits: number[][][]
}

/** The name of the first layer's query, and the name of the encoder in transformers. */
const FAMILIES = {
  mpnet: ['mpnet.encoder.layer.0.attention.attn.q', 'mpnet'],
  electra: ['electra.encoder.layer.0.attention.self.query', 'electra'],
  'deberta-v2': ['deberta.encoder.layer.0.attention.self.query_proj', 'deberta'],
}

describe.each(some(Object.entries(FAMILIES), 2))('%s', (name, [query, prefix]) => {
  const folder = `${root}/${name}`
  const read = <T>(part: string): T => JSON.parse(readFileSync(`${folder}/${part}/golden.json`, 'utf8'))
  const adapterOf = (part: string) => loadAdapter(directoryOf(`${folder}/${part}/adapter-init`))

  /** Opens a session with an adapter, and a session of the merged model. */
  async function openBoth(part: string) {
    const adapter = await adapterOf(part)
    const out = new MemoryDirectory({}, 'out')
    await merge({ base: { directory: directoryOf(`${folder}/encoder`) }, adapters: adapter, out })
    const merged = await loadModel(out, { runtime: inThread })
    const own = await ModelSession.open(model, { adapters: { own: adapter } })
    const alone = await ModelSession.open(merged)
    const close = async () => {
      for (const session of [own, alone]) await session.dispose()
      await merged.close()
    }
    return { adapter, own, alone, close }
  }
  let model: Model
  beforeAll(async () => {
    model = await openModel(`${folder}/encoder`)
  })
  afterAll(() => model.close())

  async function encode<Example>(task: unknown, rows: readonly unknown[], maxLength: number, own = model) {
    const { kept } = await encodeRows(readRows(rows as never), {
      task: task as Task,
      model: own,
      maxLength,
      name: 'data',
    })
    return [...kept.examples] as Example[]
  }

  describe('labels of texts', () => {
    const golden = read<Texts>('texts')
    const { rows, maxLength, labels } = golden
    const texts = rows.map(({ text, textPair }) => ({ text, textPair }))

    it("get PEFT's loss, logits and gradients, and its steps", async () => {
      const examples = await encode<LabeledExample>(textClassification, rows, maxLength)
      const { input_ids, attention_mask } = golden.batch
      const lengths = attention_mask.map((row) => row.reduce((sum, entry) => sum + entry, 0))
      expect(examples.map(({ inputIds }) => [...inputIds])).toEqual(input_ids.map((row, i) => row.slice(0, lengths[i])))
      const open = textClassification.open(model, examples)
      expect(open.labels).toEqual(labels)
      const run = { folder: `${folder}/texts`, golden, length: 16 }
      const { logits } = await checkGoldenRun(model, open, examples, run)
      expect(relativeError(logits.data as Float32Array, golden.logits.flat())).toBeLessThan(1e-5)
    })

    it.each(['encoder', 'classifier'])('get the same logits in a session, and merged into the %s', async (kind) => {
      const base = directoryOf(`${folder}/${kind}`)
      const adapter = await adapterOf('texts')
      const out = new MemoryDirectory({}, 'out')
      await merge({ base: { directory: base }, adapters: adapter, out })
      const [own, merged] = [await loadModel(base, { runtime: inThread }), await loadModel(out, { runtime: inThread })]
      const sessions = [await ModelSession.open(own, { adapters: { mood: adapter } }), await ModelSession.open(merged)]
      const results = [
        await sessions[0].classify(texts, { adapter: 'mood', maxLength }),
        await sessions[1].classify(texts, { maxLength, batchSize: 2 }),
      ]
      for (const found of results) {
        found.forEach(({ logits }, i) => void expect(maxDifference(logits, golden.logits[i])).toBeLessThan(1e-5))
      }
      for (const session of sessions) await session.dispose()
      for (const opened of [own, merged]) await opened.close()
    })

    it('are learned by a head of the graph, with the modules that PEFT adapts by default', async () => {
      const classifier = await openModel(`${folder}/classifier`)
      const hasDefaults = name !== 'mpnet'
      const targetModules = hasDefaults ? defaultTargetModules(name) : ['q', 'v']
      const options = { model: classifier, task: 'text-classification', data: rows, maxLength, threads: 1 } as const
      const config = { rank: 2, targetModules, dropout: 0.1 }
      const { adapter, report } = await trainAdapter({ ...options, epochs: 20, learningRate: 2e-2, config })
      expect(report.newHead).toBe(false)
      expect(report.trainLoss.at(-1)).toBeLessThan(report.trainLoss[0] / 2)
      expect(adapter.parts('linear').map((part) => part.name)).toContain(query)
      expect(adapter.parts('linear')).toHaveLength(4)
      if (!hasDefaults) expect(() => defaultTargetModules(name)).toThrow(/PEFT has no default modules/)
      await classifier.close()
    })
  })

  describe('labels of words', () => {
    const golden = read<Words>('words')
    const { rows, maxLength, labels: order } = golden
    /** Sorts labels as lowrank does, which is not the order of PyTorch's config. */
    const named = () => {
      const config = { ...model.config, id2label: Object.fromEntries(order.entries()) }
      return Object.assign(Object.create(Object.getPrototypeOf(model)), model, { config }) as Model
    }
    const wanted = golden.logits.map((row, i) => row.filter((_, j) => golden.batch.labels[i][j] >= 0))

    it("get PEFT's loss, logits and gradients, and its steps", async () => {
      const own = named()
      const examples = await encode<TaggedExample>(tokenClassification, rows, maxLength, own)
      const open = tokenClassification.open(own, examples)
      expect(open.labels).toEqual(order)
      const { logits } = await checkGoldenRun(own, open, examples, { folder: `${folder}/words`, golden, length: 16 })
      expect(relativeError(logits.data as Float32Array, wanted.flat(2))).toBeLessThan(1e-5)
    })

    it('are the same in a session, and merged', async () => {
      const { own, alone, close } = await openBoth('words')
      const inputs = rows.map(({ words }) => ({ words }))
      const results = [await own.tag(inputs, { adapter: 'own', maxLength }), await alone.tag(inputs, { maxLength })]
      const places = wanted.map((row) => row.map((logits) => logits.indexOf(Math.max(...logits))))
      for (const found of results) {
        const tags = found.map(({ words }) => words.map(({ tag }) => Number(tag.replace('LABEL_', ''))))
        expect(tags).toEqual(places)
      }
      await close()
    })
  })

  describe('vectors', () => {
    const golden = read<GoldenEmbedding>('vectors')
    const { maxLength, temperature, rows, texts } = golden

    it('get the loss, gradients and steps of sentence-transformers', async () => {
      const pairs = rows.map(({ text, textPair }) => ({ text, textPair }))
      const examples = await encode<RelatedExample>(embedding, pairs, maxLength)
      const parts = [[0, 1, 2, 3]]
      const run = { folder: `${folder}/vectors`, golden, name: 'in-batch', options: { scale: 1 / temperature }, parts }
      await checkEmbeddingRun(model, examples, run)
    })

    it('are the same in a session, and merged', async () => {
      const { adapter, own, alone, close } = await openBoth('vectors')
      const results = [await own.embed(texts, { adapter: 'own', maxLength }), await alone.embed(texts, { maxLength })]
      for (const found of results) {
        found.forEach((vector, i) => void expect(maxDifference(vector, golden.mean[i])).toBeLessThan(1e-5))
      }
      expect(adapter.names()[0].startsWith(prefix)).toBe(false)
      await close()
    })
  })
})

it('DeBERTa takes an adapter for each row where none changes what all rows share', async () => {
  const folder = `${root}/deberta-v2`
  const model = await openModel(`${folder}/encoder`)
  const random = new LoraAdapter({ rank: 2 })
  for (const layer of ['attention.self.value_proj', 'output.dense']) {
    const k = layer === 'output.dense' ? 32 : 16
    random.addLayerOfShape(`encoder.layer.0.${layer}`, [16, k]).weightB.data.fill(0.3)
  }
  const adapters = { all: await loadAdapter(directoryOf(`${folder}/vectors/adapter-init`)), value: random }
  const session = await ModelSession.open(model, { adapters })
  const rows = [
    [1, 11, 8, 27, 2],
    [1, 12, 9, 28, 2],
  ]
  const feeds = (some: number[][]) => {
    const tensor = (values: number[]) => {
      return { type: 'int64' as const, data: BigInt64Array.from(values, BigInt), dims: [some.length, 5] }
    }
    return { input_ids: tensor(some.flat()), attention_mask: tensor(some.flat().map(() => 1)) }
  }
  const mixed = await session.run(feeds(rows), { adapter: ['value', null] })
  const alone = await session.run(feeds(rows.slice(0, 1)), { adapter: 'value' })
  const base = await session.run(feeds(rows.slice(1)))
  const wanted = [...(alone.last_hidden_state.data as Float32Array), ...(base.last_hidden_state.data as Float32Array)]
  expect(maxDifference(mixed.last_hidden_state, wanted)).toBeLessThan(1e-5)
  const other = await session.run(feeds(rows))
  expect(maxDifference(mixed.last_hidden_state, other.last_hidden_state)).toBeGreaterThan(0.01)
  const refused = session.run(feeds(rows), { adapter: ['all', 'value'] })
  await expect(refused).rejects.toThrow(/(query|key)_proj: it reads the same values for all rows/)
  await session.dispose()
  await model.close()
})

it('MPNet has as many places for tokens as there are positions behind that of padding', async () => {
  const model = await openModel(`${root}/mpnet/encoder`)
  expect([model.padTokenId, model.config.max_position_embeddings, model.contextLength]).toEqual([1, 34, 32])
  const session = await ModelSession.open(model)
  const [long, cut] = await session.embed(['a '.repeat(40), 'a '.repeat(30)])
  expect(long).toEqual(cut)
  await session.dispose()
  await model.close()
})
