// Decoders that label texts. Graphs from several exporters give the losses, gradients and logits of PEFT's
// *ForSequenceClassification in training, in sessions, and after merging.

import { readFileSync } from 'node:fs'
import * as ort from 'onnxruntime-node'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { loadAdapter, loadModel, MemoryDirectory, type Model } from '../../../src/api/node.js'
import { readRows } from '../../../src/files/data/read-rows.js'
import { NodeDirectory } from '../../../src/files/io/node/files.js'
import { merge } from '../../../src/merge/merge.js'
import { ModelSession } from '../../../src/run/model-session.js'
import { encodeRows } from '../../../src/train/rows/examples.js'
import type { Task } from '../../../src/train/tasks/task.js'
import { tasksFor } from '../../../src/train/tasks/tasks.js'
import { type LabeledExample, textClassification } from '../../../src/train/tasks/text-classification.js'
import { train } from '../../../src/train/train.js'
import { relativeError } from '../../model/golden.js'
import { maxDifference } from '../../run/models.js'
import { some } from '../../thorough.js'
import { checkGoldenRun, type GoldenRun } from './golden-run.js'

const runtime = { module: ort }

interface Golden extends GoldenRun {
  rows: { text: string; textPair?: string; label: string }[]
  maxLength: number
  labels: string[]
  batch: { input_ids: number[][]; attention_mask: number[][] }
  logits: number[][]
}

/**
 * Base graph → the model whose numbers it must give. Merged with a head, it has the usual inputs of classifiers, and no
 * cache.
 */
const GRAPHS = {
  'llama-optimum': 'llama',
  'llama-genai': 'llama',
  'llama-genai-rotary': 'llama',
  'llama-dynamo': 'llama',
  'qwen2-optimum': 'qwen2',
  'gpt2-optimum': 'gpt2',
}

describe.each(some(Object.entries(GRAPHS), 10))('%s', (graph, name) => {
  const folder = `tests/golden/decoder-classification/${name}/golden`
  const golden: Golden = JSON.parse(readFileSync(`${folder}/golden.json`, 'utf8'))
  const texts = golden.rows.map(({ text, textPair }) => ({ text, textPair }))
  const { maxLength } = golden
  let model: Model
  let examples: LabeledExample[]
  beforeAll(async () => {
    model = await loadModel(`tests/golden/models/${graph}`, { runtime })
    const options = { task: textClassification as unknown as Task, model, maxLength, name: 'data' }
    const { kept } = await encodeRows(readRows(golden.rows), options)
    examples = [...kept.examples] as LabeledExample[]
  })
  afterAll(() => model.close())

  it("gives PEFT's loss, logits and gradients, and takes its steps", async () => {
    textClassification.check(model)
    const open = textClassification.open(model, examples)
    expect(open.head?.modulesToSave).toEqual(['score'])
    const { logits } = await checkGoldenRun(model, open, examples, { folder, golden, length: maxLength })
    expect(relativeError(logits.data as Float32Array, golden.logits.flat())).toBeLessThan(1e-4)
  })

  it('runs with a head for each adapter, and merged without a cache', async () => {
    const adapter = await loadAdapter(`${folder}/adapter-init`)
    const session = await ModelSession.open(model, { adapters: { mood: adapter } })
    const own = await session.classify(texts, { adapter: 'mood', maxLength, batchSize: 6 })
    own.forEach(({ logits }, i) => void expect(maxDifference(logits, golden.logits[i])).toBeLessThan(1e-4))
    const { input_ids, attention_mask } = golden.batch
    const feeds = { input_ids: int64(input_ids), attention_mask: int64(attention_mask) }
    const ran = await session.run(feeds, { adapter: 'mood', outputNames: ['logits'] })
    expect(ran.logits.dims).toEqual([golden.logits.length, golden.logits[0].length])
    expect(relativeError(ran.logits.data as Float32Array, golden.logits.flat())).toBeLessThan(1e-4)
    await session.dispose()

    const out = new MemoryDirectory({}, 'out')
    const base = { directory: new NodeDirectory(`tests/golden/models/${graph}`) }
    const { added } = await merge({ base, adapters: adapter, out })
    expect(added).toEqual(['score.weight'])
    const config = JSON.parse(new TextDecoder().decode(out.files.get('config.json')))
    expect(config.architectures).toEqual([
      `${{ llama: 'Llama', qwen2: 'Qwen2', gpt2: 'GPT2' }[name]}ForSequenceClassification`,
    ])
    const merged = await loadModel(out, { runtime })
    const alone = await ModelSession.open(merged)
    expect([alone.inputNames, alone.outputNames]).toEqual([['input_ids', 'attention_mask'], ['logits']])
    const found = await alone.classify(texts, { maxLength, batchSize: 6 })
    found.forEach(({ logits }, i) => void expect(maxDifference(logits, golden.logits[i])).toBeLessThan(1e-4))
    await alone.dispose()
    await merged.close()
  })
})

