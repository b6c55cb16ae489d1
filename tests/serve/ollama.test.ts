// biome-ignore-all lint/suspicious/noExplicitAny: answers and requests are JSON of any form

// Ollama's form of chats, texts and vectors, by requests.

import { createRequire } from 'node:module'
import { loadModel, type Model } from 'lowrank'
import { createHandler, type Handler, type HandlerOptions } from 'lowrank/server'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { AnswerReader, callFormNamed, functionsOf } from '../../src/api/parts/entry.js'
import { OLLAMA_CHAT } from '../../src/serve/forms/ollama.js'
import { enginesHere } from '../engines-here.js'
import { goldenPath } from '../golden.js'

const require = createRequire(import.meta.url)
const isInstalled = (name: string) => {
  try {
    require.resolve(name)
    return true
  } catch {
    return false
  }
}

/** Shows what reaches it, in few tokens. */
const TEMPLATE =
  '{% if enable_thinking %}THINK{% endif %}{{ reasoning_effort or "" }}{% for t in tools or [] %}{{ t.function.name }} {% endfor %}{% for m in messages %}{{ m.role }}: {{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments }}{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}'
const MESSAGES = [{ role: 'user', content: 'Who?' }]
const FEW = { num_predict: 8, temperature: 0 }
const TOOL = {
  type: 'function',
  function: {
    name: 'tide',
    parameters: { type: 'object', properties: { at: { enum: ['noon', 'night'] } }, required: ['at'] },
    strict: true,
  },
}
let model: Model
let handler: Handler

beforeAll(enginesHere)
beforeAll(async () => {
  model = await loadModel('models/union-3m')
  handler = await open({ adapters: { sea: goldenPath('peft', 'f32') } })
})
afterAll(async () => {
  await handler.close()
  await model.close()
})

const open = (options: Partial<HandlerOptions> = {}) =>
  createHandler({ model, servedModelName: 'base', chatTemplate: TEMPLATE, on: {}, ...options })

async function send(path: string, body?: object, { own = handler, method = 'POST', headers = {} } = {}) {
  const init = body === undefined ? {} : { method, body: JSON.stringify(body) }
  const response = await own(new Request(`http://localhost${path}`, { headers, ...init }))
  const text = await response.text()
  const type = response.headers.get('content-type')
  const lines = type === 'application/x-ndjson' ? text.trimEnd().split('\n') : undefined
  return { status: response.status, type, body: lines ? lines.map((line) => JSON.parse(line)) : JSON.parse(text) } as {
    status: number
    type: string
    body: any
  }
}

const written = (maxNewTokens = 8, messages: object[] = MESSAGES, adapter: string | null = null) =>
  handler.session.generate(messages as never, { adapter, chatTemplate: TEMPLATE, maxNewTokens, temperature: 0 })

