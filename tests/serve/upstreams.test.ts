// biome-ignore-all lint/suspicious/noExplicitAny: answers and requests are JSON of any form

// A router until an old model is gone: other servers that are asked before a model of this one, or for unknown names.

import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { loadModel, type Model } from 'lowrank'
import { createHandler, type Exchange, type HandlerOptions } from 'lowrank/server'
import { afterAll, beforeAll, beforeEach, expect, it } from 'vitest'
import { enginesHere } from '../engines-here.js'
import { goldenPath } from '../golden.js'

const OLD = 'ft:gpt-4.1-mini:acme::abc'
const chat = (content: string) => ({
  choices: [{ index: 0, message: { role: 'assistant', content }, finish_reason: 'stop' }],
})
const asked: { path: string; headers: IncomingMessage['headers']; body: any }[] = []
let reply: (response: ServerResponse, body: any) => void
let left = 0
const server = createServer(async (request, response) => {
  const chunks: Buffer[] = []
  for await (const chunk of request) chunks.push(chunk as Buffer)
  const body = JSON.parse(Buffer.concat(chunks).toString())
  asked.push({ path: request.url!, headers: request.headers, body })
  response.on('close', () => {
    if (!response.writableEnded) left++
  })
  reply(response, body)
})
const json =
  (status: number, body: object, headers = {}) =>
  (response: ServerResponse) =>
    void response.writeHead(status, { 'content-type': 'application/json', ...headers }).end(JSON.stringify(body))
let url = ''
let model: Model

beforeAll(enginesHere)
beforeAll(async () => {
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`
  model = await loadModel('models/union-3m')
})
afterAll(async () => {
  await model.close()
  server.closeAllConnections()
  server.close()
})
beforeEach(() => {
  asked.length = 0
  reply = json(200, chat('the old answer'))
})

async function serving<T>(options: Partial<HandlerOptions>, work: (ask: Ask) => Promise<T>): Promise<T> {
  const handler = await createHandler({
    ...{ model, adapters: { own: goldenPath('peft', 'f32') }, on: {} },
    ...{ chatTemplate: '{% for m in messages %}{{ m.content }}{% endfor %}' },
    ...options,
  })
  const ask = async (name: string, { headers = {}, signal, path = '/v1/chat/completions', ...fields }: any = {}) => {
    const messages = [{ role: 'user', content: 'And the people' }]
    const body = JSON.stringify({ model: name, messages, max_tokens: 2, ...fields })
    const sent = { 'content-type': 'application/json', ...headers }
    return handler(new Request(`http://localhost${path}`, { method: 'POST', headers: sent, body, signal }))
  }
  const get = async (path: string) => (await handler(new Request(`http://localhost${path}`))).json()
  return work(Object.assign(ask, { get })).finally(() => handler.close())
}
type Ask = ((name: string, options?: object) => Promise<Response>) & { get(path: string): Promise<any> }

const textOf = async (answer: Response) => (await answer.json()).choices?.[0].message.content
const upstream = (more = {}) => ({ aliases: { [OLD]: { model: 'own', upstream: { url, ...more } } } })

it('asks the upstream of an alias before its own model, once, by the name that it has there', async () => {
  await serving(upstream({ model: 'ft:there' }), async (ask) => {
    expect(await textOf(await ask(OLD, { temperature: 0, unknown_to_us: 1 }))).toBe('the old answer')
    expect(asked.map(({ path, body }) => [path, body.model, body.unknown_to_us])).toEqual([
      ['/v1/chat/completions', 'ft:there', 1],
    ])
    expect(await textOf(await ask('own'))).not.toBe('the old answer')
    expect(asked).toHaveLength(1)
    expect((await ask.get('/v1/models')).data.map(({ id }: any) => id)).toContain(OLD)
    expect((await ask.get('/v1/aliases')).data).toEqual([{ id: OLD, object: 'alias', name: OLD, model: 'own' }])
    expect(JSON.stringify(await ask.get('/v1/aliases'))).not.toContain('127.0.0.1')
  })
})

it('answers by itself when the upstream does not, and does not ask again for a model that is gone', async () => {
  await serving(upstream(), async (ask) => {
    const failing = [json(503, {}), json(429, {}), (response: ServerResponse) => void response.destroy()]
    for (const fail of failing) {
      reply = fail
      const answer = await ask(OLD)
      expect([answer.status, await textOf(answer)]).toEqual([200, expect.any(String)])
    }
    expect(asked).toHaveLength(failing.length)
    reply = json(404, { error: { code: 'model_not_found' } })
    expect((await ask(OLD)).status).toBe(200)
    reply = json(200, chat('the old answer'))
    expect(await textOf(await ask(OLD))).not.toBe('the old answer')
    expect(asked).toHaveLength(failing.length + 1)
  })
})

it('passes on what the caller did wrong, and asks nobody after the last day', async () => {
  await serving(upstream(), async (ask) => {
    reply = json(400, { error: { message: 'no such field' } }, { 'retry-after': '7' })
    const answer = await ask(OLD)
    expect([answer.status, answer.headers.get('retry-after'), await answer.json()]).toEqual([
      ...[400, '7', { error: { message: 'no such field' } }],
    ])
  })
  await serving(upstream({ when: '2020-01-01' }), async (ask) => {
    asked.length = 0
    expect((await ask(OLD)).status).toBe(200)
    expect(asked).toEqual([])
  })
})

