// Features for operators: keys and rights, ids and logs of requests, probes, metrics, fair turns, and adapters from the
// Hub.

import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { configureHub, loadModel, type Model } from 'lowrank'
import {
  createHandler,
  folderOfAdapters,
  type Handler,
  type HandlerOptions,
  hubAdapters,
  listen,
  parseApiKey,
  type RequestEntry,
} from 'lowrank/server'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Random } from '../../src/core/base/random.js'
import { Gate } from '../../src/serve/gate.js'
import { VERSION } from '../../src/serve/gen/version.js'
import { eventStream, HttpError, OPENAI } from '../../src/serve/http.js'
import { ROUTES } from '../../src/serve/routes.js'
import { enginesHere } from '../engines-here.js'
import { FakeHub, TOKEN } from '../files/io/hub/server.js'
import { goldenPath } from '../golden.js'

let model: Model
const entries: RequestEntry[] = []
const KEYS = { admin: 'root-secret', alice: 'alice-secret', bob: 'bob-secret' }

const create = (options: Partial<HandlerOptions> = {}) =>
  createHandler({
    ...{
      model,
      servedModelName: ['base', 'gpt-4o-mini'],
      on: { request: (entry: RequestEntry) => void entries.push({ ...entry }) },
    },
    ...options,
  })

beforeAll(enginesHere)
beforeAll(async () => {
  model = await loadModel('models/union-3m')
})
afterAll(() => model.close())

function request(path: string, body?: object, headers: Record<string, string> = {}, method?: string): Request {
  const all = { 'content-type': 'application/json', ...headers }
  return new Request(`http://localhost${path}`, {
    method: method ?? (body === undefined ? 'GET' : 'POST'),
    headers: all,
    ...(body !== undefined && { body: JSON.stringify(body) }),
  })
}

const bearer = (key: string) => ({ authorization: `Bearer ${key}` })
const QUICK = { prompt: 'And the people', max_tokens: 4, temperature: 0 }
const last = () => entries.at(-1)!

describe('keys', () => {
  let handler: Handler
  beforeAll(async () => {
    handler = await create({
      apiKeys: [{ key: KEYS.admin, isAdmin: true }, { key: KEYS.alice, name: 'alice' }, KEYS.bob],
      resolveAdapter: folderOfAdapters('tests/golden/peft'),
    })
  })
  afterAll(() => handler.close())

  const callers: [string, Record<string, string>][] = [
    ['no key', {}],
    ['a wrong key', bearer(`${KEYS.alice}x`)],
    ['a key', bearer(KEYS.alice)],
    ['a key as x-api-key', { 'x-api-key': KEYS.bob }],
    ['an admin key', bearer(KEYS.admin)],
  ]

  it.each(
    Object.entries(ROUTES)
      .flatMap(([path, methods]) => Object.entries(methods).map(([method, { right }]) => ({ path, method, right })))
      .flatMap((route) => callers.map(([who, headers]) => ({ ...route, who, headers }))),
  )('$method $path for $who', async ({ path, method, right, who, headers }) => {
    const body = method === 'POST' ? {} : undefined
    const { status } = await handler(request(path.replace('*', 'base'), body, headers, method))
    const isKnown = !/no|wrong/.test(who)
    const expected =
      right === 'anyone' ? 'open' : !isKnown ? 401 : right === 'admin' && !who.includes('admin') ? 403 : 'open'
    if (expected === 'open') expect([401, 403]).not.toContain(status)
    else expect(status).toBe(expected)
    expect(last().key).toBe(isKnown ? ({ 'a key': 'alice', 'an admin key': 'admin' }[who] ?? 'default') : undefined)
  })

  it('load an unknown model of the folder only if they are admins’', async () => {
    const ask = (key: string, model: string) => handler(request('/v1/completions', { ...QUICK, model }, bearer(key)))
    expect((await ask(KEYS.alice, 'f32')).status).toBe(404)
    expect((await ask(KEYS.admin, 'f32')).status).toBe(200)
    expect((await ask(KEYS.alice, 'f32')).status).toBe(200)
    expect(last()).toMatchObject({ key: 'alice', model: 'f32' })
  })

  it('are read with names, priorities and rights', () => {
    expect(parseApiKey('secret')).toMatchObject({ key: 'secret', name: undefined, isAdmin: false })
    expect(parseApiKey('team=a=b')).toMatchObject({ key: 'a=b', name: 'team' })
    expect(parseApiKey('c2VjcmV0==')).toMatchObject({ key: 'c2VjcmV0==', name: undefined })
    expect(parseApiKey('team=x priority=-2 admin')).toMatchObject({ key: 'x', isAdmin: true, priority: -2 })
    for (const text of ['', 'team=x fast', 'a b']) expect(parseApiKey(text)).toBeUndefined()
  })

  it('of which one is empty are refused', async () => {
    await expect(create({ apiKeys: [{ name: 'x' } as never] })).rejects.toThrow(/apiKeys: not valid/)
    await expect(create({ adapters: { 'a,b': goldenPath('peft', 'f32') } })).rejects.toThrow(/name with a comma/)
  })
})

