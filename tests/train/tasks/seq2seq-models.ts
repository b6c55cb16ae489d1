// Training of the tiny encoder-decoders in tests/golden/graphs, with PEFT's numbers.

import { readFileSync } from 'node:fs'
import * as ort from 'onnxruntime-node'
import { expect } from 'vitest'
import { loadModel, MemoryDirectory, type Model } from '../../../src/api/node.js'
import { readRows } from '../../../src/files/data/read-rows.js'
import { joinGraphs } from '../../../src/train/graph/joined-graph.js'
import { encodeRows } from '../../../src/train/rows/examples.js'
import { type Seq2SeqExample, seq2seq } from '../../../src/train/tasks/seq2seq.js'
import type { Task } from '../../../src/train/tasks/task.js'
import { checkGoldenRun, type GoldenRun } from './golden-run.js'

export const runtime = { module: ort }

export const ROWS = [
  { text: 'And the people said unto him', target: 'the sea was calm' },
  { text: 'In the beginning', target: 'there was the word' },
]

interface Golden extends GoldenRun {
  rows: Record<string, string>[]
  inputIds: number[][] | null
  labels: number[][]
  accuracy: number
}

/** Opens a golden model. The model of sounds gets a tokenizer, because it has none. */
export function openTiny(name: string): Promise<Model> {
  const folder = `tests/golden/graphs/${name}`
  if (name !== 'whisper') return loadModel(folder, { runtime })
  const own = ['config.json', 'onnx/encoder_model.onnx', 'onnx/decoder_model_merged.onnx'].map((file) => [folder, file])
  const tokenizer = ['tokenizer.json', 'tokenizer_config.json'].map((file) => ['models/union-3m', file])
  const files = [...own, ...tokenizer].map(([from, file]) => [file, Uint8Array.from(readFileSync(`${from}/${file}`))])
  return loadModel(new MemoryDirectory(Object.fromEntries(files)), { runtime })
}

/** Encodes rows as examples for a model whose encoder and decoder are joined into one graph. */
export async function encode(
  model: Model,
  rows: Iterable<Record<string, unknown>>,
  options: object = {},
): Promise<Seq2SeqExample[]> {
  const task = seq2seq as unknown as Task
  const { kept } = await encodeRows(readRows(rows), { task, model, name: 'data', ...options })
  return [...kept.examples] as Seq2SeqExample[]
}

/** Checks PEFT's tokens, loss, gradients and 20 steps with the adapter of tests/golden/seq2seq/{name}{targets}. */
export async function checkGolden(name: string, targets: string): Promise<void> {
  const model = await openTiny(name)
  const joined = await joinGraphs(model)
  const folder = `tests/golden/seq2seq/${name}${targets}`
  const golden: Golden = JSON.parse(readFileSync(`${folder}/golden.json`, 'utf8'))
  const examples = await encode(joined, golden.rows)
  expect(examples.map(({ source }) => [...source])).toEqual(golden.inputIds)
  expect(examples.map(({ target }) => [...target])).toEqual(golden.labels)
  const open = seq2seq.open(joined, examples)
  const { outputs } = await checkGoldenRun(joined, open, examples, { folder, golden, length: 0 })
  const predictions = open.predict?.(outputs, examples) as number[]
  const metrics = open.metrics({ loss: golden.loss, examples, predictions })
  expect(metrics.accuracy).toBeCloseTo(golden.accuracy, 10)
  expect(metrics.perplexity).toBeCloseTo(Math.exp(golden.loss), 6)
  expect(golden.adamwLosses).toHaveLength(20)
  await model.close()
}