it('sends names that nothing here answers to the fallback, and no others', async () => {
  await serving({ fallback: url }, async (ask) => {
    expect(await textOf(await ask('gpt-9'))).toBe('the old answer')
    expect(asked[0].body.model).toBe('gpt-9')
    await ask('own')
    await ask('union-3m')
    expect(asked).toHaveLength(1)
    expect((await ask('gpt-9', { path: '/v1/rerank' })).status).toBe(400)
    expect(asked).toHaveLength(1)
    reply = (response) => void response.destroy()
    expect((await ask('gpt-9')).status).toBe(502)
  })
  await serving({}, async (ask) => expect((await ask('gpt-9')).status).toBe(404))
})

it('passes no key of this server on', async () => {
  const sent = () => asked.at(-1)!.headers.authorization
  const [mine, theirs] = ['Bearer mine', 'Bearer theirs']
  const keys = { ...upstream(), apiKeys: ['mine'] }
  await serving(keys, async (ask) => {
    expect((await ask(OLD)).status).toBe(401)
    expect(asked).toEqual([])
    await ask(OLD, { headers: { authorization: mine, cookie: 'a=b' } })
    expect([sent(), asked[0].headers.cookie]).toEqual([undefined, undefined])
    await ask(OLD, { headers: { authorization: mine, 'x-upstream-authorization': theirs } })
    expect(sent()).toBe(theirs)
    expect(asked[1].headers['x-upstream-authorization']).toBeUndefined()
  })
  await serving({ ...keys, upstreamKey: 'environment' }, async (ask) => {
    await ask(OLD, { headers: { authorization: mine } })
    expect(sent()).toBe('Bearer environment')
  })
  await serving(upstream(), async (ask) => {
    await ask(OLD, { headers: { authorization: theirs } })
    expect(sent()).toBe(theirs)
  })
})

it('follows no redirect', async () => {
  await serving({ fallback: url }, async (ask) => {
    reply = (response) => void response.writeHead(307, { location: `${url}/elsewhere` }).end()
    expect((await ask('gpt-9')).status).toBe(502)
    expect(asked).toHaveLength(1)
  })
})

it('passes a stream on piece by piece, and records it as a whole', async () => {
  const recorded: Exchange[] = []
  const piece = (delta: object, finish_reason: string | null = null) =>
    `data: ${JSON.stringify({ choices: [{ index: 0, delta, finish_reason }] })}\n\n`
  const call = (part: object) => ({ tool_calls: [{ index: 0, ...part }] })
  await serving({ ...upstream(), record: (exchange) => void recorded.push(exchange) }, async (ask) => {
    let goOn = () => {}
    reply = (response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' })
      response.write(piece({ role: 'assistant', content: 'Gö' }))
      goOn = () => {
        response.write(piece(call({ id: 'call_1', function: { name: 'find', arguments: '{"a"' } })))
        response.write(piece(call({ function: { arguments: ':1}' } }), 'tool_calls'))
        response.end('data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\ndata: [DONE]\n\n')
      }
    }
    const answer = await ask(OLD, { stream: true })
    const reader = answer.body!.getReader()
    expect(new TextDecoder().decode((await reader.read()).value)).toContain('Gö')
    goOn()
    while (!(await reader.read()).done);
    reply = json(200, chat('whole'))
    await textOf(await ask(OLD))
    reply = json(500, {})
    await ask(OLD)
  })
  expect(recorded).toMatchObject([
    {
      ...{ model: OLD, url, request: { stream: true, model: OLD } },
      answer: {
        choices: [
          {
            message: {
              content: 'Gö',
              tool_calls: [{ id: 'call_1', function: { name: 'find', arguments: '{"a":1}' } }],
            },
            finish_reason: 'tool_calls',
          },
        ],
        usage: { completion_tokens: 4 },
      },
    },
    { url, answer: chat('whole') },
    { model: OLD, answer: { object: 'chat.completion' } },
  ])
  expect(recorded[2].url).toBeUndefined()
})

it('lets the upstream go when the caller leaves', async () => {
  await serving(upstream(), async (ask) => {
    const before = left
    reply = (response) => void response.writeHead(200, { 'content-type': 'text/event-stream' }).write(': wait\n\n')
    const answer = await ask(OLD, { stream: true })
    await answer.body!.cancel()
    while (left === before) await new Promise((resolve) => setTimeout(resolve, 5))
  })
})

it('takes addresses from the operator alone, and checks them', async () => {
  for (const aliases of [
    { a: { upstream: {} } },
    { a: { upstream: { url, when: 'later' } } },
    { a: { url } },
    { a: 3 },
  ])
    await expect(serving({ aliases } as never, async () => {})).rejects.toThrow('aliases')
  await expect(serving({ aliases: { a: { upstream: { url: 'ftp://x' } } } }, async () => {})).rejects.toThrow('address')
  await expect(serving({ fallback: 'x' }, async () => {})).rejects.toThrow('fallback')
  await serving({ fallback: url }, async (ask) => {
    await ask('gpt-9', { upstream: { url: 'http://127.0.0.1:1' }, headers: { 'x-upstream-url': 'http://127.0.0.1:1' } })
    expect(asked).toHaveLength(1)
  })
})
