import { readFileSync } from 'node:fs'
import * as ort from 'onnxruntime-node'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  DataError,
  LoraAdapter,
  loadAdapter,
  loadModel,
  MemoryDirectory,
  MismatchError,
  type Model,
  UnsupportedError,
} from '../../../src/api/node.js'
import { decodeFloats } from '../../../src/core/base/dtype.js'
import { readRows } from '../../../src/files/data/read-rows.js'
import { encodeRows } from '../../../src/train/rows/examples.js'
import { classificationMetrics } from '../../../src/train/tasks/metrics.js'
import type { OpenTask, Task } from '../../../src/train/tasks/task.js'
import { type LabeledExample, textClassification } from '../../../src/train/tasks/text-classification.js'
import { train as trainAdapter } from '../../../src/train/train.js'
import { relativeError } from '../../model/golden.js'
import { checkGoldenRun, type GoldenRun } from './golden-run.js'

const folder = 'tests/golden/text-classification'
const runtime = { module: ort }

interface Golden extends GoldenRun {
  rows: Record<string, string>[]
  maxLength: number
  labels: string[]
  batch: { input_ids: number[][]; attention_mask: number[][]; token_type_ids: number[][] }
  logits: number[][]
}

describe.each(['encoder', 'classifier'])('the export of the %s', (name) => {
  const golden: Golden = JSON.parse(readFileSync(`${folder}/${name}/golden/golden.json`, 'utf8'))
  let model: Model
  let examples: LabeledExample[]
  beforeAll(async () => {
    model = await loadModel(`${folder}/${name}`, { runtime })
    const options = { task: textClassification as unknown as Task, model, maxLength: golden.maxLength, name: 'data' }
    const { kept } = await encodeRows(readRows(golden.rows), options)
    examples = [...kept.examples] as LabeledExample[]
    expect(kept.truncatedRecords).toBe(1)
  })
  afterAll(() => model.close())

  it('is fed what the tokenizers library gives, pairs and what is cut included', () => {
    const { input_ids, attention_mask, token_type_ids } = golden.batch
    const lengths = attention_mask.map((row) => row.reduce((sum, entry) => sum + entry, 0))
    const cut = (rows: number[][]) => rows.map((row, i) => row.slice(0, lengths[i]))
    expect(examples.map(({ inputIds }) => [...inputIds])).toEqual(cut(input_ids))
    expect(examples.map(({ tokenTypeIds }) => [...tokenTypeIds])).toEqual(cut(token_type_ids))
  })

  it("gives PyTorch's and PEFT's loss, logits and gradients, and takes their steps", async () => {
    const open = textClassification.open(model, examples)
    expect(open.labels).toEqual(golden.labels)
    const run = { folder: `${folder}/${name}/golden`, golden, length: 16 }
    const { logits, outputs } = await checkGoldenRun(model, open, examples, run)
    expect(relativeError(logits.data as Float32Array, golden.logits.flat())).toBeLessThan(1e-5)
    const predicted = open.predict?.(outputs, examples) as Float32Array[]
    predicted.forEach((row, i) => void expect(relativeError(row, golden.logits[i])).toBeLessThan(1e-5))
  })

  it('learns, saves the head with the factors, and resumes to the same bytes', async () => {
    const train = (out: MemoryDirectory, options: object = {}) =>
      trainAdapter({
        model,
        task: 'text-classification',
        data: golden.rows,
        evalData: golden.rows,
        maxLength: golden.maxLength,
        batchSize: 3,
        epochs: 12,
        learningRate: 2e-2,
        threads: 1,
        config: { rank: 3, targetModules: ['query', 'value'], dropout: 0.1 },
        out,
        ...options,
      })
    const [whole, broken] = [new MemoryDirectory(), new MemoryDirectory()]
    const { adapter, report } = await train(whole)
    expect(report.trainLoss.at(-1)).toBeLessThan(report.trainLoss[0] / 2)
    expect(report.evalMetrics).toEqual({ accuracy: 1, f1: 1, 'f1/calm': 1, 'f1/glad': 1, 'f1/sad': 1 })
    expect(report.labels).toEqual(golden.labels)
    const config = JSON.parse(new TextDecoder().decode(whole.files.get('adapter_config.json')))
    expect(config.task_type).toBe('SEQ_CLS')
    const marker = JSON.parse(new TextDecoder().decode(whole.files.get('lowrank.json')))
    expect(marker).toMatchObject({ status: 'finished', task: 'text-classification' })
    expect(config.modules_to_save).toEqual(name === 'encoder' ? ['classifier', 'pooler'] : ['classifier'])
    expect(adapter.names()).toContain('bert.encoder.layer.0.attention.self.query')
    const saved = await loadAdapter(whole)
    expect(saved.labels).toEqual(golden.labels)
    expect(adapter.labels).toEqual(golden.labels)
    expect(saved.parts('replacement').map((part) => part.name)).toContain('classifier.weight')
    expect(saved.get('classifier.bias')).toMatchObject({ kind: 'replacement', shape: [3] })

    const controller = new AbortController()
    const on = { step: ({ step }: { step: number }) => void (step === 5 && controller.abort()) }
    await train(broken, { signal: controller.signal, on })
    await train(broken, { resume: true })
    expect(broken.files.get('adapter_model.safetensors')).toEqual(whole.files.get('adapter_model.safetensors'))
  })

  it('adapts all linear layers but those of the head that are trained whole', async () => {
    const options = { model, task: 'text-classification', data: golden.rows, maxSteps: 1, threads: 1 } as const
    const { adapter } = await trainAdapter({ ...options, maxLength: 14, config: { rank: 2, dropout: 0.5 } })
    const layers = adapter.parts('linear').map((layer) => layer.name)
    expect(layers).toHaveLength(name === 'encoder' ? 12 : 13)
    expect(layers.includes('bert.pooler.dense')).toBe(name === 'classifier')
  })
})

