import { readFileSync } from 'node:fs'
import * as ort from 'onnxruntime-node'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { MemoryDirectory } from '../../src/base/bytes.js'
import { UnsupportedError } from '../../src/base/errors.js'
import { readRows } from '../../src/data/read-rows.js'
import { loadModel, type Model } from '../../src/graph/model-folder.js'
import { joinGraphs } from '../../src/graph/training/joined-graph.js'
import { NodeDirectory } from '../../src/io/node/files.js'
import type { OrtModule } from '../../src/runtime/onnxruntime.js'
import { type Seq2SeqExample, seq2seq } from '../../src/tasks/seq2seq.js'
import type { Task } from '../../src/tasks/task.js'
import { defaultTask, tasksFor } from '../../src/tasks/tasks.js'
import { encodeRows } from '../../src/train/examples.js'
import { train } from '../../src/train/train.js'
import { checkGoldenRun, type GoldenRun } from './golden-run.js'

const ROWS = [
  { text: 'And the people said unto him', target: 'the sea was calm' },
  { text: 'In the beginning', target: 'there was the word' },
]

const runtime = { module: ort as unknown as OrtModule }

interface Golden extends GoldenRun {
  rows: Record<string, string>[]
  inputIds: number[][] | null
  labels: number[][]
  accuracy: number
}

describe.each(['t5', 'bart'])('%s', (name) => {
  let model: Model
  let joined: Model
  beforeAll(async () => {
    model = await loadModel(new NodeDirectory(`tests/golden/graphs/${name}`), { runtime })
    joined = await joinGraphs(model)
  })
  afterAll(() => model.close())

  const goldenOf = (folder: string): Golden => JSON.parse(readFileSync(`${folder}/golden.json`, 'utf8'))
  const encode = async (rows: Iterable<Record<string, string>>, options: object = {}) => {
    const task = seq2seq as unknown as Task
    const { kept } = await encodeRows(readRows(rows), { task, model: joined, name: 'data', ...options })
    return [...kept.examples] as Seq2SeqExample[]
  }

  it.each(['', '-default'])("has PEFT's loss, gradients and 20 steps: targets%s", async (targets) => {
    const folder = `tests/golden/seq2seq/${name}${targets}`
    const golden = goldenOf(folder)
    const examples = await encode(golden.rows)
    expect(examples.map(({ source }) => [...source])).toEqual(golden.inputIds)
    expect(examples.map(({ target }) => [...target])).toEqual(golden.labels)
    const open = seq2seq.open(joined, examples)
    const { outputs } = await checkGoldenRun(joined, open, examples, { folder, golden, length: 0 })
    const predictions = open.predict?.(outputs, examples) as number[]
    const metrics = open.metrics({ loss: golden.loss, examples, predictions })
    expect(metrics.accuracy).toBeCloseTo(golden.accuracy, 10)
    expect(metrics.perplexity).toBeCloseTo(Math.exp(golden.loss), 6)
    expect(golden.adamwLosses).toHaveLength(20)
  })

  it('cuts inputs and targets to a limit that is asked for, and keeps the ends of both', async () => {
    const text = 'the sea '.repeat(60)
    const rows = [{ text, target: text }]
    const [example] = await encode(rows, { maxLength: 20 })
    expect(example.source).toHaveLength(20)
    expect(example.target).toHaveLength(20)
    expect(example.target.at(-1)).toBe(model.eosTokenIds[0])
    if (name === 'bart') await expect(encode(rows)).rejects.toThrow(/longer than the model can write/)
  })
})

describe('a model that is not whole', () => {
  it.each([
    ['decoder_model_merged.onnx', /it is a decoder without its encoder.*got onnx\/decoder_model_merged/s],
    ['encoder_model.onnx', /it is an encoder without its decoder.*decoder_model_merged.onnx/s],
  ])('%s alone is refused', async (file, message) => {
    const names = ['config.json', 'tokenizer.json', 'tokenizer_config.json', `onnx/${file}`]
    const files = names.map((one) => [one, Uint8Array.from(readFileSync(`tests/golden/graphs/bart/${one}`))])
    const model = await loadModel(new MemoryDirectory(Object.fromEntries(files)), { runtime })
    const run = train({ model, task: 'seq2seq', data: ROWS, maxSteps: 1 })
    await expect(run).rejects.toThrow(message)
    await expect(run).rejects.toBeInstanceOf(UnsupportedError)
    await model.close()
  })
})

it('an encoder-decoder can be trained for this task alone', async () => {
  const model = await loadModel(new NodeDirectory('tests/golden/graphs/t5'), { runtime })
  expect(await tasksFor(await joinGraphs(model))).toEqual(['seq2seq'])
  expect(await defaultTask(model)).toBe('seq2seq')
  await model.close()
})
