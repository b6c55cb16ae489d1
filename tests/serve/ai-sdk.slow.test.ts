// biome-ignore-all lint/suspicious/noExplicitAny: answers and requests are JSON of any form

// `lowrank/ai-sdk` with the AI SDK itself: texts, structured output, tools and vectors are those of the session.

import { createRequire } from 'node:module'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { goldenPath } from '../golden.js'

const { resolve } = createRequire(import.meta.url)
const isInstalled = (name: string) => {
  try {
    return resolve(name) !== ''
  } catch {
    return false
  }
}
/** A package by a name that the compiler does not look for. */
const load = (name: string): Promise<any> => import(name)

const PROMPT = 'And the people'
/** It takes few tokens for tools, because the model reads 256. */
const TEMPLATE =
  '{% for t in tools or [] %}{{ t.function.name }} {% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}'

const isThere = ['ai', '@ai-sdk/openai-compatible', '@mlc-ai/web-xgrammar', 'zod'].every(isInstalled)
describe.skipIf(!isThere)('the provider for the AI SDK', () => {
  let ai: any
  let z: any
  let lowrank: any
  beforeAll(async () => {
    ai = await load('ai')
    z = (await load('zod')).z
    const { createLowrank } = await load('lowrank/ai-sdk')
    const adapters = { peft: goldenPath('peft', 'f32') }
    lowrank = await createLowrank({
      model: 'models/union-3m',
      servedModelName: 'base',
      adapters,
      chatTemplate: TEMPLATE,
    })
  })
  afterAll(() => lowrank?.close())

  it.each([
    ['base', null],
    ['peft', 'peft'],
  ])('gives the texts of %s, whole and in pieces', async (name, adapter) => {
    const messages = [{ role: 'user', content: PROMPT }]
    const options = { adapter, maxNewTokens: 12, temperature: 0, chatTemplate: TEMPLATE }
    const { text, promptTokens } = await lowrank.session.generate(messages, options)
    const request = { model: lowrank(name), prompt: PROMPT, maxOutputTokens: 12, temperature: 0 }
    const whole = await ai.generateText(request)
    expect([whole.text, whole.usage.inputTokens]).toEqual([text, promptTokens])
    let streamed = ''
    for await (const piece of ai.streamText(request).textStream) streamed += piece
    expect(streamed).toBe(text)
  })

  it('fits a schema, and calls a tool', async () => {
    const schema = z.object({ mood: z.enum(['calm', 'grim']), loud: z.boolean() })
    const request = { model: lowrank('peft'), prompt: PROMPT, maxOutputTokens: 200, temperature: 0 }
    const { output } = await ai.generateText({ ...request, output: ai.Output.object({ schema }) })
    expect(schema.parse(output)).toEqual(output)
    const heard: unknown[] = []
    const ring = ai.tool({ inputSchema: schema, execute: (input: unknown) => heard.push(input) })
    const { toolCalls } = await ai.generateText({ ...request, tools: { ring }, toolChoice: 'required' })
    expect(heard).toEqual(toolCalls.map(({ input }: { input: unknown }) => schema.parse(input)))
    expect(heard).toHaveLength(1)
  })

  it('stops when the caller does, and tells the server’s errors', async () => {
    const stop = new AbortController()
    const request = { model: lowrank('peft'), prompt: PROMPT, maxRetries: 0 }
    const { fullStream } = ai.streamText({ ...request, abortSignal: stop.signal, maxOutputTokens: 200 })
    const kinds: string[] = []
    for await (const { type } of fullStream) {
      kinds.push(type)
      if (type === 'text-delta') stop.abort()
    }
    expect(kinds.at(-1)).toBe('abort')
    await expect(ai.generateText({ ...request, model: lowrank('none') })).rejects.toMatchObject({ statusCode: 404 })
  })

  it('gives vectors', async () => {
    const { createLowrank } = await load('lowrank/ai-sdk')
    const encoder = await createLowrank({ model: goldenPath('text-classification', 'encoder'), servedModelName: 'e' })
    const values = ['a good day', 'a grim night']
    const { embeddings } = await ai.embedMany({ model: encoder.embeddingModel('e'), values })
    expect(embeddings).toEqual((await encoder.session.embed(values)).map((vector: Float32Array) => [...vector]))
    await encoder.close()
  })
})