const int64 = (rows: number[][]) =>
  ({ type: 'int64', data: BigInt64Array.from(rows.flat(), BigInt), dims: [rows.length, rows[0].length] }) as const

describe('a decoder', () => {
  const data = [
    { text: 'The sea was calm', label: 'calm' },
    { text: 'He saw the sun and was happy', label: 'glad' },
    { text: 'the night and the rain', label: 'calm' },
    { text: 'sun and a happy day', label: 'glad' },
  ]
  let model: Model
  beforeAll(async () => {
    model = await loadModel('tests/golden/models/llama-optimum', { runtime })
  })
  afterAll(() => model.close())
  const learn = (of: Model, out: MemoryDirectory) =>
    train({
      ...{ model: of, task: 'text-classification', data, evalData: data, batchSize: 2, epochs: 10, out },
      ...{ learningRate: 2e-2, threads: 1, config: { rank: 2, targetModules: ['q_proj', 'v_proj'] } },
    })

  it('learns labels, saves its head, and trains on from the merged model', async () => {
    expect((await tasksFor(model)).map(({ name }) => name)).toEqual([
      'causal-lm',
      'dpo',
      'kto',
      'text-classification',
      'reranking',
      'grpo',
      'distill',
    ])
    const out = new MemoryDirectory()
    const { report } = await learn(model, out)
    expect(report.evalMetrics?.accuracy).toBe(1)
    const config = JSON.parse(new TextDecoder().decode(out.files.get('adapter_config.json')))
    expect(config).toMatchObject({ task_type: 'SEQ_CLS', modules_to_save: ['score'] })
    const saved = await loadAdapter(out)
    expect(saved.get('score.weight')).toMatchObject({ kind: 'replacement', shape: [2, 32] })
    expect(saved.labels).toEqual(['calm', 'glad'])

    const result = new MemoryDirectory({}, 'out')
    await merge({ base: { directory: model.directory }, adapters: saved, out: result })
    const merged = await loadModel(result, { runtime })
    expect((await tasksFor(merged)).map(({ name }) => name)).toEqual(['text-classification', 'reranking'])
    const again = await learn(merged, new MemoryDirectory())
    expect(again.report.trainLoss[0]).toBeLessThan(report.trainLoss[0] / 2)
    await merged.close()
  })

  it('with and without cache in one graph learns labels, and is merged without its branches', async () => {
    const branched = await loadModel('tests/golden/models/merged-if', { runtime })
    const out = new MemoryDirectory()
    const { report } = await learn(branched, out)
    expect(report.evalMetrics?.accuracy).toBe(1)
    const adapter = await loadAdapter(out)
    const opening = ModelSession.open(branched, { adapters: { mood: adapter } })
    await expect(opening).rejects.toThrow(/SEQ_CLS: .*branches of an If.* Merge the adapter/)

    const result = new MemoryDirectory({}, 'out')
    await merge({ base: { directory: branched.directory }, adapters: adapter, out: result })
    const merged = await loadModel(result, { runtime })
    const session = await ModelSession.open(merged)
    expect(session.inputNames).toEqual(['input_ids', 'attention_mask'])
    const found = await session.classify(data.map(({ text }) => text))
    expect(found.map(({ label }) => label)).toEqual(data.map(({ label }) => label))
    const loss = found.map(({ logits }, i) => {
      const own = logits[adapter.labels!.indexOf(data[i].label)]
      return Math.log(Array.from(logits, Math.exp).reduce((sum, one) => sum + one, 0)) - own
    })
    const mean = loss.reduce((sum, one) => sum + one, 0) / loss.length
    expect(mean / report.evalLoss!.after).toBeCloseTo(1, 3)
    await session.dispose()
    for (const model of [branched, merged]) await model.close()
  })
})
