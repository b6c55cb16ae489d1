// Answers to chats, and the ends of texts: templates, ends of turns, stop strings, and scores.

import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { ConfigError, DataError, FormatError, MemoryDirectory, type Model } from '../../src/api/node.js'
import { compileChatTemplate } from '../../src/model/text/compiled-template.js'
import { encodeReply, endOfTurn } from '../../src/run/generate/messages.js'
import { TextRow } from '../../src/run/generate/text-row.js'
import { ModelSession } from '../../src/run/model-session.js'
import { makeAdapter, openModel } from './models.js'

const TEMPLATE = readFileSync('models/data/chat.jinja', 'utf8')
const MESSAGES = [
  { role: 'system', content: 'Answer in few words.' },
  { role: 'user', content: 'Where is the ship?' },
]

let model: Model
let session: ModelSession<Model>
beforeAll(async () => {
  model = { ...(await openModel('models/union-3m')), generationConfig: {} }
  session = await ModelSession.open(model)
})
afterAll(async () => {
  await session.dispose()
  await model.close()
})

describe('a chat', () => {
  it('is answered behind what the template renders, with the ids of its text', async () => {
    const rendered = '<|system|>\nAnswer in few words.<|eos|>\n<|user|>\nWhere is the ship?<|eos|>\n<|assistant|>\n'
    const ids = model.tokenizer!.encode(rendered, { specialTokens: false })
    const answer = await session.generate(MESSAGES, { chatTemplate: TEMPLATE, maxNewTokens: 6, logprobs: 0 })
    const { logits } = await session.run({
      input_ids: { type: 'int64', data: BigInt64Array.from(ids, BigInt), dims: [1, ids.length] },
    })
    const last = (logits.data as Float32Array).slice(-logits.dims[2])
    expect(answer.tokenIds[0]).toBe(last.indexOf(Math.max(...last)))
    expect(answer.logprobs).toHaveLength(answer.tokens)
  })

  it('of a list is one prompt of the batch, beside texts', async () => {
    const options = { chatTemplate: TEMPLATE, maxNewTokens: 6 }
    const [chat, text] = await session.generate([MESSAGES, 'And the people'], options)
    expect(chat.text).toBe((await session.generate(MESSAGES, options)).text)
    expect(text.text).toBe((await session.generate('And the people', options)).text)
    let streamed = ''
    for await (const piece of session.stream(MESSAGES, options)) streamed += piece
    expect(streamed).toBe(chat.text)
  })

  it('takes variables and tools, and the template of its adapter before the model’s', async () => {
    const asked: string[] = []
    const spy = { ...model.tokenizer!, encode: (text: string) => [3, asked.push(text)].slice(0, 1) } as never
    const stream = model.tokenizer!.stream.bind(model.tokenizer)
    const decode = model.tokenizer!.decode.bind(model.tokenizer)
    const decoderFiles = model.tokenizer!.decoderFiles.bind(model.tokenizer)
    const tokenId = model.tokenizer!.tokenId.bind(model.tokenizer)
    const spied = { ...model, tokenizer: Object.assign(spy, { stream, decode, decoderFiles, tokenId }) }
    const adapter = makeAdapter(model, /q_proj$/)
    adapter.chatTemplate = 'recorded {{ x }} {{ tools | length if tools else 0 }} {{ messages[0].content }}'
    const opened = await ModelSession.open(spied, { adapters: { adapter } })
    const messages = [{ role: 'user', content: 'hi' }]
    const options = { adapter: 'adapter', maxNewTokens: 1 }
    await opened.generate(messages, { ...options, chatTemplateArgs: { x: 7 }, tools: [{ a: 1 }] })
    expect(asked).toContain('recorded 7 1 hi')
    await opened.generate(messages, { ...options, chatTemplate: 'own {{ messages[0].content }}' })
    expect(asked).toContain('own hi')
    // A template without a place for tools gets them in the system message, and no call is lost.
    const all = '{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}'
    const called = { role: 'assistant', tool_calls: [{ type: 'function', function: { name: 'f', arguments: '{}' } }] }
    const round = [...messages, called, { role: 'tool', content: 'x' }]
    await opened.generate(round, { ...options, chatTemplate: all, tools: [{ name: 'qz' }] })
    expect(asked.find((text) => text.includes('qz'))).toMatch(
      /^system: .*<tools>\n\{"name":"qz"\}\n<\/tools>.*user: hi;assistant: <tool_call>.*"name": "f".*user: <tool_response>\nx/s,
    )
    await opened.dispose()
  })

  it.each<[string, unknown, object, new (...args: never[]) => Error, RegExp]>([
    ['no template', MESSAGES, {}, FormatError, /no chat template.*Give one with `chatTemplate`/s],
    [
      'an answer at its end',
      [...MESSAGES, { role: 'assistant', content: 'x' }],
      { chatTemplate: TEMPLATE },
      DataError,
      /prompt, message 3: the last message is an answer/,
    ],
    [
      'an unknown role',
      [{ role: 'narrator', content: 'x' }],
      { chatTemplate: TEMPLATE },
      DataError,
      /message 1: an unknown role/,
    ],
    [
      'a template that refuses',
      MESSAGES,
      { chatTemplate: "{{ raise_exception('no system') }}" },
      DataError,
      /no system/,
    ],
    ['a template that is no Jinja', MESSAGES, { chatTemplate: '{% if %}' }, FormatError, /cannot be read/],
    ['a stop that is empty', 'a', { stop: '' }, ConfigError, /^stop/],
    ['scores below 0', 'a', { logprobs: -1 }, ConfigError, /^logprobs/],
    ['tools that are none', MESSAGES, { tools: ['x'] }, ConfigError, /^tools/],
  ])('%s: an error by name', async (_, prompt, options, kind, message) => {
    const error = await session.generate(prompt as never, options).catch((error: unknown) => error)
    expect(error).toBeInstanceOf(kind)
    expect((error as Error).message).toMatch(message)
  })
})