describe('requests', () => {
  let handler: Handler
  beforeAll(async () => {
    handler = await create({ adapters: { peft: goldenPath('peft', 'f32') } })
  })
  afterAll(() => handler.close())

  it('have an id in the answer and the log, also errors and streams; the log has no content', async () => {
    const answer = await handler(request('/v1/completions', QUICK, { 'x-request-id': 'mine-1' }))
    expect([answer.status, answer.headers.get('x-request-id')]).toEqual([200, 'mine-1'])
    expect(last()).toMatchObject({ id: 'mine-1', route: '/v1/completions', status: 200, promptTokens: 5, newTokens: 4 })
    expect(last().firstTokenMs).toBeLessThanOrEqual(last().ms)
    const failed = await handler(request('/v1/completions', { nonsense: 'SECRET' }, { 'x-request-id': 'a b' }))
    expect(failed.headers.get('x-request-id')).toMatch(/^[\w-]{36}$/)
    expect(last()).toMatchObject({ id: failed.headers.get('x-request-id'), status: 400 })
    const count = entries.length
    const stream = await handler(request('/v1/completions', { ...QUICK, model: 'peft', max_tokens: 60, stream: true }))
    await stream.text()
    await expect.poll(() => entries.length).toBe(count + 1)
    expect(last()).toMatchObject({ model: 'peft', newTokens: 60, id: stream.headers.get('x-request-id') })
    expect(JSON.stringify(entries)).not.toMatch(/SECRET|people/)
  })

  it('find the base by each of its names', async () => {
    for (const model of ['base', 'gpt-4o-mini']) {
      const { choices, model: told } = await (await handler(request('/v1/completions', { ...QUICK, model }))).json()
      expect([choices.length, told]).toEqual([1, model])
    }
    const mixed = await handler(request('/v1/completions', { ...QUICK, model: 'gpt-4o-mini:peft' }))
    expect([mixed.status, last().model]).toEqual([200, 'peft'])
    const { data } = await (await handler(request('/v1/models'))).json()
    expect(data.map(({ id }: { id: string }) => id)).toEqual(['base', 'gpt-4o-mini', 'peft'])
  })

  it('end at the deadline of their header', async () => {
    const body = { ...QUICK, max_tokens: 200, n: 8 }
    const answer = await handler(request('/v1/completions', body, { 'x-request-timeout': '0.01' }))
    expect([answer.status, (await answer.json()).error.code]).toEqual([503, 'timeout'])
  })

  it('tell the version of the package', async () => {
    const { version } = JSON.parse(readFileSync('package.json', 'utf8'))
    expect(VERSION).toBe(version)
    expect(await (await handler(request('/version'))).json()).toEqual({ version })
  })

  it('of pages from named origins may send what clients send', async () => {
    const open = await create({ origins: ['https://app.example'] })
    const headers = {
      origin: 'https://app.example',
      'access-control-request-method': 'DELETE',
      'access-control-request-headers': 'anthropic-version, x-stainless-os',
    }
    const { status, headers: told } = await open(request('/v1/models', undefined, headers, 'OPTIONS'))
    expect([status, told.get('access-control-allow-headers')]).toEqual([204, 'anthropic-version, x-stainless-os'])
    expect(told.get('access-control-allow-methods')).toContain('DELETE')
    expect(told.get('access-control-allow-origin')).toBe('https://app.example')
    await open.close()
  })
})