describe('chats', () => {
  it('are lines by default, and one object without a stream', async () => {
    const { text, tokens, promptTokens } = await written()
    const { type, body: lines } = await send('/api/chat', { model: 'base', messages: MESSAGES, options: FEW })
    expect(type).toBe('application/x-ndjson')
    expect(lines.map(({ message }: any) => message.content).join('')).toBe(text)
    const counts = { prompt_eval_count: promptTokens, eval_count: tokens }
    expect(lines.at(-1)).toMatchObject({ model: 'base', done: true, done_reason: 'length', ...counts })
    expect(lines.slice(0, -1).every(({ done }: any) => done === false)).toBe(true)
    const whole = await send('/api/chat', { model: 'base', messages: MESSAGES, options: FEW, stream: false })
    expect(whole.type).toContain('application/json')
    expect(whole.body).toMatchObject({ message: { role: 'assistant', content: text }, done: true, ...counts })
    for (const name of ['total_duration', 'prompt_eval_duration', 'eval_duration'])
      expect(whole.body[name]).toBeGreaterThan(0)
  })

  it.each(['sea', 'sea:latest'])('choose an adapter as %s', async (name) => {
    const { text } = await written(8, MESSAGES, 'sea')
    const { body } = await send('/api/chat', { model: name, messages: MESSAGES, options: FEW, stream: false })
    expect([body.model, body.message.content]).toEqual(['sea', text])
  })

  it('take the options of Ollama, and refuse others by their names', async () => {
    const asked = { messages: MESSAGES, stream: false }
    const more = { ...FEW, seed: 1, top_k: 20, repeat_penalty: 1.1, num_ctx: 64, mirostat: 0, stop: ['zzz'] }
    expect((await send('/api/chat', { ...asked, options: more, keep_alive: '5m' })).status).toBe(200)
    const stop = (await written()).text.slice(3, 6)
    const { body } = await send('/api/chat', { ...asked, options: { ...FEW, stop: [stop] } })
    expect([body.done_reason, body.message.content.includes(stop)]).toEqual(['stop', false])
    const all = await send('/api/chat', { ...asked, options: { num_predict: -1, temperature: 0, stop: [stop] } })
    expect(all.body.message.content).toBe(body.message.content)
    for (const [options, named] of [
      [{ temprature: 1 }, 'options.temprature'],
      [{ top_p: 3 }, 'options.top_p'],
    ] as const) {
      const refused = await send('/api/chat', { ...asked, options })
      expect(refused).toMatchObject({ status: 400, body: { error: expect.stringContaining(named) } })
    }
  })

  it.each([
    [{ think: true }, { enable_thinking: true }],
    [{ think: 'high' }, { enable_thinking: true, reasoning_effort: 'high' }],
    [{ think: false }, {}],
  ])('with %j set variables of the template', async (more, chatTemplateArgs) => {
    const { length } = await handler.session.encode(MESSAGES, { chatTemplate: TEMPLATE, chatTemplateArgs })
    const { body } = await send('/api/chat', { messages: MESSAGES, options: FEW, stream: false, ...more })
    expect(body.prompt_eval_count).toBe(length)
  })

  it('lose their earliest messages if they are too long, unless truncate is false', async () => {
    const early = Array.from({ length: 40 }, (_, i) => ({
      role: i % 2 ? 'assistant' : 'user',
      content: 'a long story',
    }))
    const asked = { messages: [...early, ...MESSAGES], options: FEW, stream: false }
    expect((await send('/api/chat', asked)).status).toBe(200)
    const refused = await send('/api/chat', { ...asked, truncate: false })
    expect(refused).toMatchObject({ status: 400, body: { error: expect.stringContaining('maximum context length') } })
  })

  it('read calls of tools, whose arguments are objects', async () => {
    const calls = [{ function: { name: 'tide', arguments: { at: 'noon' } } }]
    const told = [...MESSAGES, { role: 'assistant', content: '', tool_calls: calls }, { role: 'tool', content: '3 m' }]
    const { text } = await written(8, [
      ...MESSAGES,
      {
        role: 'assistant',
        content: '',
        tool_calls: [{ type: 'function', function: { name: 'tide', arguments: '{"at":"noon"}' } }],
      },
      { role: 'tool', content: '3 m' },
    ])
    const { body } = await send('/api/chat', { messages: told, options: FEW, stream: false })
    expect(body.message.content).toBe(text)
  })

  it('are forced to call by tool_choice, which Ollama does not know', async () => {
    if (!isInstalled('@mlc-ai/web-xgrammar')) return
    const asked = { messages: MESSAGES, tools: [TOOL], tool_choice: 'required', options: { temperature: 0 } }
    for (const stream of [false, true]) {
      const { body } = await send('/api/chat', { ...asked, stream })
      const [called] = [body].flat().flatMap(({ message }: any) => message.tool_calls ?? [])
      expect([called.function.name, ['noon', 'night'].includes(called.function.arguments.at)]).toEqual(['tide', true])
    }
  })

  it('send each call as a whole, between words', () => {
    const call = (at: string) => `<tool_call>\n{"name": "tide", "arguments": {"at": "${at}"}}\n</tool_call>`
    const text = `I look. ${call('noon')}\n${call('night')}`
    const reader = new AnswerReader(callFormNamed('hermes'), functionsOf([TOOL]))
    const lines: any[] = []
    const asked = { fields: {}, model: 'base', readers: [reader], send: (line: object) => lines.push(line) }
    const writer = OLLAMA_CHAT.write({} as never, asked as never)
    for (const piece of text) writer.add(0, reader.read(piece), [])
    writer.add(0, reader.end(text), [])
    const result = { finish: 'eos' } as never
    writer.end(0, result)
    const whole: any = writer.body([result], { promptTokens: 1, cachedTokens: 0, newTokens: 1 })
    const called = (all: any[]) => all.map(({ function: { index, name, arguments: given } }) => [index, name, given])
    const calls = [
      [0, 'tide', { at: 'noon' }],
      [1, 'tide', { at: 'night' }],
    ]
    expect(called(lines.flatMap(({ message }) => message.tool_calls ?? []))).toEqual(calls)
    expect(called(whole.message.tool_calls)).toEqual(calls)
    const said = lines.map(({ message }) => message.content).join('')
    expect([said.trim(), whole.message.content, whole.done_reason]).toEqual(['I look.', said, 'stop'])
  })

  it('fit a schema', async () => {
    if (!isInstalled('@mlc-ai/web-xgrammar')) return
    const schema = { type: 'object', properties: { at: { enum: ['noon', 'night'] } }, required: ['at'] }
    const asked = { messages: MESSAGES, stream: false, format: { ...schema, additionalProperties: false } }
    expect(['noon', 'night']).toContain(JSON.parse((await send('/api/chat', asked)).body.message.content).at)
    const lines = (await send('/api/chat', { ...asked, stream: true })).body
    expect(['noon', 'night']).toContain(JSON.parse(lines.map(({ message }: any) => message.content).join('')).at)
    const { body } = await send('/api/generate', {
      prompt: 'Who?',
      format: 'json',
      stream: false,
      options: { seed: 1 },
    })
    if (body.done_reason === 'stop') expect(JSON.parse(body.response)).toBeInstanceOf(Object)
  })

  it('without messages, and texts without a prompt, load the model', async () => {
    const { body } = await send('/api/chat', { model: 'sea', messages: [] })
    expect(body).toMatchObject({ message: { role: 'assistant', content: '' }, done: true, done_reason: 'load' })
    expect((await send('/api/generate', { model: 'sea' })).body).toMatchObject({ response: '', done_reason: 'load' })
    expect((await send('/api/generate', { model: 'none' })).status).toBe(404)
  })
})

