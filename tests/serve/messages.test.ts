// biome-ignore-all lint/suspicious/noExplicitAny: answers and requests are JSON of any form

// The routes for Anthropic's messages, tokens, and scores of pairs.

import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { loadModel, type Model } from 'lowrank'
import { createHandler, type Handler } from 'lowrank/server'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { ModelProtoSchema, NodeProtoSchema, TensorProtoSchema } from '../../src/onnx/format/gen/onnx_pb.js'
import { create, fromBinary, toBinary } from '../../src/onnx/format/protobuf.js'
import { enginesHere } from '../engines-here.js'
import { goldenPath } from '../golden.js'

const isInstalled = (name: string) => {
  try {
    createRequire(import.meta.url).resolve(name)
    return true
  } catch {
    return false
  }
}

const scratch = mkdtempSync(join(tmpdir(), 'lowrank-messages-'))
const TEMPLATE =
  '{% for t in tools or [] %}{{ t.function.name }} {% endfor %}{% for m in messages %}{{ m.role }}: {{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}'
let model: Model
let handler: Handler

beforeAll(enginesHere)
beforeAll(async () => {
  cpSync('models/union-3m', scratch, { recursive: true })
  writeFileSync(join(scratch, 'chat_template.jinja'), TEMPLATE)
  model = await loadModel(scratch)
  handler = await createHandler({ model, servedModelName: 'base', on: {}, apiKeys: ['secret'] })
})
afterAll(async () => {
  await handler.close()
  await model.close()
  rmSync(scratch, { recursive: true })
})

type Sent = { status: number; body: any }

async function send(
  path: string,
  body?: object,
  headers: Record<string, string> = { 'x-api-key': 'secret' },
): Promise<Sent> {
  const all = { 'content-type': 'application/json', 'anthropic-version': '2023-06-01', ...headers }
  const init = body === undefined ? {} : { method: 'POST', body: JSON.stringify(body) }
  const response = await handler(new Request(`http://localhost${path}`, { headers: all, ...init }))
  const text = await response.text()
  if (response.headers.get('content-type') !== 'text/event-stream')
    return { status: response.status, body: JSON.parse(text) }
  const events = text.split('\n\n').filter((event) => event.startsWith('event: '))
  return {
    status: response.status,
    body: events.map((event) => {
      const [, name, data] = /^event: (.*)\ndata: (.*)$/.exec(event)!
      const parsed = JSON.parse(data)
      expect(parsed.type).toBe(name)
      return parsed
    }),
  }
}

const ASKED = { model: 'base', max_tokens: 12, temperature: 0, messages: [{ role: 'user', content: 'Who?' }] }

