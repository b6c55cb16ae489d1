// Clients that others wrote, against `lowrank serve`: OpenAI's own, Vercel's AI SDK, and LangChain. Each is skipped
// where it is not installed.

import { cpSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { loadModel, type Model } from 'lowrank'
import { createHandler, type Handler, listen } from 'lowrank/server'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
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
    // It writes a prompt of its own around this text.
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