it('texts go through the template, or stay raw', async () => {
  const system = { role: 'system', content: 'Be brief.' }
  const asked = { prompt: 'Who?', stream: false, options: FEW }
  const { text } = await written(8, [system, ...MESSAGES])
  expect((await send('/api/generate', { ...asked, system: system.content })).body.response).toBe(text)
  const raw = await handler.session.generate('Who?', { maxNewTokens: 8, temperature: 0 })
  expect((await send('/api/generate', { ...asked, raw: true })).body.response).toBe(raw.text)
  const lines = (await send('/api/generate', { ...asked, raw: true, stream: true })).body
  expect(lines.map(({ response }: any) => response).join('')).toBe(raw.text)
  expect((await send('/api/generate', { ...asked, context: [1, 2] })).status).toBe(400)
})

it('models are listed, shown and pulled, and nothing is made or removed', async () => {
  const names = ({ body }: { body: any }) => body.models.map(({ name }: any) => name)
  expect(names(await send('/api/tags'))).toEqual(['base:latest', 'sea:latest'])
  expect(names(await send('/api/ps'))).toEqual(['base:latest', 'sea:latest'])
  const shown = (await send('/api/show', { model: 'sea:latest' })).body
  expect(shown).toMatchObject({ capabilities: ['completion', 'tools'], model_info: { 'llama.context_length': 256 } })
  expect((await send('/api/version')).body.version).toMatch(/^\d+\.\d+\.\d+$/)
  const pulled = await send('/api/pull', { model: 'sea' })
  expect([pulled.type, pulled.body.at(-1)]).toEqual(['application/x-ndjson', { status: 'success' }])
  expect((await send('/api/pull', { name: 'sea', stream: false })).body).toEqual({ status: 'success' })
  for (const [path, body, method] of [
    ['/api/pull', { model: 'none' }],
    ['/api/show', { model: 'none' }],
    ['/api/create', { model: 'new', from: 'base' }],
    ['/api/copy', { source: 'base', destination: 'new' }],
    ['/api/delete', { model: 'sea' }, 'DELETE'],
  ] as const) {
    const { status, body: answer } = await send(path, body, { method: method ?? 'POST' })
    expect([path, status, answer]).toEqual([path, 404, { error: expect.any(String) }])
  }
})

it('vectors are those of the session', async () => {
  const encoder = await loadModel(goldenPath('text-classification', 'encoder'))
  const own = await createHandler({ model: encoder, servedModelName: 'encoder', on: {} })
  const [first, second] = await own.session.embed(['a good day', 'a grim night'])
  const several = await send('/api/embed', { model: 'encoder', input: ['a good day', 'a grim night'] }, { own })
  expect(several.body.embeddings).toEqual([[...first], [...second]])
  expect(several.body.prompt_eval_count).toBeGreaterThan(0)
  const one = await send('/api/embeddings', { model: 'encoder:latest', prompt: 'a good day' }, { own })
  expect(one.body).toEqual({ embedding: [...first] })
  expect((await send('/api/show', { model: 'encoder' }, { own })).body.capabilities).toEqual(['embedding'])
  await own.close()
  await encoder.close()
})

it('keys, hosts and origins count as for other routes', async () => {
  const own = await open({ apiKeys: ['key'], hosts: ['localhost'] })
  const asked = { messages: MESSAGES, options: FEW, stream: false }
  expect(await send('/api/chat', asked, { own })).toMatchObject({ status: 401, body: { error: expect.any(String) } })
  expect((await send('/api/tags', undefined, { own })).status).toBe(401)
  expect((await send('/api/chat', asked, { own, headers: { authorization: 'Bearer key' } })).status).toBe(200)
  const strange = { authorization: 'Bearer key', origin: 'http://evil.example' }
  expect((await send('/api/chat', asked, { own, headers: strange })).status).toBe(403)
  const other = { authorization: 'Bearer key', host: 'evil.example' }
  expect((await send('/api/chat', asked, { own, headers: other })).status).toBe(403)
  await own.close()
})

it('GET and HEAD / tell clients that the server is there, and browsers get the page', async () => {
  const own = await open({ page: true })
  const ask = (method: string, accept = '*/*') => own(new Request('http://localhost/', { method, headers: { accept } }))
  expect(await (await ask('GET')).text()).toBe('Ollama is running')
  const head = await ask('HEAD')
  expect([head.status, await head.text()]).toEqual([200, ''])
  expect(await (await ask('GET', 'text/html,*/*')).text()).toContain('<!doctype html>')
  const tags = await own(new Request('http://localhost/api/tags', { method: 'HEAD' }))
  expect([tags.status, await tags.text()]).toEqual([200, ''])
  await own.close()
})