describe('messages', () => {
  it('are those of OpenAI’s route, whole and as events', async () => {
    const { status, body } = await send('/v1/messages', { ...ASKED, system: [{ type: 'text', text: 'Be brief.' }] })
    expect([status, body.type, body.role, body.stop_reason]).toEqual([200, 'message', 'assistant', 'max_tokens'])
    const messages = [{ role: 'system', content: 'Be brief.' }, ...ASKED.messages]
    const chat = await send('/v1/chat/completions', { model: 'base', max_tokens: 12, temperature: 0, messages })
    expect(body.content).toEqual([{ type: 'text', text: chat.body.choices[0].message.content }])
    const { usage } = chat.body
    expect(body.usage.input_tokens + body.usage.cache_read_input_tokens).toBe(usage.prompt_tokens)
    const events = (await send('/v1/messages', { ...ASKED, stream: true })).body
    const types = events.map(({ type }: any) => type)
    expect([types[0], types[1], ...types.slice(-3)]).toEqual([
      ...['message_start', 'content_block_start', 'content_block_stop', 'message_delta', 'message_stop'],
    ])
    const whole = (await send('/v1/messages', ASKED)).body
    expect(events.map(({ delta }: any) => delta?.text ?? '').join('')).toBe(whole.content[0].text)
  })

  it('end at a sequence, which is named', async () => {
    const { content } = (await send('/v1/messages', ASKED)).body
    const stop = content[0].text.slice(3, 6)
    const { body } = await send('/v1/messages', { ...ASKED, stop_sequences: ['zzz', stop] })
    expect([body.stop_reason, body.stop_sequence]).toEqual(['stop_sequence', stop])
    expect(body.content[0]?.text ?? '').toBe(content[0].text.slice(0, content[0].text.indexOf(stop)))
  })

  it('count tokens, and have Anthropic’s errors and models', async () => {
    const { messages, model: named } = ASKED
    const counted = await send('/v1/messages/count_tokens', { model: named, messages })
    const { usage } = (await send('/v1/messages', ASKED)).body
    expect(counted.body).toEqual({ input_tokens: usage.input_tokens + usage.cache_read_input_tokens })
    const errors: [object, Record<string, string>, number, string][] = [
      [ASKED, {}, 401, 'authentication_error'],
      [{ ...ASKED, model: 'none' }, { 'x-api-key': 'secret' }, 404, 'not_found_error'],
      [{ messages }, { 'x-api-key': 'secret' }, 400, 'invalid_request_error'],
      [
        { ...ASKED, messages: [{ role: 'user', content: [{ type: 'document' }] }] },
        { 'x-api-key': 'secret' },
        400,
        'invalid_request_error',
      ],
    ]
    for (const [body, headers, status, type] of errors) {
      const sent = await send('/v1/messages', body, headers)
      expect([sent.status, sent.body]).toEqual([
        status,
        { type: 'error', error: { type, message: expect.any(String) } },
      ])
    }
    const models = (await send('/v1/models')).body
    expect(models).toMatchObject({ data: [{ type: 'model', id: 'base', display_name: 'base' }], has_more: false })
    expect((await send('/v1/models/base')).body).toMatchObject({ type: 'model', id: 'base' })
  })

  it.skipIf(!isInstalled('@mlc-ai/web-xgrammar'))('call tools, and read their results', async () => {
    const at = { type: 'object', properties: { at: { enum: ['noon', 'night'] } }, required: ['at'] }
    const tools = [{ name: 'tide', description: 'How high the sea is.', input_schema: at }]
    const asked = { ...ASKED, max_tokens: 120, tools, tool_choice: { type: 'any' } }
    const { body } = await send('/v1/messages', { ...asked, tool_choice: { type: 'tool', name: 'tide' } })
    expect(body).toMatchObject({ stop_reason: 'tool_use', content: [{ type: 'tool_use', name: 'tide' }] })
    expect(['noon', 'night']).toContain(body.content[0].input.at)
    const events = (await send('/v1/messages', { ...asked, tool_choice: { type: 'tool', name: 'tide' }, stream: true }))
      .body
    const json = events.map(({ delta }: any) => delta?.partial_json ?? '').join('')
    expect(JSON.parse(json)).toEqual(body.content[0].input)
    const result = { type: 'tool_result', tool_use_id: body.content[0].id, content: [{ type: 'text', text: '3 m' }] }
    const messages = [
      ...asked.messages,
      { role: 'assistant', content: body.content },
      { role: 'user', content: [result] },
    ]
    expect((await send('/v1/messages', { ...ASKED, tools, messages })).status).toBe(200)
  })
})

it('tokens and texts are those of the tokenizer', async () => {
  const prompt = 'And the people'
  const { body } = await send('/tokenize', { prompt, return_token_strs: true })
  const tokens = model.tokenizer!.encode(prompt)
  expect(body).toMatchObject({ count: tokens.length, tokens, max_model_len: 256 })
  expect(body.token_strs.join('')).toContain('people')
  expect(
    (await send('/detokenize', { tokens: model.tokenizer!.encode(prompt, { specialTokens: false }) })).body,
  ).toEqual({ prompt })
  const chat = await send('/tokenize', { messages: ASKED.messages })
  const counted = await send('/v1/messages/count_tokens', { messages: ASKED.messages })
  expect(chat.body.count).toBe(counted.body.input_tokens)
  expect((await send('/tokenize', {})).status).toBe(400)
})

