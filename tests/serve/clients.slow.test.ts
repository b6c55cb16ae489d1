// biome-ignore-all lint/suspicious/noExplicitAny: answers and requests are JSON of any form

// Clients that others wrote, against `lowrank serve`: OpenAI's and Anthropic's own, Vercel's AI SDK, LangChain and
// OpenTelemetry, and in Python instructor, litellm and OpenAI's agents. Each is skipped where it is not installed.

import { execFile, execFileSync } from 'node:child_process'
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { loadModel, type Model } from 'lowrank'
import { createHandler, type Handler, listen } from 'lowrank/server'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { chromium } from '../chromium.js'
import { goldenPath } from '../golden.js'
import { openPage } from '../page.js'

const isInstalled = (name: string) => {
  try {
    createRequire(import.meta.url).resolve(name)
    return true
  } catch {
    return false
  }
}

const PROMPT = 'And the people'
let model: Model
let handler: Handler
let close = () => {}
let baseURL = ''

beforeAll(async () => {
  model = await loadModel('models/union-3m')
  handler = await createHandler({ model, adapters: { peft: goldenPath('peft', 'f32') }, apiKeys: ['key'] })
  const { server, url } = await listen(handler, { port: 0 })
  close = () => server.close()
  baseURL = `${url}/v1`
})
afterAll(async () => {
  await handler.close()
  close()
  await model.close()
})

const expected = (adapter: string | null) =>
  handler.session.generate(PROMPT, { adapter, maxNewTokens: 12, temperature: 0 })
/** A package by a name that the compiler does not look for. */
const load = (name: string): Promise<any> => import(name)

describe.skipIf(!isInstalled('openai'))('openai', () => {
  const request = { model: 'peft', prompt: PROMPT, max_tokens: 12, temperature: 0 }

  it('gets texts, whole and in pieces, models, errors and the wrong key', async () => {
    const { OpenAI } = await load('openai')
    const client = new OpenAI({ baseURL, apiKey: 'key', maxRetries: 0 })
    const { text, tokens } = await expected('peft')
    const whole = await client.completions.create(request)
    expect([whole.choices[0].text, whole.usage.completion_tokens]).toEqual([text, tokens])
    let streamed = ''
    for await (const { choices } of await client.completions.create({ ...request, stream: true }))
      streamed += choices[0]?.text ?? ''
    expect(streamed).toBe(text)
    const names = []
    for await (const { id } of await client.models.list()) names.push(id)
    expect(names).toEqual(['union-3m', 'peft'])
    await expect(client.completions.create({ ...request, model: 'none' })).rejects.toMatchObject({
      status: 404,
      code: 'model_not_found',
    })
    await expect(client.completions.create({ ...request, suffix: 'x' })).rejects.toMatchObject({
      status: 400,
      param: 'suffix',
    })
    const stranger = new OpenAI({ baseURL, apiKey: 'other', maxRetries: 0 })
    await expect(stranger.models.list()).rejects.toMatchObject({ status: 401 })
  })

  it('gets responses, whole and in events', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'lowrank-clients-'))
    cpSync('models/union-3m', folder, { recursive: true })
    writeFileSync(join(folder, 'chat_template.jinja'), '{% for m in messages %}{{ m.content }}{% endfor %}')
    const own = await createHandler({ model: folder })
    const { server, url } = await listen(own, { port: 0 })
    const { OpenAI } = await load('openai')
    const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 })
    const asked = { model: own.base, input: PROMPT, max_output_tokens: 12, temperature: 0 }
    const messages = [{ role: 'user', content: PROMPT }]
    const { text } = await own.session.generate(messages, { maxNewTokens: 12, temperature: 0 })
    expect((await client.responses.create(asked)).output_text).toBe(text)
    let streamed = ''
    for await (const event of await client.responses.create({ ...asked, stream: true }))
      if (event.type === 'response.output_text.delta') streamed += event.delta
    expect(streamed).toBe(text)
    await own.close()
    server.close()
    rmSync(folder, { recursive: true })
  })

  it('gets vectors, which it asks for in base64', async () => {
    const encoder = await loadModel(goldenPath('text-classification', 'encoder'))
    const own = await createHandler({ model: encoder })
    const { server, url } = await listen(own, { port: 0 })
    const { OpenAI } = await load('openai')
    const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none' })
    const { data } = await client.embeddings.create({ model: own.base, input: ['a good day', 'a grim night'] })
    const [first, second] = await own.session.embed(['a good day', 'a grim night'])
    expect(data.map(({ embedding }: { embedding: number[] }) => embedding)).toEqual([[...first], [...second]])
    await own.close()
    server.close()
    await encoder.close()
  })
})

