// Names of the models of others, which the model that the operator has chosen answers.

import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { loadModel, type Model } from 'lowrank'
import { createHandler, type HandlerOptions } from 'lowrank/server'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { enginesHere } from '../engines-here.js'
import { goldenPath } from '../golden.js'

const TEMPLATE = '{% for m in messages %}{{ m.content }}{% endfor %}'
let model: Model

beforeAll(enginesHere)
beforeAll(async () => {
  model = await loadModel('models/union-3m')
})
afterAll(() => model.close())

async function answers(options: Partial<HandlerOptions>, asked: readonly (readonly [name: string, path?: string])[]) {
  const handler = await createHandler({
    ...{ model, servedModelName: 'base', adapters: { sea: goldenPath('peft', 'f32') }, chatTemplate: TEMPLATE, on: {} },
    ...options,
  })
  const all: unknown[] = []
  for (const [name, path = '/v1/chat/completions'] of asked) {
    const said = path === '/v1/responses' ? { input: 'Who?' } : { messages: [{ role: 'user', content: 'Who?' }] }
    const most = path === '/v1/messages' ? { max_tokens: 2 } : {}
    const shown = { ...said, ...most, ...(path === '/api/chat' && { stream: false }) }
    const headers = { 'content-type': 'application/json' }
    const body = JSON.stringify({ model: name, ...shown })
    const response = await handler(new Request(`http://localhost${path}`, { method: 'POST', headers, body }))
    const answer = (await response.json()) as { model?: string }
    all.push(response.status === 200 ? answer.model : response.status)
  }
  await handler.close()
  return all
}

describe('defaultModel', () => {
  it('answers in all forms, and the answer names it', async () => {
    const asked = [
      ...(['gpt-5-mini', 'o3', 'o4-mini', 'chatgpt-4o-latest', 'text-embedding-3-small'] as const).map((name) => [
        name,
      ]),
      ...[
        ['gpt-5', '/v1/responses'],
        ['claude-opus-4-5', '/v1/messages'],
        ['gpt-5:latest', '/api/chat'],
      ],
    ] as [string, string?][]
    expect(await answers({ defaultModel: 'sea', maxTokens: 2 }, asked)).toEqual(asked.map(() => 'sea'))
    expect(await answers({ maxTokens: 2 }, asked)).toEqual(asked.map(() => 404))
  })

  it('leaves fine-tuned and misspelt names alone, whatever the patterns', async () => {
    const asked: [string][] = [['ft:gpt-4o-mini:acme::1'], ['seaa'], ['opus'], ['my-gpt-5'], ['gptx5']]
    expect(await answers({ defaultModel: 'sea' }, asked)).toEqual([404, 404, 404, 404, 404])
    const options = { defaultModel: 'base', defaultModelFor: ['*a', 'v[0-9].x'], maxTokens: 2 }
    const names: [string][] = [['ft:a'], ['llama'], ['sea'], ['v1.x'], ['v1yx'], ['gpt-5']]
    expect(await answers(options, names)).toEqual([404, 'base', 'sea', 'base', 404, 404])
  })

  it('comes after adapters, aliases and the fallback', async () => {
    const adapters = { 'gpt-own': goldenPath('peft', 'f32') }
    const options = { adapters, aliases: { 'gpt-alias': 'gpt-own' }, defaultModel: 'base', maxTokens: 2 }
    const asked: [string][] = [['gpt-own'], ['gpt-alias'], ['gpt-other']]
    expect(await answers(options, asked)).toEqual(['gpt-own', 'gpt-alias', 'base'])
    const other = createServer((_, response) => {
      response.setHeader('content-type', 'application/json').end(JSON.stringify({ model: 'of the fallback' }))
    })
    await new Promise<void>((resolve) => other.listen(0, '127.0.0.1', resolve))
    const fallback = `http://127.0.0.1:${(other.address() as AddressInfo).port}/v1`
    expect(await answers({ ...options, fallback }, asked)).toEqual(['gpt-own', 'gpt-alias', 'of the fallback'])
    other.close()
  })
})