it('documents are ranked, and pairs scored, by the label of a model that has one', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'lowrank-one-label-'))
  const classifier = goldenPath('text-classification', 'classifier')
  cpSync(classifier, folder, { recursive: true })
  const config = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8'))
  writeFileSync(
    join(folder, 'config.json'),
    JSON.stringify({ ...config, id2label: { 0: 'fits' }, label2id: { fits: 0 } }),
  )
  const file = join(folder, 'onnx', 'model.onnx')
  const proto = fromBinary(ModelProtoSchema, readFileSync(file))
  const { graph } = proto
  const head = graph!.node.find(({ output }) => output.includes('logits'))!
  head.output = head.output.map((name) => (name === 'logits' ? 'every_logit' : name))
  const zero = { name: 'first', dataType: 7, dims: [1n], int64Data: [0n] }
  graph!.initializer.push(create(TensorProtoSchema, zero))
  const axis = { name: 'axis', type: 2, i: 1n }
  graph!.node.push(
    create(NodeProtoSchema, {
      opType: 'Gather',
      input: ['every_logit', 'first'],
      output: ['logits'],
      attribute: [axis],
    }),
  )
  writeFileSync(file, toBinary(ModelProtoSchema, proto))
  const [one, all] = await Promise.all([folder, classifier].map((path) => createHandler({ model: path })))
  const ask = async (own: Handler, path: string, body: object) => {
    const headers = { 'content-type': 'application/json' }
    return own(new Request(`http://localhost${path}`, { method: 'POST', headers, body: JSON.stringify(body) }))
  }
  const documents = ['a grim night', 'a good day', 'the sea']
  const pairs = documents.map((textPair) => ({ text: 'a good day', textPair }))
  const wanted = (await all.session.classify(pairs)).map(({ logits }) => 1 / (1 + Math.exp(-logits[0])))
  const { data } = await (await ask(one, '/v1/score', { text_1: 'a good day', text_2: documents })).json()
  data.forEach(({ score }: { score: number }, i: number) => void expect(score).toBeCloseTo(wanted[i], 5))
  const { results } = await (await ask(one, '/v1/rerank', { query: 'a good day', documents })).json()
  const order = [0, 1, 2].sort((a, b) => wanted[b] - wanted[a])
  expect(results.map(({ index }: { index: number }) => index)).toEqual(order)
  // Cohere's clients send documents as objects too, and read the same list without texts.
  const objects = { query: 'a good day', documents: documents.map((text) => ({ text })), top_n: 2 }
  const second = await (await ask(one, '/v2/rerank', objects)).json()
  expect(second.results).toEqual(
    results.slice(0, 2).map(({ index, relevance_score }: Record<string, number>) => ({ index, relevance_score })),
  )
  expect(second.meta).toMatchObject({ api_version: { version: '2' }, billed_units: { search_units: 1 } })
  expect((await ask(one, '/v2/rerank', { ...objects, documents: [{ body: 'x' }] })).status).toBe(400)
  const labelled = await (await ask(all, '/classify', { input: documents })).json()
  const labels = await all.session.classify(documents)
  labels.forEach(({ label }, index) => {
    expect(labelled.data[index]).toMatchObject({ index, label, num_classes: Object.keys(config.id2label).length })
    expect(labelled.data[index].probs.reduce((sum: number, value: number) => sum + value, 0)).toBeCloseTo(1, 5)
  })
  expect((await ask(all, '/v1/score', { text_1: 'a', text_2: documents })).status).toBe(400)
  await Promise.all([one.close(), all.close()])
  rmSync(folder, { recursive: true })
})