describe.skipIf(!isInstalled('ai') || !isInstalled('@ai-sdk/openai-compatible'))('the AI SDK', () => {
  it('gets a text in pieces', async () => {
    const { generateText, streamText } = await load('ai')
    const { createOpenAICompatible } = await load('@ai-sdk/openai-compatible')
    const provider = createOpenAICompatible({ name: 'lowrank', baseURL, apiKey: 'key' })
    // The AI SDK adds text around the prompt, so the session's text cannot be compared.
    const request = { model: provider.completionModel('peft'), prompt: PROMPT, maxOutputTokens: 12, temperature: 0 }
    const { textStream } = streamText(request)
    let text = ''
    for await (const piece of textStream) text += piece
    expect(text).not.toBe('')
    expect(text).toBe((await generateText(request)).text)
  })
})

describe.skipIf(!isInstalled('@langchain/openai'))('LangChain', () => {
  it('gets a text', async () => {
    const { OpenAI } = await load('@langchain/openai')
    const client = new OpenAI({
      model: 'peft',
      apiKey: 'key',
      maxTokens: 12,
      temperature: 0,
      configuration: { baseURL },
    })
    expect(await client.invoke(PROMPT)).toBe((await expected('peft')).text)
  })
})

/** A chat whose template takes few tokens for tools, because the model reads 256. */
const TEMPLATE =
  '{% for t in tools or [] %}{{ t.function.name }} {% endfor %}{% for m in messages %}{{ m.content }}\n{% endfor %}'

describe.skipIf(!isInstalled('@opentelemetry/sdk-trace-node'))('OpenTelemetry', () => {
  it('gets a span for each request, in the trace of its caller', async () => {
    const { InMemorySpanExporter, NodeTracerProvider, SimpleSpanProcessor } = await load(
      '@opentelemetry/sdk-trace-node',
    )
    const exporter = new InMemorySpanExporter()
    const provider = new NodeTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] })
    provider.register()
    const [trace, parent] = ['0af7651916cd43dd8448eb211c80319c', 'b7ad6b7169203331']
    const headers = { 'content-type': 'application/json', authorization: 'Bearer key', traceparent: '' }
    const ask = (body: object) =>
      fetch(`${baseURL}/completions`, { method: 'POST', headers, body: JSON.stringify(body) })
    headers.traceparent = `00-${trace}-${parent}-01`
    await (await ask({ model: 'peft', prompt: PROMPT, max_tokens: 4, temperature: 0 })).text()
    await (await ask({ model: 'none', prompt: PROMPT })).text()
    const [told, failed] = exporter.getFinishedSpans()
    expect([told.name, told.spanContext().traceId, told.parentSpanContext.spanId]).toEqual([
      ...['POST /v1/completions', trace, parent],
    ])
    expect(told.attributes).toMatchObject({
      ...{ 'http.response.status_code': 200, 'gen_ai.request.model': 'peft', 'gen_ai.usage.output_tokens': 4 },
    })
    expect(JSON.stringify(told.attributes)).not.toContain(PROMPT)
    expect(failed.attributes['http.response.status_code']).toBe(404)
    await provider.shutdown()
  })
})

const BROWSER_CLIENTS = ['openai', '@anthropic-ai/sdk', 'ai', '@ai-sdk/openai-compatible']

describe.skipIf(chromium === undefined || !BROWSER_CLIENTS.every(isInstalled))('in a page of another origin', () => {
  it('clients get through if the server names the origin, and only then', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'lowrank-page-'))
    const { build } = await load('vite')
    await build({
      ...{ configFile: false, logLevel: 'error', define: { 'process.env.NODE_ENV': '"production"' } },
      build: {
        ...{ outDir: folder, minify: false, emptyOutDir: true },
        lib: { entry: 'tests/serve/clients-in-page.mjs', formats: ['es'], fileName: () => 'clients.mjs' },
      },
    })
    const pages = createServer(({ url = '/' }, response) => {
      const isCode = /\.m?js$/.test(url)
      response.setHeader('content-type', isCode ? 'text/javascript' : 'text/html')
      response.end(isCode ? readFileSync(join(folder, url)) : '<!doctype html><title>clients</title>')
    })
    await new Promise<void>((resolve) => pages.listen(0, '127.0.0.1', resolve))
    const { port } = pages.address() as AddressInfo
    const origin = `http://127.0.0.1:${port}`
    const own = await createHandler({
      ...{ model, servedModelName: 'base', apiKeys: ['key'], chatTemplate: TEMPLATE, origins: [origin] },
    })
    const server = await listen(own, { port: 0 })
    const page = await openPage(origin)
    const code = `import('/clients.mjs').then(({ ask }) => ask('${server.url}', 'base', ${JSON.stringify(PROMPT)}))`
    const { text } = await own.session.generate([{ role: 'user', content: PROMPT }], {
      ...{ chatTemplate: TEMPLATE, maxNewTokens: 8, temperature: 0 },
    })
    expect(await page.evaluate(code)).toEqual({ openai: text, anthropic: text, sdk: text, status: 404 })
    await page.navigate(`http://localhost:${port}`)
    expect(await page.evaluate(code)).toEqual({ error: expect.stringContaining('Error') })
    await page.close()
    await server.close()
    await own.close()
    pages.close()
    rmSync(folder, { recursive: true })
  })
})

