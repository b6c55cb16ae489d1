// biome-ignore-all lint/suspicious/noExplicitAny: answers and requests are JSON of any form

// What the pages of three clients show first, unchanged but for the address, on the bundled model: `defaultModel`
// answers the names of the models of others.

import { createRequire } from 'node:module'
import { loadModel, type Model } from 'lowrank'
import { createHandler, type Handler, listen } from 'lowrank/server'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { textOf } from '../structure/project.js'

const require = createRequire(import.meta.url)
const isInstalled = (...names: string[]) => {
  try {
    for (const name of names) require.resolve(name)
    return true
  } catch {
    return false
  }
}
/** A package by a name that the compiler does not look for. */
const load = (name: string): Promise<any> => import(name)

let model: Model
let handler: Handler
let url = ''
let stop: () => Promise<unknown>

beforeAll(async () => {
  model = await loadModel('models/union-3m')
  const chatTemplate = textOf('models/data/chat.jinja')
  handler = await createHandler({ model, chatTemplate, defaultModel: 'union-3m', maxTokens: 12 })
  const server = await listen(handler, { port: 0 })
  stop = () => server.close()
  url = server.url
})
afterAll(async () => {
  await stop()
  await handler.close()
  await model.close()
})

const TEXT = expect.stringMatching(/\S/)

it.skipIf(!isInstalled('openai'))('openai: responses, chats, and both as streams', async () => {
  const { default: OpenAI } = await load('openai')
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'My API Key' })
  const asked = {
    model: 'gpt-5.2',
    instructions: 'You are a coding assistant that talks like a pirate',
    input: 'Are semicolons optional in JavaScript?',
  }
  expect((await client.responses.create(asked)).output_text).toEqual(TEXT)
  const messages = [
    { role: 'developer', content: 'Talk like a pirate.' },
    { role: 'user', content: 'Are semicolons optional in JavaScript?' },
  ]
  const completion = await client.chat.completions.create({ model: 'gpt-5.2', messages })
  expect([completion.choices[0].message.content, completion.model]).toEqual([TEXT, 'union-3m'])
  const types = []
  const stream = await client.responses.create({
    model: 'gpt-5.2',
    input: 'Say "Sheep sleep deep" ten times fast!',
    stream: true,
  })
  for await (const event of stream) types.push(event.type)
  expect(types.at(-1)).toMatch(/^response\.(completed|incomplete)$/)
})

it.skipIf(!isInstalled('@anthropic-ai/sdk'))('@anthropic-ai/sdk: a message, whole and as a stream', async () => {
  const { default: Anthropic } = await load('@anthropic-ai/sdk')
  const client = new Anthropic({ baseURL: url, apiKey: 'my_api_key' })
  const asked = {
    max_tokens: 1024,
    messages: [{ role: 'user', content: 'Hello, Claude' }],
    model: 'claude-sonnet-4-5-20250929',
  }
  const message = await client.messages.create(asked)
  expect([message.content[0].text, message.model]).toEqual([TEXT, 'union-3m'])
  const final = await client.messages.stream(asked).finalMessage()
  expect(final.content[0].text).toEqual(TEXT)
})

it.skipIf(!isInstalled('ai', '@ai-sdk/openai-compatible'))('ai: a text, whole and as a stream', async () => {
  const { generateText, streamText } = await load('ai')
  const { createOpenAICompatible } = await load('@ai-sdk/openai-compatible')
  const provider = createOpenAICompatible({ name: 'providerName', apiKey: 'key', baseURL: `${url}/v1` })
  const asked = { model: provider('gpt-5'), prompt: 'What is an agent?' }
  expect((await generateText(asked)).text).toEqual(TEXT)
  let text = ''
  for await (const textPart of streamText(asked).textStream) text += textPart
  expect(text).toEqual(TEXT)
})