describe('probes', () => {
  it('say that a server loads, is ready, drains; metrics have a port of their own', async () => {
    let opened: (handler: Handler) => void = () => {}
    const opening = new Promise<Handler>((resolve) => {
      opened = resolve
    })
    const { url, metricsUrl, close } = await listen(opening, { port: 0, metricsPort: 0 })
    const status = async (path: string, base = url) => (await fetch(`${base}${path}`)).status
    expect([await status('/health'), await status('/ready'), await status('/v1/models')]).toEqual([200, 503, 503])
    // Longer than proxies keep idle connections.
    expect((await fetch(`${url}/health`)).headers.get('keep-alive')).toBe('timeout=75')
    const handler = await create({ apiKeys: ['secret'], adapters: { peft: goldenPath('peft', 'f32') } })
    opened(handler)
    await expect.poll(() => status('/ready')).toBe(200)
    expect([await status('/metrics'), await status('/metrics', metricsUrl)]).toEqual([401, 200])
    expect(await status('/v1/models', metricsUrl)).toBe(404)
    await handler(request('/v1/completions', { ...QUICK, prompt: 'And the people '.repeat(15) }, bearer('secret')))
    await handler(request('/v1/completions', { ...QUICK, prompt: 'And the people '.repeat(15) }, bearer('secret')))
    const text = await (await fetch(`${metricsUrl}/metrics`)).text()
    expect(text).toMatch(
      /^vllm:lora_requests_info\{max_lora="64",running_lora_adapters="peft",waiting_lora_adapters=""\}/m,
    )
    expect(text).toMatch(/^vllm:cache_config_info\{block_size="16",num_gpu_blocks="[1-9]\d+"\} 1$/m)
    expect(text).toMatch(/^vllm:kv_cache_usage_perc 0$/m)
    expect(text).toMatch(/^vllm:prefix_cache_hits_total [1-9]/m)
    const running = handler(request('/v1/completions', { ...QUICK, max_tokens: 150 }, bearer('secret')))
    await expect.poll(() => handler.metrics()).toMatch(/^vllm:kv_cache_usage_perc [\d.e-]*[1-9]/m)
    const drained = handler.drain()
    expect([await status('/health'), await status('/ready')]).toEqual([200, 503])
    expect((await running).status).toBe(200)
    await drained
    await close()
    await handler.close()
  })
})

