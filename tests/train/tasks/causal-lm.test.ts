import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import {
  ConfigError,
  DataError,
  FormatError,
  MemoryDirectory,
  MismatchError,
  type Model,
  UnsupportedError,
} from '../../../src/api/node.js'
import { readRows } from '../../../src/files/data/read-rows.js'
import { planSplit } from '../../../src/files/data/row.js'
import { checkCausal } from '../../../src/model/match/continues.js'
import type { Example } from '../../../src/model/text/records.js'
import { makeTokenizer } from '../../../src/model/text/tokenizer.js'
import { OnnxModel } from '../../../src/onnx/format/model.js'
import { valueInfo } from '../../../src/onnx/view/value-info.js'
import { type EncodeOptions, encodeRows } from '../../../src/train/rows/examples.js'
import { causalLm } from '../../../src/train/tasks/causal-lm.js'
import { loadTask } from '../../../src/train/tasks/tasks.js'
import { addInput, addOutput, DataType, emptyGraph } from '../../onnx/toolkit.js'

const folder = new URL('../../../models/union-3m/', import.meta.url)
const json = (path: string) => JSON.parse(readFileSync(new URL(path, folder), 'utf8'))
const tokenizer = makeTokenizer(json('tokenizer.json'), json('tokenizer_config.json'), 'union-3m')
const EOS = 1

type Given = Pick<EncodeOptions, 'maxLength' | 'chatTemplate' | 'chatTemplateArgs' | 'isHeldOut'>
type Limits = Given & { vocabularySize?: number; eosTokenIds?: number[]; directory?: MemoryDirectory }

async function encodeBoth(rows: unknown[], { maxLength, chatTemplate, chatTemplateArgs, isHeldOut, ...model }: Limits) {
  const task = await loadTask('causal-lm')
  const whole = {
    tokenizer,
    eosTokenIds: [EOS],
    vocabularySize: 2048,
    contextLength: 256,
    directory: new MemoryDirectory({}, 'union-3m'),
    ...model,
  } as unknown as Model
  return encodeRows(readRows(rows), {
    task,
    model: whole,
    maxLength,
    chatTemplate,
    chatTemplateArgs,
    isHeldOut,
    name: 'data.jsonl',
  })
}

