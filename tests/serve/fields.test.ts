// biome-ignore-all lint/suspicious/noExplicitAny: answers and requests are JSON of any form

// Fields of request bodies: each has its documented effect on the bundled model.

import { cpSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { loadModel, type Model } from 'lowrank'
import { createHandler, type Handler } from 'lowrank/server'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { enginesHere } from '../engines-here.js'

const isInstalled = (name: string) => {
  try {
    createRequire(import.meta.url).resolve(name)
    return true
  } catch {
    return false
  }
}

const scratch = mkdtempSync(join(tmpdir(), 'lowrank-fields-'))
const TEMPLATE =
  '{% for t in tools or [] %}{{ t.function.name }} {% endfor %}{{ reasoning_effort or "" }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}'
let model: Model
let handler: Handler

beforeAll(enginesHere)
beforeAll(async () => {
  cpSync('models/union-3m', scratch, { recursive: true })
  writeFileSync(join(scratch, 'chat_template.jinja'), TEMPLATE)
  model = await loadModel(scratch)
  handler = await createHandler({ model, servedModelName: 'base', on: {} })
})
afterAll(async () => {
  await handler.close()
  await model.close()
  rmSync(scratch, { recursive: true })
})

type Answer = { status: number; body: any }

async function post(path: string, body: object): Promise<Answer> {
  const headers = { 'content-type': 'application/json' }
  const response = await handler(
    new Request(`http://localhost${path}`, { method: 'POST', headers, body: JSON.stringify(body) }),
  )
  const text = await response.text()
  if (response.headers.get('content-type') !== 'text/event-stream')
    return { status: response.status, body: JSON.parse(text) }
  const lines = text.split('\n\n').filter((line) => /^(event: .*\n)?data: \{/.test(line))
  return { status: response.status, body: lines.map((line) => JSON.parse(line.replace(/^(event: .*\n)?data: /, ''))) }
}

const PROMPT = 'And the people'
const QUICK = { prompt: PROMPT, max_tokens: 24, temperature: 0 }
const complete = async (fields: object) => {
  const { status, body } = await post('/v1/completions', { ...QUICK, ...fields })
  expect([status, body.error]).toEqual([200, undefined])
  return body
}
const idsOf = (text: string) => model.tokenizer!.encode(text, { specialTokens: false })

describe('tokens', () => {
  it('that came before are penalized, and biased ones come or not', async () => {
    const plain = (await complete({})).choices[0].text
    const distinct = (text: string) => new Set(idsOf(text)).size
    for (const fields of [{ frequency_penalty: 2 }, { presence_penalty: 2 }, { repetition_penalty: 1.8 }]) {
      const { text } = (await complete(fields)).choices[0]
      expect(text).not.toBe(plain)
      expect(distinct(text)).toBeGreaterThanOrEqual(distinct(plain))
    }
    const [first] = idsOf(plain)
    expect((await complete({ logit_bias: { [first]: -100 }, max_tokens: 1 })).choices[0].text).not.toBe(
      plain.slice(0, 1),
    )
    const forced = await complete({ logit_bias: { [first]: 100 }, max_tokens: 3 })
    expect(idsOf(forced.choices[0].text)).toEqual([first, first, first])
  })

  it('end a text, or must not yet', async () => {
    const { text } = (await complete({})).choices[0]
    const ids = idsOf(text)
    const stopped = await complete({ stop_token_ids: [ids[3]] })
    const at = ids.indexOf(ids[3])
    expect([stopped.choices[0].finish_reason, stopped.usage.completion_tokens]).toEqual(['stop', at])
    const later = await complete({ stop_token_ids: [ids[3]], min_tokens: 10 })
    expect(later.usage.completion_tokens).toBeGreaterThanOrEqual(10)
    const stop = text.slice(2, 4)
    const ended = await complete({ stop, min_tokens: 12 })
    expect(ended.usage.completion_tokens).toBeGreaterThanOrEqual(12)
    const [eos] = model.eosTokenIds
    const bias = { logit_bias: { [eos]: 100 } }
    expect((await complete(bias)).usage.completion_tokens).toBe(0)
    expect((await complete({ ...bias, ignore_eos: true })).usage.completion_tokens).toBe(24)
    expect((await complete({ ...bias, min_tokens: 5 })).usage.completion_tokens).toBe(5)
  })

  it('carry their scores in the chunk that they come with', async () => {
    const chat = {
      messages: [{ role: 'user', content: 'Who?' }],
      max_tokens: 8,
      temperature: 0,
      logprobs: true,
      top_logprobs: 2,
    }
    const whole = (await post('/v1/chat/completions', chat)).body.choices[0]
    const chunks = (await post('/v1/chat/completions', { ...chat, stream: true })).body
    const scored = chunks.filter(({ choices: [choice] }: any) => choice.logprobs !== null)
    expect(scored.length).toBeGreaterThan(3)
    expect(scored.flatMap(({ choices: [choice] }: any) => choice.logprobs.content)).toEqual(whole.logprobs.content)
    const pieces = (await post('/v1/completions', { ...QUICK, logprobs: 1, stream: true })).body
    const tokens = pieces.flatMap(({ choices: [choice] }: any) => choice.logprobs?.tokens ?? [])
    expect(tokens).toEqual((await complete({ logprobs: 1 })).choices[0].logprobs.tokens)
    expect(pieces.filter(({ choices: [choice] }: any) => choice.logprobs !== null).length).toBeGreaterThan(3)
  })
})

it('several answers share a prompt, which is read once', async () => {
  const prompt = Array.from({ length: 40 }, (_, i) => `the sea ${i}`).join(' ')
  const { usage } = await complete({ prompt, n: 3, max_tokens: 2 })
  const { cachedTokens } = (await handler.session.generate([prompt, prompt], { maxNewTokens: 1 }))[1]
  expect(usage.prompt_tokens).toBeGreaterThan(100)
  expect(cachedTokens).toBe(usage.prompt_tokens - 1)
})

it('a prompt without room has the code that clients look for', async () => {
  const { status, body } = await post('/v1/completions', { ...QUICK, prompt: 'the sea and the '.repeat(100) })
  expect([status, body.error.code]).toEqual([400, 'context_length_exceeded'])
})

it('reasoning effort reaches the template, on both routes', async () => {
  const tokens = async (path: string, fields: object) => {
    const { usage } = (await post(path, { ...fields, max_tokens: undefined })).body
    return usage.prompt_tokens ?? usage.input_tokens
  }
  const messages = [{ role: 'user', content: 'a' }]
  const chat = { messages, max_completion_tokens: 1, metadata: { a: 'b' }, prompt_cache_key: 'x' }
  const path = '/v1/chat/completions'
  expect(await tokens(path, { ...chat, reasoning_effort: 'high' })).toBeGreaterThan(await tokens(path, chat))
  const response = { input: 'a', max_output_tokens: 1 }
  const effort = { reasoning: { effort: 'high' } }
  expect(await tokens('/v1/responses', { ...response, ...effort })).toBeGreaterThan(
    await tokens('/v1/responses', response),
  )
})

describe.skipIf(!isInstalled('@mlc-ai/web-xgrammar'))('calls', () => {
  const at = { type: 'object', properties: { at: { enum: ['noon', 'night'] } }, required: ['at'] }
  const tools = ['tide', 'moon'].map((name) => ({ type: 'function', function: { name, parameters: at } }))
  const chat = { messages: [{ role: 'user', content: 'Who?' }], tools, max_tokens: 60, seed: 3 }
  const path = '/v1/chat/completions'

  it.each<[string | object, { parallel_tool_calls?: boolean }]>([
    ['required', {}],
    [{ type: 'function', function: { name: 'moon' } }, {}],
    ['required', { parallel_tool_calls: false }],
  ])('are forced by tool_choice %j %j, whole and in parts', async (tool_choice, more) => {
    const { choices } = (await post(path, { ...chat, tool_choice, ...more })).body
    const [{ message, finish_reason }] = choices
    const complete = message.tool_calls.filter((_: any, i: number) => finish_reason !== 'length' || i === 0)
    for (const { function: called } of complete) {
      expect(['tide', 'moon']).toContain(called.name)
      expect(['noon', 'night']).toContain(JSON.parse(called.arguments).at)
    }
    if (typeof tool_choice === 'object') expect(message.tool_calls).toMatchObject([{ function: { name: 'moon' } }])
    if (more.parallel_tool_calls === false) expect(message.tool_calls).toHaveLength(1)
    const chunks = (await post(path, { ...chat, tool_choice, ...more, stream: true })).body
    const deltas = chunks.flatMap(({ choices: [choice] }: any) => choice.delta.tool_calls ?? [])
    const joined = deltas.filter(({ index }: any) => index === 0)
    expect(joined[0].function.name).toBe(message.tool_calls[0].function.name)
    expect(joined.length).toBeGreaterThan(2)
    expect(joined.map((delta: any) => delta.function.arguments).join('')).toBe(message.tool_calls[0].function.arguments)
    expect(chunks.at(-1).choices[0].finish_reason).toBe(finish_reason)
  })

  it('have arguments that fit if the tool is strict', async () => {
    const strict = tools.map((tool) => ({ ...tool, function: { ...tool.function, strict: true } }))
    // The grammar forces the first token of a call.
    const prompt = '<tool_call>'
    const structure = { messages: [{ role: 'user', content: prompt }], tools: strict, seed: 1, max_tokens: 50 }
    const [open] = idsOf('<tool_call>')
    const { body } = await post(path, { ...structure, logit_bias: { [open]: 30 }, temperature: 0 })
    for (const { function: called } of body.choices[0].message.tool_calls ?? []) {
      expect(['noon', 'night']).toContain(JSON.parse(called.arguments).at)
    }
    const bad = [{ type: 'function', function: { name: 'a', parameters: { not: {} }, strict: true } }]
    const refused = await post(path, { ...chat, tools: bad })
    expect([refused.status, refused.body.error.param]).toEqual([400, 'tools[0].function.parameters.not'])
  })

  it('do not come with none, and an unknown name is refused', async () => {
    const { choices } = (await post(path, { ...chat, tool_choice: 'none', max_tokens: 4 })).body
    expect(choices[0].message.tool_calls).toBeUndefined()
    const tool_choice = { type: 'function', function: { name: 'sun' } }
    expect((await post(path, { ...chat, tool_choice })).body.error.param).toBe('tool_choice')
  })

  it('are forced on responses too, with arguments as events', async () => {
    const given = tools.map(({ function: described }) => ({ type: 'function', ...described, strict: true }))
    const asked = { input: 'Who?', tools: given, tool_choice: { type: 'function', name: 'tide' }, seed: 1 }
    const { output } = (await post('/v1/responses', asked)).body
    expect(output).toMatchObject([{ type: 'function_call', name: 'tide', status: 'completed' }])
    const sent = (await post('/v1/responses', { ...asked, stream: true })).body
    const deltas = sent.filter(({ type }: any) => type === 'response.function_call_arguments.delta')
    expect(deltas.length).toBeGreaterThan(1)
    expect(deltas.map(({ delta }: any) => delta).join('')).toBe(output[0].arguments)
  })
})
