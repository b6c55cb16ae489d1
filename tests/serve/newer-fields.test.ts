// biome-ignore-all lint/suspicious/noExplicitAny: answers and requests are JSON of any form

// Fields that OpenAI's and Anthropic's clients send by default since 2025, each with its effect on the bundled model.

import { loadModel, type Model } from 'lowrank'
import { createHandler, type Handler, type HandlerOptions } from 'lowrank/server'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { KeptResponses } from '../../src/serve/kept-responses.js'
import { enginesHere } from '../engines-here.js'

/** Shows what reaches the template. */
const TEMPLATE =
  '{{ verbosity or "" }}{{ reasoning_effort or "" }}{% if enable_thinking %}THINK{% endif %}{% for t in tools or [] %}{{ t.function.name }} {% endfor %}{% for m in messages %}{{ m.role }}: {{ m.reasoning_content or "" }}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}'
let model: Model
let handler: Handler

beforeAll(enginesHere)
beforeAll(async () => {
  model = await loadModel('models/union-3m')
  handler = await open({ apiKeys: ['a', 'b'] })
})
afterAll(async () => {
  await handler.close()
  await model.close()
})

const open = (options: Partial<HandlerOptions> = {}) =>
  createHandler({ model, servedModelName: 'base', chatTemplate: TEMPLATE, on: {}, ...options })

type Sent = { status: number; schema: string | null; body: any }

