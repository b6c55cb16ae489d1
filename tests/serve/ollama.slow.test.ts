// biome-ignore-all lint/suspicious/noExplicitAny: answers and requests are JSON of any form

// Clients of Ollama that others wrote, against its form here. Each is skipped where it is not installed.

import { execFile, execFileSync } from 'node:child_process'
import { createRequire } from 'node:module'
import { promisify } from 'node:util'
import { loadModel, type Model } from 'lowrank'
import { createHandler, type Handler, listen } from 'lowrank/server'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { goldenPath } from '../golden.js'

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

const TEMPLATE = '{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:'
const MESSAGES = [{ role: 'user', content: 'Who?' }]
const FEW = { num_predict: 8, temperature: 0 }
let model: Model
let handler: Handler
let url = ''
let stop: () => Promise<unknown>

beforeAll(async () => {
  model = await loadModel('models/union-3m')
  const adapters = { sea: goldenPath('peft', 'f32') }
  handler = await createHandler({ model, servedModelName: 'base', chatTemplate: TEMPLATE, adapters })
  const server = await listen(handler, { port: 0 })
  stop = () => server.close()
  url = server.url
})
afterAll(async () => {
  await stop()
  await handler.close()
  await model.close()
})

const written = (adapter: string | null) =>
  handler.session.generate(MESSAGES, { adapter, chatTemplate: TEMPLATE, maxNewTokens: 8, temperature: 0 })

it.skipIf(!isInstalled('ollama'))('ollama of npm', async () => {
  const { Ollama } = await load('ollama')
  const client = new Ollama({ host: url })
  const asked = { model: 'sea', messages: MESSAGES, options: FEW }
  const { text } = await written('sea')
  expect((await client.chat(asked)).message.content).toBe(text)
  let streamed = ''
  for await (const { message } of await client.chat({ ...asked, stream: true })) streamed += message.content
  expect(streamed).toBe(text)
  const { response } = await client.generate({ model: 'base', prompt: 'Who?', options: FEW })
  expect(response).toBe((await written(null)).text)
  expect((await client.list()).models.map(({ name }: any) => name)).toEqual(['base:latest', 'sea:latest'])
  expect((await client.ps()).models).toHaveLength(2)
  expect((await client.show({ model: 'sea' })).capabilities).toContain('completion')
  expect(await client.pull({ model: 'sea' })).toEqual({ status: 'success' })
  await expect(client.chat({ ...asked, model: 'none' })).rejects.toMatchObject({ status_code: 404 })
  await expect(client.delete({ model: 'sea' })).rejects.toMatchObject({ status_code: 404 })
})

it.skipIf(!isInstalled('@langchain/ollama'))('ChatOllama of LangChain', async () => {
  const { ChatOllama } = await load('@langchain/ollama')
  const client = new ChatOllama({ baseUrl: url, model: 'sea', temperature: 0, numPredict: 8 })
  expect((await client.invoke('Who?')).content).toBe((await written('sea')).text)
})

it.skipIf(!isInstalled('ollama-ai-provider-v2', 'ai'))('the AI SDK', async () => {
  const { createOllama } = await load('ollama-ai-provider-v2')
  const { generateText, streamText } = await load('ai')
  const asked = {
    model: createOllama({ baseURL: `${url}/api` })('sea'),
    prompt: 'Who?',
    temperature: 0,
    maxOutputTokens: 8,
  }
  const { text } = await generateText(asked)
  expect(text).toBe((await written('sea')).text)
  let streamed = ''
  for await (const piece of streamText(asked).textStream) streamed += piece
  expect(streamed).toBe(text)
})

const python = process.env.CLIENTS_PYTHON ?? 'python3'
const hasClient = (() => {
  try {
    execFileSync(python, ['-c', 'import ollama'], { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
})()

it.skipIf(!hasClient)('ollama of PyPI', { timeout: 60_000 }, async () => {
  const code = `
import json, sys, ollama
client = ollama.Client(host=sys.argv[1])
asked = dict(model="sea", messages=[{"role": "user", "content": "Who?"}], options={"num_predict": 8, "temperature": 0})
whole = client.chat(**asked).message.content
assert "".join(part.message.content for part in client.chat(**asked, stream=True)) == whole
assert client.show("sea").capabilities == ["completion", "tools"]
assert [m.model for m in client.list().models] == ["base:latest", "sea:latest"] and len(client.ps().models) == 2
assert client.pull("sea").status == "success" and client.generate("sea").done
try:
    client.chat(**{**asked, "model": "none"})
except ollama.ResponseError as error:
    print(json.dumps([whole, error.status_code]))
`
  const { stdout } = await promisify(execFile)(python, ['-c', code, url])
  expect(JSON.parse(stdout)).toEqual([(await written('sea')).text, 404])
})
