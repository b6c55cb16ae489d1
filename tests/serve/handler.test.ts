// biome-ignore-all lint/suspicious/noExplicitAny: answers and requests are JSON of any form

// The server as a function: OpenAI's routes on the bundled model, called with Requests.

import { cpSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { LoraAdapter, loadModel, type Model, saveAdapter } from 'lowrank'
import { createHandler, folderOfAdapters, type Handler, type HandlerOptions, listen } from 'lowrank/server'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
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

const PROMPT = 'And the people'
const scratch = mkdtempSync(join(tmpdir(), 'lowrank-serve-'))
const allowed = join(scratch, 'adapters')
let model: Model
let handler: Handler

// This template reads tools. For templates that do not, the system message is longer than this model's context.
const CHAT_TEMPLATE =
  '{% for t in tools or [] %}{{ t.function.name }} {% endfor %}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}'

beforeAll(enginesHere)
beforeAll(async () => {
  for (const name of ['f32', 'bf16', 'f16']) cpSync(goldenPath('peft', name), join(allowed, name), { recursive: true })
  symlinkSync(goldenPath('peft', 'rslora'), join(allowed, 'outside'))
  const folder = join(scratch, 'chatty')
  cpSync('models/union-3m', folder, { recursive: true })
  const { writeFileSync } = await import('node:fs')
  writeFileSync(join(folder, 'chat_template.jinja'), CHAT_TEMPLATE)
  model = await loadModel(folder)
  handler = await create({ adapters: { peft: goldenPath('peft', 'f32') } })
})
afterAll(async () => {
  await handler.close()
  await model.close()
  rmSync(scratch, { recursive: true })
})

const create = (options: Partial<HandlerOptions>) =>
  createHandler({ model, servedModelName: 'base', on: {}, ...options })

function request(path: string, body?: object, headers: Record<string, string> = {}, signal?: AbortSignal): Request {
  const own = { 'content-type': 'application/json', ...headers }
  return new Request(
    `http://localhost${path}`,
    body === undefined ? { headers, signal } : { method: 'POST', headers: own, body: JSON.stringify(body), signal },
  )
}

async function post(path: string, body: object, own: Handler = handler): Promise<{ status: number; body: any }> {
  const response = await own(request(path, body))
  return { status: response.status, body: await response.json() }
}

/** Returns the events of a stream, whose last must be [DONE]. */
async function events(path: string, body: object): Promise<any[]> {
  const response = await handler(request(path, { ...body, stream: true }))
  expect([response.status, response.headers.get('content-type')]).toEqual([200, 'text/event-stream'])
  const lines = (await response.text()).split('\n\n').filter((line) => line !== '' && !line.startsWith(':'))
  expect(lines.at(-1)).toBe('data: [DONE]')
  return lines.slice(0, -1).map((line) => JSON.parse(line.replace(/^(event: .*\n)?data: /, '')))
}

const QUICK = { prompt: PROMPT, max_tokens: 8, temperature: 0 }

describe('texts', () => {
  it('are those of the session, for the base, an adapter by both names, and a mix', async () => {
    const alone = async (adapter: any) =>
      (await handler.session.generate(PROMPT, { adapter, maxNewTokens: 8, temperature: 0 })).text
    const cases: [object, any][] = [
      [{ model: 'base' }, null],
      [{ model: 'peft' }, 'peft'],
      [{ model: 'base:peft' }, 'peft'],
      [{ model: 'base', adapter: { peft: 0.5 } }, { peft: 0.5 }],
    ]
    for (const [choice, adapter] of cases) {
      const { status, body } = await post('/v1/completions', { ...QUICK, ...choice })
      expect([status, body.choices[0].text]).toEqual([200, await alone(adapter)])
      expect(body).toMatchObject({
        object: 'text_completion',
        usage: { prompt_tokens: 5, completion_tokens: 8, total_tokens: 13 },
      })
      expect(body.choices[0].finish_reason).toBe('length')
    }
  })

  it('are the same as a stream, which ends with the usage', async () => {
    const whole = await post('/v1/completions', { ...QUICK, model: 'peft' })
    const parts = await events('/v1/completions', { ...QUICK, model: 'peft', stream_options: { include_usage: true } })
    const text = parts.flatMap(({ choices }) => choices.map((choice: any) => choice.text)).join('')
    expect(text).toBe(whole.body.choices[0].text)
    expect(parts.at(-1)).toMatchObject({ choices: [], usage: whole.body.usage })
    expect(parts.at(-2).choices[0].finish_reason).toBe('length')
  })

  it('come several for a prompt, and for token ids', async () => {
    const ids = model.tokenizer!.encode(PROMPT)
    const { body } = await post('/v1/completions', { ...QUICK, prompt: [ids, ids], n: 2 })
    expect(body.choices.map(({ index }: any) => index)).toEqual([0, 1, 2, 3])
    const { body: one } = await post('/v1/completions', QUICK)
    expect(new Set(body.choices.map(({ text }: any) => text))).toEqual(new Set([one.choices[0].text]))
    expect(body.usage).toMatchObject({ prompt_tokens: 10, completion_tokens: 32, total_tokens: 42 })
  })

  it('say which token id there is not, and that listen needs a handler', async () => {
    const { status, body } = await post('/v1/completions', { ...QUICK, prompt: [99_999_999] })
    expect([status, body.error.message]).toEqual([
      400,
      expect.stringMatching(/^prompt.*no token has this id.*99999999/),
    ])
    await expect(listen(7 as never)).rejects.toThrow('handler: not valid; expected a function')
    await expect(listen(async () => new Response(), null as never)).rejects.toThrow('options of listen: not valid')
  })

  it('with echo carry the scores of the prompt, which are those of the tokens as answers', async () => {
    const { body } = await post('/v1/completions', { ...QUICK, echo: true, logprobs: 2 })
    const { tokens, token_logprobs: scores, top_logprobs: top, text_offset: offsets } = body.choices[0].logprobs
    expect(tokens.length).toBe(13)
    expect(scores[0]).toBeNull()
    expect(Object.keys(top[4])).toHaveLength(2)
    expect(offsets[1]).toBe(tokens[0].length)
    // The same text is scored again as a prompt.
    const text = body.choices[0].text
    const again = await post('/v1/completions', { prompt: text, max_tokens: 0, echo: true, logprobs: 2 })
    expect(again.body.choices[0].text).toBe(text)
    again.body.choices[0].logprobs.token_logprobs.slice(1).forEach((score: number, i: number) => {
      expect(score).toBeCloseTo(scores[i + 1], 3)
    })
  })

  it('answer chats, with scores, whole and in pieces', async () => {
    const chat = {
      model: 'peft',
      messages: [{ role: 'user', content: [{ type: 'text', text: 'Who?' }] }],
      max_completion_tokens: 6,
      logprobs: true,
      top_logprobs: 1,
      temperature: 0,
    }
    const { status, body } = await post('/v1/chat/completions', chat)
    expect(status).toBe(200)
    expect(body.choices[0]).toMatchObject({ index: 0, message: { role: 'assistant' }, finish_reason: 'length' })
    expect(body.choices[0].logprobs.content).toHaveLength(6)
    const parts = await events('/v1/chat/completions', chat)
    expect(parts[0].choices[0].delta.role).toBe('assistant')
    expect(parts.map(({ choices: [{ delta }] }) => delta.content ?? '').join('')).toBe(body.choices[0].message.content)
  })

  it.skipIf(!isInstalled('@mlc-ai/web-xgrammar'))('fit a schema, whole and in pieces', async () => {
    const schema = { type: 'object', properties: { ok: { type: 'boolean' } }, required: ['ok'] }
    const chat = {
      messages: [{ role: 'user', content: 'Who?' }],
      response_format: { type: 'json_schema', json_schema: { name: 'x', schema, strict: true } },
      max_tokens: 40,
      seed: 1,
    }
    const { body } = await post('/v1/chat/completions', chat)
    expect(body.choices[0].finish_reason).toBe('stop')
    expect(typeof JSON.parse(body.choices[0].message.content).ok).toBe('boolean')
    const parts = await events('/v1/chat/completions', chat)
    expect(parts.map(({ choices: [{ delta }] }) => delta.content ?? '').join('')).toBe(body.choices[0].message.content)
  })

  it('answer as responses, whole and in events', async () => {
    const metadata = { ticket: '7' }
    const asked = { model: 'peft', input: 'Who?', instructions: 'Be brief.', max_output_tokens: 6, temperature: 0 }
    const { status, body } = await post('/v1/responses', { ...asked, metadata })
    expect(body.metadata).toEqual(metadata)
    const messages = [
      { role: 'system', content: 'Be brief.' },
      { role: 'user', content: 'Who?' },
    ]
    const chat = { model: 'peft', messages, max_tokens: 6, temperature: 0 }
    const [choice] = (await post('/v1/chat/completions', chat)).body.choices
    expect([status, body.status, body.output[0].content[0].text]).toEqual([200, 'incomplete', choice.message.content])
    const sent = await events('/v1/responses', { ...asked, input: [{ role: 'user', content: 'Who?' }] })
    expect(sent.map(({ sequence_number: at }) => at)).toEqual(sent.map((_, i) => i))
    const types = sent.map(({ type }) => type.replace('response.', ''))
    expect([...new Set(types)].join()).toBe(
      'created,in_progress,output_item.added,content_part.added,output_text.delta,output_text.done,content_part.done,output_item.done,incomplete',
    )
    expect(sent.map(({ type, delta }) => (type.endsWith('text.delta') ? delta : '')).join('')).toBe(
      choice.message.content,
    )
    expect(sent.at(-1).response.usage).toEqual(body.usage)
  })

  it.skipIf(!isInstalled('@mlc-ai/web-xgrammar'))('answer as responses with calls, which are read back', async () => {
    const parameters = { type: 'object', properties: { at: { enum: [1, 2] } } }
    const tools = [{ type: 'function', name: 'look', parameters, strict: null }]
    const asked = { input: [{ role: 'user', content: 'Who?' }], tools, tool_choice: 'required', seed: 1 }
    const { body } = await post('/v1/responses', asked)
    expect(body.output).toMatchObject([{ type: 'function_call', name: 'look', status: 'completed' }])
    const [call] = body.output
    const sent = await events('/v1/responses', asked)
    expect(sent.find(({ type }) => type === 'response.function_call_arguments.done').arguments).toBe(call.arguments)
    const result = { type: 'function_call_output', call_id: call.call_id, output: 'nothing' }
    const input = [...asked.input, call, result]
    expect((await post('/v1/responses', { input, tools, max_output_tokens: 4 })).status).toBe(200)
  })

  it('are read once, and not shared by callers of other keys', async () => {
    const own = await create({ apiKeys: ['one', 'two'] })
    const cached = async (key: string) => {
      const prompt = PROMPT.repeat(20)
      const response = await own(request('/v1/completions', { ...QUICK, prompt }, { authorization: `Bearer ${key}` }))
      return (await response.json()).usage.prompt_tokens_details.cached_tokens
    }
    expect([await cached('one'), await cached('two')]).toEqual([0, 0])
    expect([await cached('one'), await cached('two')]).toEqual([80, 80])
    await own.close()
  })

  it('stop when the caller leaves, and the place is free again', async () => {
    const small = await create({ maxRunning: 1, maxQueue: 0 })
    const left = new AbortController()
    const response = await small(
      request('/v1/completions', { ...QUICK, max_tokens: 200, stream: true }, {}, left.signal),
    )
    expect((await post('/v1/completions', QUICK, small)).status).toBe(429)
    await response.body!.cancel()
    await expect.poll(async () => (await post('/v1/completions', QUICK, small)).status).toBe(200)
    await small.close()
    expect((await post('/v1/completions', QUICK, small)).status).toBe(503)
  })
})

describe('adapters', () => {
  it('are listed, loaded by their names from the allowed folder alone, and the least used leaves', async () => {
    const own = await create({ resolveAdapter: folderOfAdapters(allowed), maxAdapters: 2 })
    const names = async () => (await (await own(request('/v1/models'))).json()).data.map(({ id }: any) => id)
    expect(await names()).toEqual(['base'])
    for (const name of ['f32', 'bf16', 'f32', 'f16']) {
      expect((await post('/v1/completions', { ...QUICK, model: name }, own)).status).toBe(200)
    }
    expect(await names()).toEqual(['base', 'f32', 'f16'])
    expect(await (await own(request('/v1/models/f16'))).json()).toMatchObject({ id: 'f16', parent: 'base' })
    expect((await own(request('/v1/models/none'))).status).toBe(404)
    for (const name of ['outside', '../adapters/f32/..', '..', '/etc', 'none']) {
      const { status, body } = await post('/v1/completions', { ...QUICK, model: name }, own)
      expect([name, status, body.error.code]).toEqual([name, 404, 'model_not_found'])
    }
    const load = (body: object) => own(request('/v1/load_lora_adapter', body))
    expect((await load({ lora_name: 'x', lora_path: 'outside' })).status).toBe(404)
    const loaded = await load({ lora_name: 'mine', lora_path: 'bf16' })
    expect([loaded.status, await loaded.text()]).toEqual([200, "Success: LoRA adapter 'mine' added successfully."])
    expect((await load({ lora_name: 'mine', lora_path: 'bf16' })).status).toBe(400)
    const unloaded = await own(request('/v1/unload_lora_adapter', { lora_name: 'mine' }))
    expect(unloaded.status).toBe(200)
    expect((await own(request('/v1/unload_lora_adapter', { lora_name: 'mine' }))).status).toBe(404)
    await own.close()
  })

  it('are loaded once for two requests of which one finds the folder later', async () => {
    const find = folderOfAdapters(allowed)
    let go = () => {}
    const isFound = new Promise<void>((resolve) => {
      go = resolve
    })
    let asked = 0
    const resolveAdapter = async (name: string) => {
      if (++asked === 2) await isFound
      return find(name)
    }
    const own = await create({ resolveAdapter })
    const both = [0, 1].map(() => post('/v1/completions', { ...QUICK, model: 'f32' }, own))
    await both[0]
    go()
    expect((await both[1]).status).toBe(200)
    expect([asked, own.session.adapters]).toEqual([2, ['f32']])
    await own.close()
  })

  it('stay for the requests that have them when they are unloaded, and new ones of the same name come', async () => {
    const own = await create({ resolveAdapter: folderOfAdapters(allowed) })
    const long = { ...QUICK, model: 'f32', max_tokens: 100 }
    const alone = await post('/v1/completions', long, own)
    const running = post('/v1/completions', long, own)
    const waiting = Array.from({ length: 10 }, () => post('/v1/completions', { ...long, max_tokens: 20 }, own))
    await expect.poll(async () => (await own(request('/metrics'))).text()).toMatch(/num_requests_running [^0]/)
    const change = async (path: string, body: object) => (await own(request(path, body))).status
    expect(await change('/v1/unload_lora_adapter', { lora_name: 'f32' })).toBe(200)
    expect(await change('/v1/load_lora_adapter', { lora_name: 'f32', lora_path: 'bf16' })).toBe(200)
    const other = await post('/v1/completions', long, own)
    expect((await running).body.choices).toEqual(alone.body.choices)
    for (const { status, body } of await Promise.all(waiting)) {
      expect([status, alone.body.choices[0].text.startsWith(body.choices[0].text)]).toEqual([200, true])
    }
    expect(other.body.choices).toEqual((await post('/v1/completions', { ...long, model: 'bf16' }, own)).body.choices)
    await expect.poll(() => own.session.adapters).toEqual(['f32#1'])
    await own.close()
  })

  it('with parts that the server was not opened for get status 400', async () => {
    const dora = join(scratch, 'dora')
    const adapter = new LoraAdapter({ rank: 1, alpha: 1, useDora: true })
    const factors = [
      { data: new Float32Array(576).fill(0.1), shape: [1, 576] } as const,
      Array.from({ length: 192 }, () => [0.1]),
    ] as const
    adapter.addFactors('model.layers.0.mlp.down_proj', ...factors, { magnitude: new Float32Array(192).fill(1) })
    await saveAdapter(adapter, dora)
    const [own, ready] = await Promise.all(
      [undefined, { allow: ['lora', 'dora'] as const }].map((session) => {
        return create({ resolveAdapter: async () => dora, session })
      }),
    )
    const refused = await post('/v1/completions', { ...QUICK, model: 'dora' }, own)
    expect([refused.status, refused.body.error.code]).toEqual([400, 'adapter_invalid'])
    expect(refused.body.error.message).toMatch(/without inputs for parts of this adapter: dora.*--allow/s)
    expect((await post('/v1/completions', { ...QUICK, model: 'dora' }, ready)).status).toBe(200)
    const closing = ready(request('/v1/load_lora_adapter', { lora_name: 'x', lora_path: 'x' }))
    await Promise.all([own.close(), ready.close()])
    expect((await closing).status).toBe(200)
    expect((await ready(request('/v1/load_lora_adapter', { lora_name: 'y', lora_path: 'x' }))).status).toBe(503)
  })

  it('are not loaded where that is off', async () => {
    const response = await handler(request('/v1/load_lora_adapter', { lora_name: 'x', lora_path: 'f32' }))
    expect(response.status).toBe(403)
  })
})

describe('bad requests', () => {
  it.each([
    [{ ...QUICK, temprature: 1 }, 'temprature', /Did you mean temperature/],
    [{ ...QUICK, frequency_penalty: 3 }, 'frequency_penalty', /in \[-2, 2\]/],
    [{ ...QUICK, best_of: 2 }, 'best_of', /nothing else/],
    [{ ...QUICK, temperature: 3 }, 'temperature', /in \[0, 2\]/],
    [{ ...QUICK, verbositty: 'low' }, 'verbositty', /no such option$/],
    [{ ...QUICK, max_tokens: -1 }, 'max_tokens', /at least 0/],
    [{ max_tokens: 4 }, 'prompt', /missing/],
    [{ ...QUICK, prompt: [] }, 'prompt', /empty/],
    [{ ...QUICK, prompt: [[1e9]] }, undefined, /./],
    [{ ...QUICK, stream_options: { include_usage: true } }, 'stream_options', /needs/],
    [{ ...QUICK, echo: true, stream: true }, 'echo', /./],
    [{ ...QUICK, adapter: { peft: 'a' } }, 'adapter', /weights by name/],
  ])('%j names the field', async (body, param, message) => {
    const { status, body: answer } = await post('/v1/completions', body)
    expect([status, answer.error.type]).toEqual([400, 'invalid_request_error'])
    if (param !== undefined) expect(answer.error.param).toBe(param)
    expect(answer.error.message).toMatch(message)
    expect(answer.error.message).not.toContain(scratch)
  })

  it.each<[object, string]>([
    [{ messages: [{ role: 'user', content: 'a' }], response_format: { type: 'xml' } }, 'response_format'],
    [
      {
        messages: [{ role: 'user', content: 'a' }],
        response_format: { type: 'json_schema', json_schema: { name: 'x', strict: true, schema: { not: {} } } },
      },
      'schema.not',
    ],
    [{ messages: [{ role: 'user', content: 'a' }], tool_choice: 'required' }, 'tool_choice'],
    [{ messages: [{ role: 'user', content: [{ type: 'input_audio' }] }] }, 'messages[0].content[0]'],
    [
      { messages: [{ role: 'user', content: [{ type: 'image_url', image_url: { url: 'http://127.0.0.1/a.png' } }] }] },
      'messages[0].content[0]',
    ],
    [
      {
        messages: [{ role: 'user', content: [{ type: 'image_url', image_url: { url: 'data:image/png;base64,A' } }] }],
      },
      'messages[0].content[0]',
    ],
    [{ messages: [] }, 'messages'],
    ...['f', {}, [null], [{ function: 'f' }], [{ function: { arguments: '{}' } }]].map(
      (tool_calls) =>
        [{ messages: [{ role: 'assistant', content: null, tool_calls }] }, 'messages[0].tool_calls'] as [
          object,
          string,
        ],
    ),
    [{ messages: [{ role: 'user', content: 'a' }], top_logprobs: 2 }, 'top_logprobs'],
  ])('chat %j names the field', async (body, param) => {
    const { status, body: answer } = await post('/v1/chat/completions', body)
    expect([status, answer.error.param]).toEqual([400, param])
  })

  it.each([
    [{ input: 'a', conversation: 'conv_1' }, 'conversation'],
    [{ input: 'a', temperature: 3 }, 'temperature'],
    [{ input: 'a', text: { format: { type: 'xml' } } }, 'text'],
    [{ input: [{ type: 'computer_call' }] }, 'input[0]'],
    [{ input: [{ role: 'user', content: [null] }] }, 'input[0].content[0]'],
    [{ input: 'a', instructions: 'b', tools: [{ type: 'web_search' }] }, 'tools'],
    [{ input: [{ role: 'user', content: [{ type: 'input_audio' }] }], instructions: 'b' }, 'input[0].content[0]'],
  ])('response %j names the field', async (body, param) => {
    const { status, body: answer } = await post('/v1/responses', body)
    expect([status, answer.error.param]).toEqual([400, param])
  })

  it.each(['/v1/embeddings', '/classify'])('%s of a model that continues texts names the model', async (route) => {
    const { status, body: answer } = await post(route, { input: 'a' })
    expect([status, answer.error.param]).toEqual([400, 'model'])
  })

  it('have statuses of their own: route, method, type, JSON, size', async () => {
    const status = async (path: string, init: RequestInit) =>
      (await handler(new Request(`http://localhost${path}`, init))).status
    const json = { 'content-type': 'application/json' }
    expect(await status('/v2', { method: 'POST', headers: json, body: '{}' })).toBe(404)
    expect(await status('/v1/completions', {})).toBe(405)
    expect(await status('/v1/completions', { method: 'POST', body: '{}' })).toBe(415)
    expect(await status('/v1/completions', { method: 'POST', headers: json, body: '{' })).toBe(400)
    expect(await status('/v1/completions', { method: 'POST', headers: json, body: '[]' })).toBe(400)
    const small = await create({ maxBodyBytes: 100 })
    expect((await post('/v1/completions', { prompt: 'a'.repeat(200) }, small)).status).toBe(413)
    await small.close()
  })

  it('of strangers are refused: a page of another origin, another host name, no key', async () => {
    const own = await create({
      hosts: ['localhost'],
      origins: ['https://app.example'],
      apiKeys: ['secret-1', 'secret-2'],
    })
    const status = async (headers: Record<string, string>) =>
      (await own(request('/v1/models', undefined, headers))).status
    const key = { authorization: 'Bearer secret-2' }
    expect(await status({})).toBe(401)
    expect(await status({ authorization: 'Bearer secret-22' })).toBe(401)
    expect(await status(key)).toBe(200)
    expect(await status({ ...key, origin: 'https://evil.example' })).toBe(403)
    expect(await status({ ...key, origin: 'https://app.example' })).toBe(200)
    expect(await status({ ...key, host: 'evil.example' })).toBe(403)
    expect((await own(request('/health'))).status).toBe(200)
    await own.close()
  })
})

it('metrics carry vLLM’s names', async () => {
  await post('/v1/completions', { ...QUICK, model: 'peft' })
  const text = await (await handler(request('/metrics'))).text()
  for (const name of [
    'num_requests_running',
    'num_requests_waiting',
    'lora_requests_info',
    'time_to_first_token_seconds_count',
    'generation_tokens_total',
  ]) {
    expect(text).toMatch(new RegExp(`^vllm:${name}(\\{.*\\})? [\\d.e+]+$`, 'm'))
  }
})