async function send(path: string, body?: object, { own = handler, key = 'a', method = 'POST' } = {}): Promise<Sent> {
  const headers = { 'content-type': 'application/json', authorization: `Bearer ${key}` }
  const init = body === undefined ? {} : { body: JSON.stringify(body) }
  const response = await own(new Request(`http://localhost${path}`, { headers, method, ...init }))
  const text = await response.text()
  const schema = response.headers.get('x-lowrank-schema')
  if (response.headers.get('content-type') !== 'text/event-stream')
    return { status: response.status, schema, body: JSON.parse(text) }
  const lines = [...text.matchAll(/^data: (\{.*)$/gm)].map(([, line]) => JSON.parse(line))
  return { status: response.status, schema, body: lines }
}

async function ok(path: string, body: object): Promise<any> {
  const { status, body: answer } = await send(path, body)
  expect([status, answer.error ?? null]).toEqual([200, null])
  return answer
}

const CHAT = { messages: [{ role: 'user', content: 'Who?' }], max_tokens: 4, temperature: 0 }
const RESPONSE = { input: 'Who?', max_output_tokens: 4, temperature: 0 }
const MESSAGE = { model: 'base', messages: CHAT.messages, max_tokens: 4, temperature: 0 }
/** How many tokens a request has. */
const lengthOf = ({ usage }: any): number =>
  usage.prompt_tokens ?? usage.input_tokens + (usage.cache_read_input_tokens ?? 0)

describe('fields without an effect here', () => {
  it.each([
    ['/v1/chat/completions', CHAT],
    ['/v1/responses', RESPONSE],
  ])('are accepted on %s', async (path, asked) => {
    const plain = await ok(path, asked)
    const more = { prompt_cache_retention: '24h', service_tier: 'flex', prompt_cache_key: 'x', safety_identifier: 'y' }
    const answer = await ok(path, { ...asked, ...more, ...('input' in asked && { max_tool_calls: 3 }) })
    expect(answer.service_tier).toBe('default')
    expect([answer.choices, answer.output_text]).toEqual([plain.choices, plain.output_text])
    expect(lengthOf(answer)).toBe(lengthOf(plain))
  })

  it('are those that only the maker of an answer could keep: others stay errors', async () => {
    const asked = { ...CHAT, web_search_options: {} }
    const { status, body } = await send('/v1/chat/completions', asked)
    expect([status, body.error.param]).toEqual([400, 'web_search_options'])
    const other = await send('/v1/responses', { ...RESPONSE, conversation: 'conv_1' })
    expect([other.status, other.body.error.param]).toEqual([400, 'conversation'])
  })

  it('may ask for more tokens than there is room for', async () => {
    const { choices } = await ok('/v1/chat/completions', { ...CHAT, max_tokens: 4096 })
    expect(choices).toHaveLength(1)
  })
})

it.each<[string, object, object, object]>([
  ['/v1/chat/completions', CHAT, { verbosity: 'low' }, { reasoning_effort: 'high' }],
  ['/v1/responses', RESPONSE, { text: { verbosity: 'low' } }, { reasoning: { effort: 'high' } }],
  [
    '/v1/messages',
    MESSAGE,
    { output_config: { effort: 'low' } },
    { thinking: { type: 'enabled', budget_tokens: 1024 } },
  ],
])('%s: %j with %j and %j, which the template reads', async (path, asked, first, second) => {
  const length = lengthOf(await ok(path, asked))
  for (const fields of [first, second])
    expect(lengthOf(await ok(path, { ...asked, ...fields }))).toBeGreaterThan(length)
})

describe('allowed_tools', () => {
  const tools = ['tide', 'moon'].map((name) => ({ type: 'function', function: { name } }))
  const [tide, moon] = tools
  const allowed = (...named: object[]) => ({
    type: 'allowed_tools',
    allowed_tools: { mode: 'auto', tools: named },
  })

  it('leave only these tools, in both forms', async () => {
    const only = await ok('/v1/chat/completions', { ...CHAT, tools: [moon] })
    const chosen = await ok('/v1/chat/completions', { ...CHAT, tools, tool_choice: allowed(moon) })
    expect(lengthOf(chosen)).toBe(lengthOf(only))
    expect(lengthOf(await ok('/v1/chat/completions', { ...CHAT, tools }))).toBeGreaterThan(lengthOf(only))
    const flat = tools.map(({ function: described }) => ({ type: 'function', ...described }))
    const tool_choice = { type: 'allowed_tools', mode: 'auto', tools: [flat[1]] }
    const response = await ok('/v1/responses', { ...RESPONSE, tools: flat, tool_choice })
    expect(response.usage.input_tokens).toBe(lengthOf(only))
  })

  it('must be among the tools', async () => {
    const asked = { ...CHAT, tools: [tide], tool_choice: allowed(moon) }
    const { status, body } = await send('/v1/chat/completions', asked)
    expect([status, body.error.param, body.error.message]).toEqual([
      400,
      'tool_choice',
      expect.stringMatching(/"moon"/),
    ])
  })
})

it('scores come with responses, as with chats', async () => {
  const chat = await ok('/v1/chat/completions', { ...CHAT, logprobs: true, top_logprobs: 2 })
  const { output } = await ok('/v1/responses', { ...RESPONSE, top_logprobs: 2 })
  expect(output[0].content[0].logprobs).toEqual(chat.choices[0].logprobs.content)
  const events = await ok('/v1/responses', {
    ...{ ...RESPONSE, top_logprobs: 2, include: ['message.output_text.logprobs'], stream: true },
  })
  const deltas = events.filter(({ type }: any) => type === 'response.output_text.delta')
  expect(deltas.flatMap(({ logprobs }: any) => logprobs)).toEqual(chat.choices[0].logprobs.content)
  expect((await ok('/v1/responses', RESPONSE)).output[0].content[0].logprobs).toEqual([])
})

describe('responses', () => {
  it('go on after an earlier one, by its id or by those of its items', async () => {
    const first = await ok('/v1/responses', { ...RESPONSE, instructions: 'Be brief.' })
    const question = { role: 'user', content: 'And?' }
    const whole = await ok('/v1/responses', {
      ...RESPONSE,
      input: [{ role: 'user', content: 'Who?' }, ...first.output, question],
    })
    const later = await ok('/v1/responses', { ...RESPONSE, input: [question], previous_response_id: first.id })
    expect([later.output[0].content, later.usage.input_tokens]).toEqual([
      whole.output[0].content,
      whole.usage.input_tokens,
    ])
    const reference = { type: 'item_reference', id: first.output[0].id }
    const reasoning = { type: 'reasoning', id: 'rs_1', summary: [] }
    const input = [{ role: 'user', content: 'Who?' }, reasoning, reference, question]
    expect((await ok('/v1/responses', { ...RESPONSE, input })).usage.input_tokens).toBe(whole.usage.input_tokens)
    const third = await ok('/v1/responses', { ...RESPONSE, input: 'Then?', previous_response_id: later.id })
    expect(third.usage.input_tokens).toBeGreaterThan(later.usage.input_tokens)
    const counted = await send('/v1/responses/input_tokens', { input: 'Then?', previous_response_id: later.id })
    expect(counted.body).toEqual({ object: 'response.input_tokens', input_tokens: third.usage.input_tokens })
  })

  it('are read and removed by the key that made them, and by no other', async () => {
    const made = await ok('/v1/responses', RESPONSE)
    const path = `/v1/responses/${made.id}`
    expect((await send(path, undefined, { method: 'GET' })).body).toEqual(made)
    for (const [at, method] of [
      [path, 'GET'],
      [path, 'DELETE'],
    ]) {
      expect((await send(at, undefined, { method, key: 'b' })).status).toBe(404)
    }
    const goOn = { ...RESPONSE, previous_response_id: made.id }
    const refused = await send('/v1/responses', goOn, { key: 'b' })
    expect([refused.status, refused.body.error.code]).toEqual([404, 'previous_response_not_found'])
    const stolen = { ...RESPONSE, input: [{ type: 'item_reference', id: made.output[0].id }] }
    expect((await send('/v1/responses', stolen, { key: 'b' })).status).toBe(404)
    expect((await send(path, undefined, { method: 'DELETE' })).body).toEqual({
      ...{ id: made.id, object: 'response', deleted: true },
    })
    expect((await send(path, undefined, { method: 'GET' })).status).toBe(404)
  })

  it('are not kept with store: false, and streams are kept', async () => {
    const { id, store } = await ok('/v1/responses', { ...RESPONSE, store: false })
    expect([store, (await send(`/v1/responses/${id}`, undefined, { method: 'GET' })).status]).toEqual([false, 404])
    const events = await ok('/v1/responses', { ...RESPONSE, stream: true })
    const { response } = events.at(-1)
    expect((await send(`/v1/responses/${response.id}`, undefined, { method: 'GET' })).body).toEqual(response)
  })

  it('are at most 1,000 of at most 64 MiB, and the oldest go', async () => {
    const kept = new KeptResponses()
    const caller = { name: 'default', key: 'a', isAdmin: false, priority: 0 }
    const keep = (id: string, size: number) =>
      kept.keep(caller, [{ id: `${id}-item`, content: 'x'.repeat(size) }], { id, output: [] })
    for (let i = 0; i < 1002; i++) keep(`r${i}`, 1)
    expect(() => kept.get('r1', caller)).toThrow(/no response r1/)
    expect(kept.get('r2', caller).id).toBe('r2')
    keep('large', 40 << 20)
    keep('larger', 30 << 20)
    expect(() => kept.get('large', caller)).toThrow()
    expect(() => kept.get('r1001', caller)).toThrow()
    expect(kept.item('larger-item', caller, 'input[0]').id).toBe('larger-item')
  })
})

describe('truncation', () => {
  const words = 'the sea and the people '.repeat(6)
  const turn = (i: number) => [
    { role: 'user', content: `question ${i} ${words}` },
    { role: 'assistant', content: `answer ${i} ${words}` },
  ]
  const early = Array.from({ length: 8 }, (_, i) => turn(i)).flat()

  it('leaves early turns out, but not the system’s words and the last question', async () => {
    const input = [{ role: 'system', content: 'Be brief.' }, ...early, { role: 'user', content: 'And now?' }]
    expect((await send('/v1/responses', { ...RESPONSE, input })).status).toBe(400)
    const { usage } = await ok('/v1/responses', { ...RESPONSE, input, truncation: 'auto' })
    const left = (from: number) => [input[0], ...early.slice(2 * from), input.at(-1)!]
    const lengths = []
    for (let from = 0; from <= 8; from++) {
      const { status, body } = await send('/v1/responses', { ...RESPONSE, input: left(from) })
      lengths.push(status === 200 ? body.usage.input_tokens : Number.POSITIVE_INFINITY)
    }
    // As many turns as leave room for the answer.
    expect(usage.input_tokens).toBe(lengths.find((length) => length <= 256 - 4))
  })

  it('never splits a call from its output', async () => {
    const calls = Array.from({ length: 8 }, (_, i) => [
      { type: 'function_call', call_id: `${i}`, name: 'f', arguments: '{}' },
      { type: 'function_call_output', call_id: `${i}`, output: `${i} ${words}` },
    ]).flat()
    const input = [
      { role: 'user', content: 'Who?' },
      ...calls.slice(0, 2),
      { role: 'user', content: 'And?' },
      ...calls.slice(2),
    ]
    const sent: any[] = []
    const own = await open()
    const generate = own.session.generate.bind(own.session) as any
    Object.assign(own.session, {
      generate(prompts: any, options: any) {
        sent.push(prompts[0])
        return generate(prompts, options)
      },
    })
    expect((await send('/v1/responses', { ...RESPONSE, input, truncation: 'auto' }, { own })).status).toBe(200)
    const [messages] = sent
    expect(messages[0]).toMatchObject({ role: 'user', content: 'And?' })
    expect(messages.length).toBeLessThan(14)
    for (const [i, { role, tool_call_id: id }] of messages.entries()) {
      if (role === 'tool') expect(messages[i - 1].tool_calls).toMatchObject([{ id }])
      if (role === 'assistant') expect(messages[i + 1].role).toBe('tool')
    }
    await own.close()
  })

  it('stays an error if the last question alone is too long', async () => {
    const input = [...early, { role: 'user', content: words.repeat(20) }]
    const { status, body } = await send('/v1/responses', { ...RESPONSE, input, truncation: 'auto' })
    expect([status, body.error.code]).toEqual([400, 'context_length_exceeded'])
  })
})

describe('Anthropic’s form', () => {
  it('goes on with the beginning of an answer', async () => {
    const start = { role: 'assistant', content: 'And the people' }
    const { content, usage } = await ok('/v1/messages', { ...MESSAGE, messages: [...MESSAGE.messages, start] })
    const rendered = 'user: Who?assistant:And the people'
    const prompt = model.tokenizer!.encode(rendered, { specialTokens: false })
    const { choices } = await ok('/v1/completions', { prompt, max_tokens: 4, temperature: 0 })
    expect(content[0].text).toBe(choices[0].text)
    expect(lengthOf({ usage })).toBe(prompt.length)
    const spaced = { ...start, content: 'And the ' }
    const { status, body } = await send('/v1/messages', { ...MESSAGE, messages: [...MESSAGE.messages, spaced] })
    expect([status, body.error.type]).toEqual([400, 'invalid_request_error'])
    expect(body.error.message).toMatch(/white space/)
  })

  it('reads thoughts of earlier turns, and caching that is asked for', async () => {
    const thought = { type: 'thinking', thinking: 'hm hm hm', signature: 'x' }
    const said = { type: 'text', text: 'Me.' }
    const ask = (content: object[]) => ({
      ...MESSAGE,
      ...{ messages: [...MESSAGE.messages, { role: 'assistant', content }, { role: 'user', content: 'And?' }] },
      cache_control: { type: 'ephemeral' },
    })
    const plain = lengthOf(await ok('/v1/messages', ask([said])))
    expect(lengthOf(await ok('/v1/messages', ask([{ type: 'redacted_thinking', data: 'x' }, said])))).toBe(plain)
    expect(lengthOf(await ok('/v1/messages', ask([thought, said])))).toBeGreaterThan(plain)
  })

  it('has temperatures of at most 1', async () => {
    const { status, body } = await send('/v1/messages', { ...MESSAGE, temperature: 1.5 })
    expect([status, body.error.message]).toEqual([400, expect.stringMatching(/temperature.*\[0, 1\]/)])
  })
})

describe('a schema that texts are not kept to', () => {
  const schema = {
    type: 'object',
    properties: { a: { type: 'boolean' } },
    required: ['a'],
    additionalProperties: false,
  }
  /** No text fits, and no grammar says so. */
  const never = { ...schema, not: {} }
  const asking = (of: object, strict?: boolean) => ({
    ...CHAT,
    max_tokens: 60,
    response_format: { type: 'json_schema', json_schema: { name: 'x', schema: of, ...(strict && { strict }) } },
  })
  const path = '/v1/chat/completions'

  it('is checked on the finished answer, which is drawn once more', async () => {
    const once = await send(path, asking(schema))
    expect([once.status, once.schema]).toEqual([200, null])
    const { status, schema: told, body } = await send(path, asking(never))
    expect([status, told]).toEqual([200, 'broken'])
    expect(JSON.parse(body.choices[0].message.content)).toHaveProperty('a')
    expect(body.usage.completion_tokens).toBeGreaterThan(once.body.usage.completion_tokens)
  })

  it('is told of in the last chunk of a stream, in all forms', async () => {
    const { body } = await send(path, { ...asking(never), stream: true })
    expect(body.at(-1).x_lowrank_schema).toBe('broken')
    const fine = await send(path, { ...asking(schema), stream: true })
    expect(JSON.stringify(fine.body)).not.toContain('x_lowrank_schema')
    const format = { type: 'json_schema', name: 'x', schema: never }
    const response = await send('/v1/responses', { ...RESPONSE, max_output_tokens: 60, text: { format } })
    expect([response.status, response.schema]).toEqual([200, 'broken'])
    const message = { ...MESSAGE, max_tokens: 60, output_config: { format: { type: 'json_schema', schema: never } } }
    expect((await send('/v1/messages', message)).schema).toBe('broken')
  })

  it('is an error with strict', async () => {
    expect((await send(path, asking(never, true))).status).toBe(400)
  })
})