describe('turns', () => {
  const signal = new AbortController().signal

  it('go to the lowest priority, then to the key with the fewest running', async () => {
    const gate = new Gate(2, 100)
    const order: string[] = []
    const leaves: (() => void)[] = []
    const enter = async (key: string, priority = 0) => {
      const leave = await gate.enter({ key, priority, signal })
      order.push(key)
      leaves.push(leave)
    }
    const all = [...Array.from({ length: 6 }, () => enter('many')), enter('few'), enter('few'), enter('urgent', -1)]
    while (order.length < all.length) {
      await new Promise((resolve) => setTimeout(resolve))
      leaves.shift()?.()
    }
    expect(order.slice(0, 3)).toEqual(['many', 'many', 'urgent'])
    expect(order.slice(3, 7).filter((key) => key === 'few')).toHaveLength(2)
    for (const leave of leaves) leave()
    await gate.idle()
  })

  it('go to a key with fewer running, though another was admitted longer ago', async () => {
    const gate = new Gate(4, 2)
    const order: string[] = []
    const enter = async (key: string) => {
      const leave = await gate.enter({ key, priority: 0, signal })
      order.push(key)
      return leave
    }
    const places = ['two', 'two', 'one', 'last', 'two', 'one'].map(enter)
    for (const place of [places[3], places[0]]) {
      const leave = await place
      leave()
      await new Promise((resolve) => setImmediate(resolve))
    }
    expect(order).toEqual(['two', 'two', 'one', 'last', 'one', 'two'])
    for (const place of [1, 2, 4, 5]) (await places[place])()
    await gate.idle()
  })

  it('come later by the field priority, but not sooner than the key allows', async () => {
    const handler = await create({ apiKeys: Object.values(KEYS), maxRunning: 1 })
    const order: string[] = []
    const ask = async (name: string, key: string, fields: object) => {
      const answer = await handler(request('/v1/completions', { ...QUICK, ...fields }, bearer(key)))
      expect(answer.status).toBe(200)
      order.push(name)
    }
    const first = ask('first', KEYS.admin, { max_tokens: 100 })
    await expect.poll(() => handler.metrics()).toMatch(/num_requests_running [^0]/)
    const others: Promise<void>[] = []
    for (const [name, key, priority] of [
      ['raised', KEYS.alice, 5],
      ['plain', KEYS.alice, 0],
      ['lowered', KEYS.bob, -5],
    ] as const) {
      others.push(ask(name, key, { priority }))
      await expect.poll(() => handler.metrics()).toContain(`num_requests_waiting ${others.length}`)
    }
    await Promise.all([first, ...others])
    expect(order).toEqual(['first', 'plain', 'lowered', 'raised'])
    await handler.close()
  })

  it('are there for a key though another has filled the queue', async () => {
    const gate = new Gate(1, 4)
    const leave = await gate.enter({ key: 'many', priority: 0, signal })
    const waiting = Array.from({ length: 4 }, () => gate.enter({ key: 'many', priority: 0, signal }))
    const lastOfMany = waiting[3].catch((error) => error)
    const few = gate.enter({ key: 'few', priority: 0, signal })
    expect(await lastOfMany).toMatchObject({ status: 429, code: 'queue_full' })
    await expect(gate.enter({ key: 'many', priority: 0, signal })).rejects.toMatchObject({ status: 429 })
    leave()
    const leaveFew = await few
    expect(gate.waiting).toHaveLength(3)
    leaveFew()
    for (const place of waiting.slice(0, 3)) (await place)()
    await gate.idle()
  })

  it('come to a key no later than twice as often as among two equal callers, though another key has 32', async () => {
    /**
     * The 95th percentile of the steps that a request of the key `few` waits and runs, beside `many` callers of the key
     * `many`.
     */
    async function stepsOfFew(many: number): Promise<number> {
      const gate = new Gate(8, 64)
      const random = new Random(1, 'turns')
      const running = new Set<{ left: number; end: () => void }>()
      const steps: number[] = []
      let now = 0
      let isOver = false
      const caller = async (key: string) => {
        while (!isOver) {
          const asked = now
          const leave = await gate.enter({ key, priority: 0, signal: new AbortController().signal })
          const left = 8 + Math.floor(17 * random.uniform())
          await new Promise<void>((end) => running.add({ left, end }))
          leave()
          if (key === 'few') steps.push(now - asked)
        }
      }
      const callers = [...Array.from({ length: many }, () => caller('many')), caller('few')]
      const settled = () => new Promise((resolve) => setImmediate(resolve))
      while (steps.length < 100 || running.size > 0) {
        isOver = steps.length >= 100
        await settled()
        now++
        for (const text of running) {
          if (--text.left > 0) continue
          running.delete(text)
          text.end()
        }
      }
      await Promise.all(callers)
      return steps.sort((a, b) => a - b)[94]
    }
    const equal = await stepsOfFew(1)
    expect(equal).toBeGreaterThan(20)
    expect(await stepsOfFew(32)).toBeLessThanOrEqual(2 * equal)
  })
})

