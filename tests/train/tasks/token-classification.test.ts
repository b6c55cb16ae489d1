// Token classification: PEFT's loss, logits and gradients, seqeval's scores, and both forms of rows.

import { readFileSync } from 'node:fs'
import * as ort from 'onnxruntime-node'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  DataError,
  loadAdapter,
  loadModel,
  MemoryDirectory,
  type Model,
  UnsupportedError,
} from '../../../src/api/node.js'
import { decodeFloats } from '../../../src/core/base/dtype.js'
import { readRows } from '../../../src/files/data/read-rows.js'
import { entitiesOf, entityMetrics } from '../../../src/model/heads/entities.js'
import { readGraph } from '../../../src/onnx/view/graph.js'
import { encodeRows } from '../../../src/train/rows/examples.js'
import type { Task } from '../../../src/train/tasks/task.js'
import { textClassification } from '../../../src/train/tasks/text-classification.js'
import {
  parseTaggedText,
  type TaggedExample,
  tokenClassification,
} from '../../../src/train/tasks/token-classification.js'
import { train as trainAdapter } from '../../../src/train/train.js'
import { relativeError } from '../../model/golden.js'
import { checkGoldenRun, type GoldenRun } from './golden-run.js'

const folder = 'tests/golden/token-classification'
const runtime = { module: ort }
const BASES = { encoder: 'tests/golden/text-classification/encoder', distilbert: `${folder}/distilbert` }

interface Golden extends GoldenRun {
  rows: { words: string[]; tags: string[] }[]
  maxLength: number
  labels: string[]
  batch: { input_ids: number[][]; attention_mask: number[][]; labels: number[][] }
  logits: number[][][]
}

const goldenOf = (name: string): Golden => JSON.parse(readFileSync(`${folder}/${name}/golden/golden.json`, 'utf8'))

async function encode(model: Model, rows: readonly unknown[], maxLength: number): Promise<TaggedExample[]> {
  const options = { task: tokenClassification as unknown as Task, model, maxLength, name: 'data' }
  return [...(await encodeRows(readRows(rows as never), options)).kept.examples] as TaggedExample[]
}

it('starts with the head of the graph, which multiplies by a weight as MatMul stores it', async () => {
  const { rows, maxLength } = goldenOf('distilbert')
  const model = await loadModel(BASES.distilbert, { runtime })
  const open = tokenClassification.open(model, await encode(model, rows, maxLength))
  const graph = readGraph(model.onnx)
  const [product, sum] = ['MatMul', 'Add'].map(
    (type) => graph.nodes.find(({ name }) => name === `/classifier/${type}`)!,
  )
  const read = async (name: string) => decodeFloats(await model.onnx.readTensor(graph.constant(name)!), 'fp32').slice()
  const [weight, bias] = [await read(product.input[1]), await read(sum.input.find((name) => graph.constant(name))!)]
  const random = { normal: () => 0.5 } as never
  const [d, k] = open.head!.tensors[0].shape
  const transposed = Float32Array.from({ length: d * k }, (_, i) => weight[(i % k) * d + Math.floor(i / k)])
  expect(await Promise.all(open.head!.tensors.map(({ start }) => start(random)))).toEqual([transposed, bias])
  expect([open.head?.isNew, open.warnings]).toEqual([false, []])
  const named = tokenClassification.open(model, await encode(model, rows.slice(0, 1), maxLength), {}, { newHead: true })
  expect([named.head?.isNew, named.labels]).toEqual([true, ['O', 'B-LOC', 'I-LOC', 'B-PER', 'I-PER']])
  await model.close()
})

