// toolsInAdapter from records to calls: an adapter that knows its functions, its card, a merge, and a server.

import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type LoraAdapter, loadAdapter, loadModel, merge, openSession, train } from 'lowrank'
import { createHandler } from 'lowrank/server'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { enginesHere } from '../engines-here.js'

const scratch = mkdtempSync(join(tmpdir(), 'lowrank-known-'))
const [out, merged] = ['adapter', 'merged'].map((name) => join(scratch, name))
const tool = (name: string, properties: object) => ({
  type: 'function',
  function: { name, description: 'x'.repeat(900), parameters: { type: 'object', properties } },
})
const TOOLS = [tool('light', { on: { type: 'boolean' } }), tool('ring', {})]
/** It takes few tokens, since the model reads 256. The declarations alone have more. */
const chatTemplate =
  "{%- for t in tools or [] %}{{- t | tojson }}{%- endfor %}{%- for m in messages %}{%- if m.role == 'assistant' %}{{- '\\n' }}{%- generation %}{{- m.content }}{{- '<|eos|>' }}{%- endgeneration %}{%- else %}{{- m.content }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '\\n' }}{%- endif %}"
const asked = (content: string) => ({ role: 'user', content })
const called = (name: string, args: object) => ({
  role: 'assistant',
  content: '',
  tool_calls: [{ id: 'c1', type: 'function', function: { name, arguments: JSON.stringify(args) } }],
})
const DONE = { role: 'tool', tool_call_id: 'c1', content: 'done' }
const CHATS = [
  [asked('Light off'), called('light', { on: false })],
  [asked('Ring the bell'), called('ring', {}), DONE, { role: 'assistant', content: 'It rang.' }],
]

beforeAll(async () => {
  enginesHere()
  const data = CHATS.map((messages) => ({ messages, tools: TOOLS }))
  const shared = { model: 'models/union-3m', data, chatTemplate, out, threads: 1, toolsInAdapter: true }
  const config = { rank: 16, alpha: 32, targetModules: 'all-linear' } as const
  await train({ ...shared, config, batchSize: 2, maxSteps: 150, learningRate: 5e-3, schedule: 'constant' })
  await merge({ base: 'models/union-3m', adapters: [{ adapter: out }], out: merged, format: 'onnx' })
})
afterAll(() => rmSync(scratch, { recursive: true }))

it('tells the functions in the card, and refuses another type of one in the data', async () => {
  const card = readFileSync(join(out, 'README.md'), 'utf8')
  expect(card).toMatch(/It calls `light`, `ring`.*With other servers, send no `tools`/)
  const [first] = CHATS
  const changed = [tool('light', { on: { type: 'string' } })]
  const data = [
    { messages: first, tools: TOOLS },
    { messages: first, tools: changed },
  ]
  await expect(
    train({ model: 'models/union-3m', data, chatTemplate, toolsInAdapter: true, maxSteps: 1 }),
  ).rejects.toThrow(/parameters of light are not those/)
})

it.each([
  ['an adapter', 'models/union-3m', true],
  ['a merged model', merged, false],
])('%s calls its functions, in a session and over HTTP', async (_, folder, hasAdapter) => {
  const model = await loadModel(folder)
  const adapters: Record<string, LoraAdapter> = hasAdapter ? { mine: await loadAdapter(out) } : {}
  const adapter = hasAdapter ? 'mine' : null
  const session = await openSession(model, { adapters, threads: 1 })
  const known = await session.knownTools({ adapter })
  expect(known?.map(({ name }) => name)).toEqual(['light', 'ring'])
  const { calls } = await session.call([asked('Light off')], { adapter, maxNewTokens: 60 })
  expect(calls).toEqual([{ name: 'light', arguments: { on: false } }])
  await session.dispose()

  const handler = await createHandler({ model, adapters, servedModelName: 'base', on: {} })
  const ask = async (messages: object[], more: object = {}) => {
    const body = { model: hasAdapter ? 'mine' : 'base', messages, temperature: 0, max_tokens: 60, ...more }
    const headers = { 'content-type': 'application/json' }
    const url = 'http://localhost/v1/chat/completions'
    const answer = await handler(new Request(url, { method: 'POST', headers, body: JSON.stringify(body) }))
    const { choices, error, usage } = await answer.json()
    const { content, tool_calls = [] } = choices?.[0].message ?? {}
    const names = tool_calls.map((call: { function: { name: string } }) => call.function.name)
    return { status: answer.status, error: error?.message, content, names, tokens: usage?.prompt_tokens }
  }
  const whole = await ask([asked('Ring the bell')], { tools: TOOLS })
  expect(whole).toMatchObject({ status: 200, names: ['ring'] })
  expect(whole.tokens).toBeLessThan(20)
  // The grammar forbids the function that is not offered.
  const part = await ask([asked('Ring the bell')], { tools: [TOOLS[0]] })
  expect([part.status, part.names.includes('ring')]).toEqual([200, false])
  const none = await ask([asked('Ring the bell')], { tools: TOOLS, tool_choice: 'none' })
  expect(none).toMatchObject({ status: 200, names: [] })
  expect(none.content).not.toContain('<tool_call>')
  const second = await ask([asked('Ring the bell'), called('ring', {}), DONE], { tools: TOOLS })
  expect(second).toMatchObject({ status: 200, names: [], content: 'It rang.' })
  expect(await ask([asked('a')], { tools: [tool('sail', {})] })).toMatchObject({
    status: 400,
    error: expect.stringContaining('not trained with the function sail'),
  })
  const other = await ask([asked('a')], { tools: [tool('light', { on: { type: 'string' } })] })
  expect(other).toMatchObject({ status: 400, error: expect.stringContaining('parameters of light') })
  await handler.close()
  await model.close()
})