it('a template that could not be read once is read again', async () => {
  let failures = 1
  class Flaky extends MemoryDirectory {
    override async open(file: string) {
      if (failures-- > 0) throw new Error('no network')
      return super.open(file)
    }
  }
  const directory = new Flaky({ 'chat_template.jinja': new TextEncoder().encode(TEMPLATE) })
  const reply = () => encodeReply({ ...model, directory } as Model, [{ role: 'user', content: 'And then?' }], {})
  await expect(reply()).rejects.toThrow('no network')
  expect((await reply()).length).toBeGreaterThan(3)
})

describe('the end of a turn', () => {
  const tokenizer = () => model.tokenizer!
  const template = (text: string) =>
    compileChatTemplate({ name: 'test', texts: new Map([['default', text]]), specialTokens: {} })

  it.each<[string, string, { endIds: number[]; stops: string[] }]>([
    ['a special token behind the answer', TEMPLATE, { endIds: [1], stops: [] }],
    [
      'one behind white space',
      '{% for m in messages %}{{ m.role }}: {{ m.content }}\n<|pad|>{% endfor %}',
      { endIds: [2], stops: [] },
    ],
    [
      'text alone',
      '{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}',
      { endIds: [], stops: ['\n\n### user:'] },
    ],
    ['nothing', '{% for m in messages %}{{ m.content }}\n{% endfor %}', { endIds: [], stops: [] }],
    [
      'a template that writes the last message alone',
      'Translate this:\n{{ messages[-1].content }}\nTranslation:',
      { endIds: [], stops: [] },
    ],
    ['a template that takes no such chat', "{{ raise_exception('no') }}", { endIds: [], stops: [] }],
  ])('%s', async (_, text, expected) => {
    expect(endOfTurn(await template(text), undefined, tokenizer())).toEqual(expected)
  })

  it('a reply to an answer that the template leaves out is refused', async () => {
    const reply = [{ role: 'user', content: 'And then?' }]
    const chatTemplate = '{{ messages[-1].content }}'
    await expect(encodeReply(model, reply, { chatTemplate })).rejects.toThrow(/leaves out earlier answers/)
    expect(model.tokenizer!.decode(await encodeReply(model, reply, { chatTemplate: TEMPLATE }))).toContain('And then?')
  })
})

describe('stop strings', () => {
  it('end the text before them, wherever tokens break', async () => {
    const { text, tokenIds } = await session.generate('The Constitution of the', { maxNewTokens: 20 })
    const stop = text.slice(7, 16)
    const pieces: string[] = []
    const stopped = await session.generate('The Constitution of the', {
      maxNewTokens: 20,
      stop: ['never', stop],
      on: { text: (piece) => pieces.push(piece) },
    })
    expect(stopped).toMatchObject({ finish: 'stop', text: text.slice(0, text.indexOf(stop)) })
    expect(pieces.join('')).toBe(stopped.text)
    expect(stopped.tokenIds).toEqual(tokenIds.slice(0, stopped.tokens))
    expect(stopped.tokens).toBeLessThan(20)
  })

  it('what only looks like the beginning of one is given after all', () => {
    const characters = { push: (id: number) => String.fromCharCode(id), end: () => '' }
    const rowOf = (stops: string[], text: string) => {
      const row = new TextRow(
        { endIds: new Set([0]), stops, minTokens: 0, maxTokens: 100, atMost: 'max-new-tokens' },
        characters,
      )
      const pieces = [...text].map((letter) => row.push(letter.charCodeAt(0)))
      return { row, pieces }
    }
    const { row, pieces } = rowOf(['abc', 'bd'], 'xababdy')
    expect(pieces.slice(0, 6)).toEqual(['x', '', '', 'ab', '', 'a'])
    expect(row).toMatchObject({ finish: 'stop', text: 'xaba' })
    const ended = rowOf(['abc'], 'xab\0')
    expect(ended.pieces).toEqual(['x', '', '', 'ab'])
    expect(ended.row).toMatchObject({ finish: 'eos', text: 'xab' })
  })
})

it('ends at every eos of generation_config.json', async () => {
  const [first] = await session.generate(['The Constitution'], { maxNewTokens: 8 })
  const ending = { ...model, eosTokenIds: [1, 2, first.tokenIds[4]] }
  const opened = await ModelSession.open(ending)
  expect(await opened.generate('The Constitution')).toMatchObject({
    finish: 'eos',
    tokens: first.tokenIds.indexOf(first.tokenIds[4]),
  })
  await opened.dispose()
})

it('draws as generation_config.json says where nothing is said', async () => {
  const sampled = { ...model, generationConfig: { do_sample: true, temperature: 0.8, top_k: 30 } }
  const opened = await ModelSession.open(sampled)
  const plain = await opened.generate('The people', { seed: 4, maxNewTokens: 8 })
  const said = await session.generate('The people', { seed: 4, maxNewTokens: 8, temperature: 0.8, topK: 30 })
  expect(plain.tokenIds).toEqual(said.tokenIds)
  await opened.dispose()
})