describe.each(Object.entries(BASES))('%s', (name, base) => {
  const golden = goldenOf(name)
  const { rows, maxLength } = golden
  /**
   * The labels in the order of PyTorch's config. The model gets this order too: lowrank by itself would sort otherwise.
   */
  const order = golden.labels
  let model: Model
  let examples: TaggedExample[]
  beforeAll(async () => {
    const opened = await loadModel(base, { runtime })
    const config = { ...opened.config, id2label: Object.fromEntries(order.entries()) }
    model = Object.assign(Object.create(Object.getPrototypeOf(opened)), opened, { config, close: () => opened.close() })
    examples = await encode(model, rows, maxLength)
  })
  afterAll(() => model.close())

  it('labels the first token of each word, as transformers aligns words', () => {
    const { input_ids, attention_mask, labels } = golden.batch
    examples.forEach(({ inputIds, firsts, tags }, row) => {
      const length = attention_mask[row].reduce((sum, entry) => sum + entry, 0)
      expect([...inputIds]).toEqual(input_ids[row].slice(0, length))
      const wanted = labels[row].flatMap((label, i) => (label < 0 ? [] : [[i, order[label]]]))
      expect(Array.from(firsts, (first, i) => [first, tags[i]])).toEqual(wanted)
    })
    expect(examples.at(-1)!.firsts.length).toBeLessThan(rows.at(-1)!.words.length)
  })

  it("gives PyTorch's and PEFT's loss, logits and gradients, and takes their steps", async () => {
    const open = tokenClassification.open(model, examples)
    expect(open.labels).toEqual(order)
    const run = { folder: `${folder}/${name}/golden`, golden, length: 16 }
    const { logits, outputs } = await checkGoldenRun(model, open, examples, run)
    const wanted = golden.logits.flatMap((row, i) => row.filter((_, j) => golden.batch.labels[i][j] >= 0))
    expect(logits.dims).toEqual([wanted.length, order.length])
    expect(relativeError(logits.data as Float32Array, wanted.flat())).toBeLessThan(1e-5)
    const best = wanted.map((row) => order[row.indexOf(Math.max(...row))])
    const predicted = open.predict?.(outputs, examples) ?? []
    expect(predicted.flat()).toEqual(best)
  })

  it('has a learning rate of its own', async () => {
    const rates: number[] = []
    const on = { step: ({ learningRate }: { learningRate: number }) => void rates.push(learningRate) }
    await trainAdapter({
      model,
      task: 'token-classification',
      data: rows,
      maxLength,
      maxSteps: 1,
      warmupRatio: 0,
      threads: 1,
      on,
    })
    expect(rates).toEqual([6e-4])
  })

  it('learns, saves the head with the factors, and resumes to the same bytes', async () => {
    // Training cuts rows to `maxLength`, and evaluation cuts none: what nobody taught would have no known answer.
    const uncut = rows.filter(({ words }, i) => examples[i].firsts.length === words.length)
    const train = (out: MemoryDirectory, options: object = {}) =>
      trainAdapter({
        model,
        task: 'token-classification',
        data: rows,
        evalData: uncut,
        maxLength,
        batchSize: 3,
        epochs: 60,
        learningRate: 2e-2,
        threads: 1,
        config: { rank: 3, dropout: 0.1 },
        out,
        ...options,
      })
    const [whole, broken] = [new MemoryDirectory(), new MemoryDirectory()]
    const { report } = await train(whole)
    expect(report.trainLoss.at(-1)).toBeLessThan(report.trainLoss[0] / 2)
    expect(report.evalMetrics!.accuracy).toBe(1)
    const config = JSON.parse(new TextDecoder().decode(whole.files.get('adapter_config.json')))
    expect(config).toMatchObject({ task_type: 'TOKEN_CLS', modules_to_save: ['classifier'] })
    expect((await loadAdapter(whole)).labels).toEqual(order)
    const controller = new AbortController()
    const on = { step: ({ step }: { step: number }) => void (step === 5 && controller.abort()) }
    await train(broken, { signal: controller.signal, on })
    await train(broken, { resume: true })
    expect(broken.files.get('adapter_model.safetensors')).toEqual(whole.files.get('adapter_model.safetensors'))
  })
})

describe('scores', () => {
  interface Case {
    truth: string[][]
    predicted: string[][]
    precision: number
    recall: number
    f1: number
    accuracy: number
    entities: [type: string, first: number, last: number][]
    types: Record<string, number>
  }
  const { cases }: { cases: Case[] } = JSON.parse(readFileSync(`${folder}/seqeval.json`, 'utf8'))

  it("are seqeval's", () => {
    for (const { truth, predicted, types, ...scores } of cases) {
      const found = entityMetrics(truth, predicted)
      for (const name of ['precision', 'recall', 'f1', 'accuracy'] as const) {
        expect(found[name]).toBeCloseTo(scores[name], 12)
      }
      for (const [type, score] of Object.entries(types)) expect(found.types[type]).toBeCloseTo(score, 12)
    }
    expect(cases.filter(({ f1 }) => f1 > 0 && f1 < 1).length).toBeGreaterThan(20)
  })

  it("count seqeval's entities", () => {
    for (const { truth, entities } of cases) {
      // It numbers the words of all rows, with one between two rows.
      let at = 0
      const found = truth.flatMap((tags) => {
        const own = entitiesOf(tags).map(({ type, start, end }) => [type, at + start, at + end - 1])
        at += tags.length + 1
        return own
      })
      expect(found).toEqual(entities)
    }
  })
})