it.each([undefined, { 0: 'a', 1: 'b', 2: 'c' }])(
  'probabilities come in the order of logits: labels %j',
  async (id2label) => {
    const source = goldenPath('text-classification', 'encoder')
    const folder = mkdtempSync(join(scratch, 'labels-'))
    cpSync(source, folder, { recursive: true })
    const config = JSON.parse(readFileSync(join(source, 'config.json'), 'utf8'))
    writeFileSync(join(folder, 'config.json'), JSON.stringify({ ...config, id2label }))
    const { rows, logits } = JSON.parse(readFileSync(join(source, 'golden', 'golden.json'), 'utf8'))
    const own = await createHandler({ model: folder, adapters: { own: join(source, 'golden', 'adapter-init') } })
    const body = JSON.stringify({ model: 'own', input: rows.slice(0, 2).map(({ text }: { text: string }) => text) })
    const headers = { 'content-type': 'application/json' }
    const { data } = await (
      await own(new Request('http://localhost/classify', { method: 'POST', headers, body }))
    ).json()
    data.forEach(({ probs }: { probs: number[] }, i: number) => {
      const powers = (logits[i] as number[]).map(Math.exp)
      const sum = powers.reduce((all, power) => all + power)
      powers.forEach((power, at) => void expect(probs[at]).toBeCloseTo(power / sum, 4))
    })
    await own.close()
  },
)

it.each(['encoder', 'classifier'])('probabilities are in the order of the labels: a head on the %s', async (name) => {
  const golden = goldenPath('text-classification', name, 'golden')
  const { rows, labels, logits } = JSON.parse(readFileSync(join(golden, 'golden.json'), 'utf8'))
  const adapters = { own: join(golden, 'adapter-init') }
  const own = await createHandler({ model: goldenPath('text-classification', name), adapters })
  const input = rows.slice(0, 2).map(({ text }: { text: string }) => text)
  const headers = { 'content-type': 'application/json' }
  const body = JSON.stringify({ model: 'own', input })
  const { data } = await (await own(new Request('http://localhost/classify', { method: 'POST', headers, body }))).json()
  data.forEach(({ label, probs }: { label: string; probs: number[] }, i: number) => {
    const powers = (logits[i] as number[]).map(Math.exp)
    const sum = powers.reduce((all, power) => all + power)
    powers.forEach((power, at) => void expect(probs[at]).toBeCloseTo(power / sum, 4))
    expect(label).toBe(labels[probs.indexOf(Math.max(...probs))])
  })
  await own.close()
})

it('documents are ranked, and pairs scored, by vectors', async () => {
  const encoder = await loadModel(goldenPath('text-classification', 'encoder'))
  const ranked = await createHandler({ model: encoder, on: {} })
  const ask = async (path: string, body: object) => {
    const headers = { 'content-type': 'application/json' }
    const sent = await ranked(
      new Request(`http://localhost${path}`, { method: 'POST', headers, body: JSON.stringify(body) }),
    )
    return sent.json()
  }
  const documents = ['a grim night', 'a good day', 'the sea']
  const { results } = await ask('/v1/rerank', { query: 'a good day', documents, top_n: 2 })
  expect(results).toHaveLength(2)
  expect(results[0]).toMatchObject({ index: 1, document: { text: 'a good day' } })
  expect(results[0].relevance_score).toBeCloseTo(1, 4)
  const [query, ...vectors] = await ranked.session.embed(['a good day', ...documents])
  const { data } = await ask('/v1/score', { text_1: 'a good day', text_2: documents })
  const cosines = vectors.map((vector) => vector.reduce((sum, value, i) => sum + value * query[i], 0))
  data.forEach(({ score }: { score: number }, i: number) => void expect(score).toBeCloseTo(cosines[i], 4))
  expect((await ask('/v1/score', { text_1: ['a', 'b'], text_2: documents })).error.param).toBe('text_1')
  await ranked.close()
  await encoder.close()
})