describe.skipIf(!isInstalled('@mlc-ai/web-xgrammar'))('calls of tools reach', () => {
  const folder = mkdtempSync(join(tmpdir(), 'lowrank-tools-'))
  let chat: Handler
  let stop = () => {}
  let address = ''

  beforeAll(async () => {
    cpSync('models/union-3m', folder, { recursive: true })
    writeFileSync(join(folder, 'chat_template.jinja'), TEMPLATE)
    chat = await createHandler({ model: folder, servedModelName: 'base', apiKeys: ['key'] })
    const { server, url } = await listen(chat, { port: 0 })
    stop = () => server.close()
    address = url
  })
  afterAll(async () => {
    await chat.close()
    stop()
    rmSync(folder, { recursive: true })
  })

  const at = ['noon', 'night']

  it.skipIf(!isInstalled('@anthropic-ai/sdk') || !isInstalled('zod'))('Anthropic’s client', async () => {
    const { Anthropic } = await load('@anthropic-ai/sdk')
    const client = new Anthropic({ baseURL: address, apiKey: 'key', maxRetries: 0 })
    const messages = [{ role: 'user', content: 'Who?' }]
    const asked = { model: 'base', max_tokens: 12, temperature: 0, messages }
    const { content, usage } = await client.messages.create(asked)
    expect(content[0].text).toBe((await chat.session.generate(messages, { maxNewTokens: 12, temperature: 0 })).text)
    let streamed = ''
    const stream = client.messages.stream(asked).on('text', (piece: string) => {
      streamed += piece
    })
    expect([await stream.finalText(), streamed]).toEqual([content[0].text, content[0].text])
    const { input_tokens: counted } = await client.messages.countTokens({ model: 'base', messages })
    expect(counted).toBe(usage.input_tokens + usage.cache_read_input_tokens)
    const { data } = await client.models.list()
    expect(data.map(({ id }: { id: string }) => id)).toEqual(['base'])
    const input_schema = { type: 'object', properties: { at: { enum: at } }, required: ['at'] }
    const tools = [{ name: 'tide', input_schema }]
    const called = client.messages.stream({
      ...asked,
      max_tokens: 120,
      tools,
      tool_choice: { type: 'any', disable_parallel_tool_use: true },
    })
    const [block] = (await called.finalMessage()).content
    expect([block.type, block.name, at.includes(block.input.at)]).toEqual(['tool_use', 'tide', true])
    const stranger = new Anthropic({ baseURL: address, apiKey: 'other', maxRetries: 0 })
    await expect(stranger.messages.create(asked)).rejects.toMatchObject({ status: 401 })
    await expect(client.messages.create({ ...asked, model: 'none' })).rejects.toMatchObject({
      error: { error: { type: 'not_found_error' } },
    })
  })

  it.skipIf(!isInstalled('ai') || !isInstalled('zod') || !isInstalled('@ai-sdk/openai-compatible'))(
    'the AI SDK',
    async () => {
      const { generateText, tool } = await load('ai')
      const { createOpenAICompatible } = await load('@ai-sdk/openai-compatible')
      const { z } = await load('zod')
      const provider = createOpenAICompatible({ name: 'lowrank', baseURL: `${address}/v1`, apiKey: 'key' })
      const tide = tool({ description: 'How high?', inputSchema: z.object({ at: z.enum(at) }) })
      const { toolCalls } = await generateText({
        ...{ model: provider('base'), prompt: 'Who?', tools: { tide }, toolChoice: 'required', maxOutputTokens: 120 },
      })
      expect([toolCalls[0].toolName, at.includes(toolCalls[0].input.at)]).toEqual(['tide', true])
    },
  )

  it.skipIf(!isInstalled('@langchain/openai') || !isInstalled('zod'))('LangChain, by both methods', async () => {
    const { ChatOpenAI } = await load('@langchain/openai')
    const { z } = await load('zod')
    const client = new ChatOpenAI({
      ...{ model: 'base', apiKey: 'key', maxTokens: 120, configuration: { baseURL: `${address}/v1` } },
    })
    for (const method of ['functionCalling', 'jsonSchema']) {
      const structured = client.withStructuredOutput(z.object({ at: z.enum(at) }), { name: 'tide', method })
      expect([method, at.includes((await structured.invoke('Who?')).at)]).toEqual([method, true])
    }
  })

  const python = process.env.CLIENTS_PYTHON ?? 'python3'
  const hasModule = (name: string) => {
    try {
      execFileSync(python, ['-c', `import ${name}`], { stdio: 'ignore' })
      return true
    } catch {
      return false
    }
  }

  it.each(['instructor', 'litellm', 'agents'])('%s, in Python', { timeout: 240_000 }, async (name) => {
    if (!hasModule(name)) return console.warn(`skipped: ${python} has no ${name}`)
    const { stdout } = await promisify(execFile)(python, ['tests/serve/clients.py', name, `${address}/v1`])
    expect(at).toContain(JSON.parse(stdout.trim().split('\n').at(-1)!).at)
  })
})