describe('rows', () => {
  let model: Model
  beforeAll(async () => {
    model = await loadModel(BASES.encoder, { runtime })
  })
  afterAll(() => model.close())
  const parse = (row: unknown) => parseTaggedText(row, 'data.jsonl, line 3')

  it('of a text with entities are those of its words', async () => {
    const text = 'The king Ahab saw the Red Sea.'
    const entities = [
      { start: 22, end: 29, label: 'LOC' },
      { start: 9, end: 13, label: 'PER', text: 'Ahab' },
    ]
    const words = 'The king Ahab saw the Red Sea .'.split(' ')
    const tags = ['O', 'O', 'B-PER', 'O', 'O', 'B-LOC', 'I-LOC', 'O']
    const [marked, given, named] = await encode(
      model,
      [
        { text, entities },
        { words, tags },
        { tokens: words, ner_tags: tags },
      ],
      32,
    )
    expect({ ...marked, where: '' }).toEqual({ ...given, where: '' })
    expect({ ...named, where: '' }).toEqual({ ...given, where: '' })
  })

  it('have both tags of each type, O first', async () => {
    const labels = (rows: object[]) =>
      encode(model, rows, 32).then((own) => tokenClassification.open(model, own).labels)
    expect(await labels([{ text: 'Ahab saw Nantucket', entities: [{ start: 0, end: 4, label: 'PER' }] }])).toEqual([
      'O',
      'B-PER',
      'I-PER',
    ])
    expect(await labels([{ words: ['a', 'whale'], tags: ['DET', 'NOUN'] }])).toEqual(['DET', 'NOUN'])
  })

  it('may have numbers of tags, with their names', async () => {
    const examples = await encode(model, [{ words: ['Ahab', 'saw'], tags: [1, 0] }], 32)
    const tagNames = 'O B-PER I-PER'
    expect(tokenClassification.open(model, examples, { tagNames }).labels).toEqual(['O', 'B-PER', 'I-PER'])
    expect(() => tokenClassification.open(model, examples)).toThrow(/tags: they are numbers.*tagNames/s)
    const other = await encode(model, [{ words: ['Ahab', 'saw'], tags: [7, 0] }], 32)
    expect(() => tokenClassification.open(model, other, { tagNames })).toThrow(/a number without a name.*0 to 2.*7/s)
  })

  it.each([
    [{ words: ['a', 'b'], tags: ['O'] }, /line 3: not as many tags as words.*2 tags.*1/s],
    [{ words: ['a', 3], tags: ['O', 'O'] }, /line 3, word 2: not a text.*3/s],
    [{ words: ['a'], tags: [''] }, /line 3, tag 1: not a tag/],
    [{ words: ['a'], tags: [null] }, /line 3, tag 1: not a tag/],
    [{ words: ['a'], tags: [-1] }, /line 3, tag 1: not a tag/],
    [
      { words: 'a b', tags: 'O O' },
      /neither words with tags nor a text with entities.*"words" \(string\), "tags" \(string\)/s,
    ],
    [{ text: 'Ahab' }, /neither words with tags/],
    [null, /neither words with tags.*no fields/s],
    [
      { text: 'Ahab', entities: [{ start: 0, end: 5, label: 'P' }] },
      /line 3, entity 1: not a part of the text.*0 to 5/s,
    ],
    [{ text: 'Ahab', entities: [{ start: 2, end: 2, label: 'P' }] }, /entity 1: not a part of the text/],
    [{ text: 'Ahab', entities: [{ start: 0.5, end: 2, label: 'P' }] }, /entity 1: not an entity/],
    [{ text: 'Ahab', entities: [{ start: 0, end: 2 }] }, /entity 1: not an entity/],
    [{ text: 'a  b', entities: [{ start: 1, end: 3, label: 'P' }] }, /entity 1: it has no words/],
    [{ text: 'Ahab', entities: [{ start: 0, end: 4, label: 'P', text: 'Starbuck' }] }, /place differs.*UTF-16/s],
    [
      {
        text: 'Captain Ahab',
        entities: [
          { start: 0, end: 8, label: 'A' },
          { start: 7, end: 12, label: 'B' },
        ],
      },
      /line 3: entities overlap.*A 0 to 8, and B 7 to 12/s,
    ],
  ])('are refused: %j', (row, message) => {
    expect(() => parse(row)).toThrow(DataError)
    expect(() => parse(row)).toThrow(message)
  })

  it('of evaluation have no tags that training has not, which is told before training', async () => {
    const data = [{ words: ['Ahab', 'saw'], tags: ['B-PER', 'O'] }]
    const evalData = [...data, { words: ['Nantucket'], tags: ['B-LOC'] }]
    const stages: string[] = []
    const on = { stage: (stage: string) => void stages.push(stage) }
    const training = trainAdapter({ model, task: 'token-classification', data, evalData, on, threads: 1 })
    await expect(training).rejects.toThrow(/evalData\[1\], tags: no record of the training data has it.*"B-LOC"/s)
    expect(stages).toEqual(['encode'])
  })
})

it('is for graphs that give hidden states or labels of tokens', async () => {
  const [whole, tokens] = await Promise.all(
    ['tests/golden/text-classification/classifier', BASES.distilbert].map((path) => loadModel(path, { runtime })),
  )
  expect(() => tokenClassification.check(whole)).toThrow(UnsupportedError)
  expect(() => tokenClassification.check(whole)).toThrow(/whole inputs, which is another task.*logits of 2 axes/s)
  expect(() => textClassification.check(tokens)).toThrow(/labels to tokens, which is another task/)
  tokenClassification.check(tokens)
  await whole.close()
  await tokens.close()
})