/** Reads the values of the model's own head from its file. */
async function classifierOf({ onnx }: Model): Promise<Float32Array> {
  const stored = onnx.proto.graph?.initializer.find(({ name }) => name.endsWith('classifier.weight'))
  return decodeFloats(await onnx.readTensor(stored!), 'fp32').slice()
}

describe('labels', () => {
  let model: Model
  beforeAll(async () => {
    model = await loadModel(`${folder}/classifier`, { runtime })
  })
  afterAll(() => model.close())
  const examples = (labels: string[]) =>
    labels.map((label) => ({ inputIds: Int32Array.of(2), tokenTypeIds: Int32Array.of(0), label, where: 'x' }))
  const open = (...labels: string[]) => textClassification.open(model, examples(labels))

  it('are those of the model where the data has no others, else those of the data', () => {
    expect(open('sad', 'calm').labels).toEqual(['calm', 'glad', 'sad'])
    expect(open('spam', 'ham').labels).toEqual(['ham', 'spam'])
    expect(open('10', '9', '0').labels).toEqual(['0', '9', '10'])
  })

  it("start with the base's own head where it gives them, else with a new one, and a warning tells", async () => {
    const start = (task: OpenTask) => task.head!.tensors[0].start({ normal: () => 0.5 } as never)
    const own = open('sad', 'calm')
    expect([await start(own), own.head?.isNew, own.warnings?.length]).toEqual([await classifierOf(model), false, 1])
    for (const labels of [
      ['spam', 'ham'],
      ['eggs', 'spam', 'ham'],
    ]) {
      const other = open(...labels)
      expect([...new Set(await start(other))]).toEqual([Math.fround(0.01)])
      expect(other.warnings?.[0]).toBe(
        `the head of the model gives calm, glad, sad, and the data has ${[...labels].sort().join(', ')}: a new head is trained`,
      )
    }
    const fresh = textClassification.open(model, examples(['sad', 'calm']), {}, { newHead: true })
    expect([fresh.labels, fresh.head?.isNew, fresh.warnings?.length]).toEqual([['calm', 'sad'], true, 1])
    expect([...new Set(await start(fresh))]).toEqual([Math.fround(0.01)])
  })

  it('of a head without names are those that transformers gives', async () => {
    const { id2label: _, label2id: __, ...config } = model.config
    const unnamed = { ...model, config }
    const labels = ['LABEL_0', 'LABEL_1', 'LABEL_2']
    expect(textClassification.open(unnamed, examples(labels)).head?.isNew).toBe(false)
    expect(textClassification.open(unnamed, examples(['a', 'b', 'c'])).head?.isNew).toBe(true)
  })

  it('get a new head where the option asks for it, and the report tells', async () => {
    const data = ['sad', 'calm', 'glad'].map((label) => ({ text: label, label }))
    const options = { model, task: 'text-classification', data, threads: 1, maxSteps: 1, learningRate: 1e-9 } as const
    const own = await trainAdapter(options)
    const fresh = await trainAdapter({ ...options, newHead: true })
    expect([own.report.newHead, fresh.report.newHead]).toEqual([false, true])
    const weights = [own, fresh].map(({ adapter }) => adapter.get('classifier.weight', 'replacement')!.weight.data)
    expect(relativeError(weights[0] as Float32Array, await classifierOf(model))).toBeLessThan(1e-6)
    expect(relativeError(weights[1] as Float32Array, await classifierOf(model))).toBeGreaterThan(0.5)
    const out = new MemoryDirectory()
    await expect(trainAdapter({ ...options, newHead: true, adapter: own.adapter, out })).rejects.toThrow(
      /newHead: not together with adapter/,
    )
    const pairs = [
      { text: 'a', textPair: 'b' },
      { text: 'c', textPair: 'd' },
    ]
    const encoder = await loadModel(`${folder}/encoder`, { runtime })
    const without = trainAdapter({ model: encoder, task: 'embedding', data: pairs, newHead: true, out })
    await expect(without).rejects.toThrow(/newHead: the task embedding trains no head/)
    expect(out.files.size).toBe(0)
    await encoder.close()
  })

  it('have to differ, and to be known', () => {
    expect(() => open('spam', 'spam')).toThrow(DataError)
    const example = { inputIds: Int32Array.of(2), tokenTypeIds: Int32Array.of(0), label: 'eggs', where: 'x' }
    expect(() => open('spam', 'ham').collate([example], 8)).toThrow(/no record of the training data has it.*"eggs"/)
  })

  it('of rows are texts, integers or truths', () => {
    const parse = (row: unknown) => textClassification.parse(row, 'here')
    expect(parse({ text: 'a', label: 3 })).toEqual({ text: 'a', textPair: undefined, label: '3', where: 'here' })
    expect(parse({ text: 'a', textPair: 'b', label: true })).toEqual({
      text: 'a',
      textPair: 'b',
      label: 'true',
      where: 'here',
    })
    expect(parse({ text: 'a', label: 0.5 })).toMatchObject({ label: 0.5 })
    expect(parse({ text: 'a', labels: ['x', 3] })).toMatchObject({ label: ['x', '3'] })
    for (const row of [
      { text: 'a' },
      { text: 'a', label: null },
      { text: 'a', label: [0.5] },
      { label: 'x' },
      { text: 'a', textPair: 3, label: 'x' },
      null,
    ]) {
      expect(() => parse(row)).toThrow(/here: not a text with a label/)
    }
  })

  it('of an adapter to go on with have to be as many', async () => {
    const adapter = await loadAdapter(`${folder}/classifier/golden/adapter-init`)
    const data = [
      { text: 'good', label: 'ham' },
      { text: 'bad', label: 'spam' },
    ]
    const training = trainAdapter({ model, task: 'text-classification', data, adapter, threads: 1 })
    await expect(training).rejects.toThrow(MismatchError)
    const plain = new LoraAdapter({ rank: 2 })
    plain.addLayerOfShape('bert.encoder.layer.0.attention.self.query', [16, 16])
    const without = trainAdapter({ model, task: 'text-classification', data, adapter: plain, threads: 1 })
    await expect(without).rejects.toThrow(/classifier\.weight.*other tensors than this task trains/)
  })

  it('of an encoder whose head is not known are refused', async () => {
    const other = { ...model, config: { ...model.config, model_type: 'other' } }
    expect(
      textClassification.open(
        other,
        [...'ab'].map((label) => ({ inputIds: Int32Array.of(2), tokenTypeIds: Int32Array.of(0), label, where: 'x' })),
      ).head?.modulesToSave,
    ).toEqual(['classifier'])
    const bare = await loadModel(`${folder}/encoder`, { runtime })
    const unknown = { ...bare, config: { ...bare.config, model_type: 'other' } }
    expect(() => textClassification.check(unknown)).toThrow(UnsupportedError)
    await bare.close()
  })
})

it('is not what causal language modeling trains', async () => {
  const model = await loadModel(`${folder}/encoder`, { runtime })
  const training = trainAdapter({ model, data: [{ prompt: 'a', completion: 'b' }], threads: 1 })
  await expect(training).rejects.toThrow(/does not continue texts.*got output last_hidden_state/)
  await model.close()
})

it('scores as scikit-learn does', () => {
  // accuracy_score([0,1,2,2,1], [0,2,2,2,1]) and f1_score(…, average='macro')
  const { accuracy, f1 } = classificationMetrics([0, 1, 2, 2, 1], [0, 2, 2, 2, 1])
  expect(accuracy).toBeCloseTo(0.8, 10)
  expect(f1).toBeCloseTo((1 + 2 / 3 + 0.8) / 3, 10)
})