async function encode(rows: unknown[], limits: Limits = {}) {
  const { examples, ...counts } = (await encodeBoth(rows, limits)).kept
  return { examples: [...examples] as Example[], ...counts }
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

  it('refuses a limit that the model cannot have', async () => {
    const error = await encode([{ text: 'a' }], { maxLength: 257 }).catch((error: unknown) => error)
    expect(error).toBeInstanceOf(ConfigError)
    expect((error as Error).message).toContain('at most 256, got 257')
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

describe('records of every kind', () => {
  const CHAT =
    '{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}'
  const textOf = ({ inputIds }: Example) => tokenizer.decode([...inputIds], { specialTokens: true })
  const targetsOf = ({ inputIds, labels }: Example) =>
    tokenizer.decode(
      [...inputIds].filter((_, i) => labels[i] !== -100),
      { specialTokens: true },
    )
  const turn = [
    { role: 'user', content: 'one' },
    { role: 'assistant', content: 'two' },
  ]

  it('counts the assistant’s part of a chat', async () => {
    const rows = [
      { messages: turn },
      {
        conversations: [
          { from: 'human', value: 'one' },
          { from: 'gpt', value: 'two' },
        ],
      },
      { prompt: [turn[0]], completion: [turn[1]] },
      { question: 'one', answer: 'two' },
      { instruction: 'one', input: '', output: 'two' },
    ]
    const { examples, skippedRecords } = await encode(rows, { chatTemplate: CHAT })
    expect(examples.map(textOf)).toEqual(rows.map(() => '<user>one</><assistant>two</>'))
    expect(examples.map(targetsOf)).toEqual(rows.map(() => 'two</>'))
    expect(skippedRecords).toBe(0)
  })

  it('makes a prompt of a question where there is no template', async () => {
    const { examples } = await encode([{ instruction: 'one', input: 'more', output: 'two', system: 'be' }])
    expect(textOf(examples[0])).toBe('<|bos|>be\n\none\n\nmore\ntwo<|eos|>')
    expect(targetsOf(examples[0])).toBe('two<|eos|>')
  })

  it('skips and counts what has nothing to learn', async () => {
    const rows = [{ text: '' }, { messages: [turn[0]] }, { text: 'a' }]
    expect(await encode(rows, { chatTemplate: CHAT })).toMatchObject({
      rows: 3,
      skippedRecords: 2,
      truncatedRecords: 0,
    })
    const long = { messages: [{ role: 'user', content: 'the '.repeat(300) }, turn[1]] }
    expect(await encode([long, { text: 'a' }], { chatTemplate: CHAT })).toMatchObject({
      skippedRecords: 1,
      truncatedRecords: 1,
    })
  })

  it('takes the model’s own template, with variables', async () => {
    const template = '{{ extra }}{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}'
    const directory = new MemoryDirectory({ 'chat_template.jinja': template })
    const { examples } = await encode([{ messages: turn }], { directory, chatTemplateArgs: { extra: 'E:' } })
    expect([textOf(examples[0]), targetsOf(examples[0])]).toEqual(['E:one;two;', 'onetwo'])
  })

  it('tells of a missing or broken template when a chat needs it', async () => {
    const broken = { directory: new MemoryDirectory({ 'chat_template.jinja': '{% for %}' }) }
    await expect(encode([{ text: 'a' }], broken)).resolves.toBeDefined()
    await expect(encode([{ messages: turn }], broken)).rejects.toThrow(/the chat template cannot be read/)
    const missing = await encode([{ messages: turn }]).catch((error: unknown) => error)
    expect(missing).toBeInstanceOf(FormatError)
    expect((missing as Error).message).toContain(
      'union-3m: the data contains chats, but the model has no chat template',
    )
    expect((missing as Error).message).toContain('`chatTemplate`')
  })

  it('holds out a share of the rows', async () => {
    const rows = Array.from({ length: 40 }, (_, i) => ({ text: `number ${i}` }))
    const { kept, heldOut } = await encodeBoth(rows, { isHeldOut: planSplit(0.25, 1) })
    expect([kept.rows, heldOut.rows]).toEqual([30, 10])
    const texts = [...kept.examples, ...heldOut.examples].map((one) => textOf(one as Example))
    expect(new Set(texts).size).toBe(40)
    await expect(encodeBoth(rows.slice(0, 1), { isHeldOut: () => true })).rejects.toThrow('it holds no records')
    await expect(encodeBoth(rows, { isHeldOut: () => false })).rejects.toThrow(
      /data.jsonl, the part for evaluation: it holds no records.*there are 40 records in all: raise `evalSplit`/s,
    )
  })
})

describe('collate', () => {
  const graph = emptyGraph(17)
  for (const name of ['input_ids', 'attention_mask']) addInput(graph, name, DataType.INT64, ['b', 's'])
  addOutput(graph, 'logits', DataType.FLOAT)
  const onnx = new OnnxModel('test', 'model.onnx', graph.toModel(), new Map())
  const task = causalLm.open({ onnx, padTokenId: 99, graphs: {} } as unknown as Model, [])
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

describe('a model that does not continue texts is refused', () => {
  const graphOf = (output: string, dims: (number | string)[]) => {
    const graph = emptyGraph(17)
    for (const name of ['input_ids', 'attention_mask', 'token_type_ids'])
      addInput(graph, name, DataType.INT64, ['b', 's'])
    graph.outputs.push(valueInfo(output, DataType.FLOAT, dims))
    return graph
  }
  const vocabularySize = 100

  it.each<[string, Parameters<typeof graphOf>, string, RegExp]>([
    ['an encoder', ['last_hidden_state', ['b', 's', 16]], 'BertModel', /got output last_hidden_state/],
    ['one that fills gaps', ['logits', ['b', 's', 100]], 'BertForMaskedLM', /got BertForMaskedLM/],
    ['one that classifies', ['logits', ['b', 2]], 'Unknown', /got logits of 2 axes/],
    ['one that marks tokens', ['logits', ['b', 's', 9]], 'Unknown', /expected 100 logits, got 9/],
  ])('%s', (_, graph, architecture, message) => {
    const config = { architectures: [architecture] }
    expect(() => checkCausal({ config, vocabularySize }, graphOf(...graph))).toThrow(UnsupportedError)
    expect(() => checkCausal({ config, vocabularySize }, graphOf(...graph))).toThrow(message)
  })

  it('but not one whose config says nothing, or whose logits are wider', () => {
    expect(() => checkCausal({ config: {}, vocabularySize }, graphOf('logits', ['b', 's', 'v']))).not.toThrow()
    expect(() => checkCausal({ config: {}, vocabularySize }, graphOf('logits', ['b', 's', 128]))).not.toThrow()
  })
})
