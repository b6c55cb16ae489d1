import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { ConfigError, DataError, FormatError, MismatchError } from '../../src/base/errors.js'
import { readRows } from '../../src/data/read-rows.js'
import { OnnxModel } from '../../src/formats/onnx/model.js'
import type { CausalModel } from '../../src/graph/model-folder.js'
import { causalLm } from '../../src/tasks/causal-lm.js'
import { loadTask } from '../../src/tasks/tasks.js'
import type { Example } from '../../src/text/records.js'
import { makeTokenizer } from '../../src/text/tokenizer.js'
import { type EncodeOptions, encodeRows } from '../../src/train/examples.js'
import { addInput, addOutput, DataType, emptyGraph } from '../graph/toolkit.js'

const folder = new URL('../../models/union-3m/', import.meta.url)
const json = (path: string) => JSON.parse(readFileSync(new URL(path, folder), 'utf8'))
const tokenizer = makeTokenizer(json('tokenizer.json'), json('tokenizer_config.json'), 'union-3m')
const EOS = 1

type Limits = Pick<EncodeOptions, 'maxLength'> & { vocabularySize?: number; eosTokenIds?: number[] }

async function encode(rows: unknown[], { maxLength, ...model }: Limits = {}) {
  const task = await loadTask('causal-lm')
  const whole = {
    tokenizer,
    eosTokenIds: [EOS],
    vocabularySize: 2048,
    contextLength: 256,
    ...model,
  } as unknown as CausalModel
  const { examples, ...counts } = await encodeRows(readRows(rows), {
    task,
    model: whole,
    maxLength,
    name: 'data.jsonl',
  })
  return { examples: examples as Example[], ...counts }
}

describe('encodeRows', () => {
  const long = 'the '.repeat(300)

  it('cuts on the right and counts', async () => {
    const rows = [{ text: 'In the beginning' }, { text: long }, { prompt: long, completion: 'end' }]
    const { examples, truncatedRecords, skippedRecords } = await encode(rows)
    expect(examples.map(({ inputIds }) => inputIds.length)).toEqual([
      tokenizer.encode('In the beginning').length + 1,
      256,
    ])
    expect([truncatedRecords, skippedRecords]).toEqual([2, 1])
    expect([...examples[1].inputIds]).toEqual(tokenizer.encode(long).slice(0, 256))
  })

  it('keeps records of exactly the limit whole', async () => {
    const length = tokenizer.encode('In the beginning').length + 1
    const fits = await encode([{ text: 'In the beginning' }], { maxLength: length })
    expect(fits.truncatedRecords).toBe(0)
    const cut = await encode([{ text: 'In the beginning' }], { maxLength: length - 1 })
    expect(cut.truncatedRecords).toBe(1)
  })

  it('refuses limits that the model cannot have', async () => {
    for (const maxLength of [257, 1, 0, -3, 2.5, Number.NaN]) {
      await expect(encode([{ text: 'a' }], { maxLength })).rejects.toThrow(ConfigError)
    }
    await expect(encode([{ text: 'a' }], { maxLength: 257 })).rejects.toThrow('at most 256, got 257')
  })

  it('refuses tokens that the model has not', async () => {
    await expect(encode([{ text: 'a' }], { vocabularySize: 2048 })).resolves.toBeDefined()
    const error = await encode([{ text: 'a' }], { vocabularySize: 60 }).catch((error: unknown) => error)
    expect(error).toBeInstanceOf(MismatchError)
  })

  it('refuses data without targets, and models without an eos', async () => {
    await expect(encode([])).rejects.toThrow(DataError)
    await expect(encode([{ prompt: long, completion: 'x' }])).rejects.toThrow(/maxLength 256/)
    await expect(encode([{ text: 'a' }], { eosTokenIds: [] })).rejects.toThrow(FormatError)
  })
})

describe('collate', () => {
  const graph = emptyGraph(17)
  for (const name of ['input_ids', 'attention_mask']) addInput(graph, name, DataType.INT64, ['b', 's'])
  addOutput(graph, 'logits', DataType.FLOAT)
  const onnx = new OnnxModel('test', 'model.onnx', graph.toModel(), new Map())
  const task = causalLm.open({ onnx, padTokenId: 99 } as CausalModel, [])
  const example = (...ids: number[]): Example => ({
    inputIds: Int32Array.from(ids),
    labels: Int32Array.from(ids, (id, i) => (i < 2 ? -100 : id)),
  })
  const examples = [example(8, 9, 10, 11), example(5, 6, 7)]

  it('pads on the right, and lets each position predict the next token', () => {
    const feeds = task.collate(examples, 5)
    const values = (name: string) => Array.from(feeds[name].data as BigInt64Array, Number)
    expect(values('input_ids')).toEqual([8, 9, 10, 11, 99, 5, 6, 7, 99, 99])
    expect(values('attention_mask')).toEqual([1, 1, 1, 1, 0, 1, 1, 1, 0, 0])
    expect(values('loss/rows')).toEqual([1, 2, 6])
    expect(values('loss/targets')).toEqual([0, 10, 1, 11, 2, 7])
    expect(feeds.input_ids.dims).toEqual([2, 5])
  })

  it('counts targets and tokens', () => {
    expect(task.normalizer(examples)).toBe(3)
    expect(examples.map((one) => task.cost(one))).toEqual([4, 3])
  })
})

it('names the tasks that there are', async () => {
  await expect(loadTask('causal-ml')).rejects.toThrow(
    /task: unknown; expected .*got "causal-ml". Did you mean causal-lm/,
  )
})