it('a stream sends its headers and comments before the first event; errors that come soon are statuses', async () => {
  const { signal } = new AbortController()
  const wait = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms))
  const told = (error: unknown) => error as HttpError
  const slow = await eventStream(
    async ({ send }) => {
      await wait(120)
      send({ text: 'a' })
      throw new HttpError(400, 'too late')
    },
    OPENAI,
    told,
    signal,
    { headersMs: 5, commentMs: 20 },
  )
  const text = await slow.text()
  expect(text).toMatch(
    /^(: waiting\n\n){2,}data: \{"text":"a"\}\n\ndata: \{"error":.*too late.*\n\ndata: \[DONE\]\n\n$/,
  )
  const soon = eventStream(() => Promise.reject(new HttpError(400, 'soon')), OPENAI, told, signal)
  await expect(soon).rejects.toMatchObject({ status: 400 })
})

describe('adapters from the Hub', () => {
  const scratch = mkdtempSync(join(tmpdir(), 'lowrank-serve-hub-'))
  const hub = new FakeHub()
  const before = { HF_HOME: process.env.HF_HOME, HF_TOKEN: process.env.HF_TOKEN }
  beforeAll(async () => {
    await hub.start()
    const files = Object.fromEntries(
      ['adapter_config.json', 'adapter_model.safetensors'].map((name) => [
        name,
        readFileSync(join(goldenPath('peft', 'f32'), name)),
      ]),
    )
    for (const id of ['team/sea', 'other/sea']) hub.repositories.set(id, { files })
    hub.repositories.set('team/private', { files, access: 'private' })
    Object.assign(process.env, { HF_HOME: scratch, HF_TOKEN: TOKEN })
    configureHub({ endpoint: hub.endpoint })
  })
  afterAll(async () => {
    for (const [name, value] of Object.entries(before)) {
      if (value === undefined) delete process.env[name]
      else process.env[name] = value
    }
    configureHub({ endpoint: undefined })
    await hub.stop()
    rmSync(scratch, { recursive: true })
  })

  it('come by the load route alone, without the token of the server, and show their commit', async () => {
    const handler = await create({ resolveAdapter: hubAdapters('hub:team/*') })
    const load = async (lora_path: string, lora_name = 'sea') =>
      (await handler(request('/v1/load_lora_adapter', { lora_name, lora_path }))).status
    expect((await handler(request('/v1/completions', { ...QUICK, model: 'team/sea' }))).status).toBe(404)
    expect(await load('other/sea')).toBe(404)
    expect(await load('team/private')).toBe(400)
    expect(hub.seen.filter(({ authorization }) => authorization !== undefined)).toEqual([])
    expect(await load('team/sea')).toBe(200)
    const { root } = await (await handler(request('/v1/models/sea'))).json()
    expect(root).toBe(`team/sea@${hub.commitOf('team/sea', 'main')}`)
    expect((await handler(request('/v1/completions', { ...QUICK, model: 'sea' }))).status).toBe(200)
    await handler.close()
  })

  it('have a limit of bytes', async () => {
    hub.repositories.set('team/large', hub.repositories.get('team/sea')!)
    const handler = await create({ resolveAdapter: hubAdapters('hub:team/large', 1000) })
    const answer = await handler(request('/v1/load_lora_adapter', { lora_name: 'x', lora_path: 'team/large' }))
    expect([answer.status, (await answer.json()).error.message]).toEqual([
      400,
      expect.stringMatching(/at most 1000 bytes/),
    ])
    await handler.close()
    expect(() => hubAdapters('team/*')).toThrow(/hub:ORG/)
  })
})
