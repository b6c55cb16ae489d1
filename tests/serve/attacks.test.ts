// Callers that try to stop a server, to keep it busy for ever, or to learn secrets.

import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { request as httpRequest, type IncomingMessage } from 'node:http'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { loadModel, type Model } from 'lowrank'
import { createHandler, folderOfAdapters, type Handler, type HandlerOptions, listen } from 'lowrank/server'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { GrowingBytes, Inbox } from '../../src/serve/bodies/inbox.js'
import { jsonResponse } from '../../src/serve/bodies/pieces.js'
import { eventStream, HttpError, OPENAI } from '../../src/serve/http.js'
import { SERVER } from '../../src/serve/keys.js'
import { Outbox } from '../../src/serve/node/outbox.js'
import { enginesHere } from '../engines-here.js'
import { goldenPath } from '../golden.js'

const scratch = mkdtempSync(join(tmpdir(), 'lowrank-attacks-'))
const allowed = join(scratch, 'adapters')
let model: Model
let handler: Handler

const create = (options: Partial<HandlerOptions> = {}) =>
  createHandler({ model, servedModelName: 'base', on: {}, ...options })

beforeAll(enginesHere)
beforeAll(async () => {
  const folder = join(scratch, 'model')
  cpSync('models/union-3m', folder, { recursive: true })
  writeFileSync(join(folder, 'chat_template.jinja'), '{% for m in messages %}{{ m.content }}\n{% endfor %}')
  model = await loadModel(folder)
  for (const name of ['f32', 'bf16', 'f16']) cpSync(goldenPath('peft', name), join(allowed, name), { recursive: true })
  handler = await create({ resolveAdapter: folderOfAdapters(allowed) })
})
afterAll(async () => {
  await handler.close()
  await model.close()
  rmSync(scratch, { recursive: true })
})

const QUICK = { prompt: 'And the people', max_tokens: 4, temperature: 0 }

function request(path: string, body: object | string): Request {
  const text = typeof body === 'string' ? body : JSON.stringify(body)
  return new Request(`http://localhost${path}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: text,
  })
}

async function post(path: string, body: object | string, own = handler): Promise<{ status: number; text: string }> {
  const response = await own(request(path, body))
  return { status: response.status, text: await response.text() }
}

/** Returns the longest time for which this thread was blocked during the work. */
async function blockedWhile(work: () => Promise<unknown>): Promise<number> {
  let longest = 0
  let last = performance.now()
  const timer = setInterval(() => {
    longest = Math.max(longest, performance.now() - last)
    last = performance.now()
  }, 5)
  await work()
  clearInterval(timer)
  return Math.max(longest, performance.now() - last)
}

const nested = (depth: number) => '['.repeat(depth) + ']'.repeat(depth)
const chat = (count: number) => Array.from({ length: count }, () => ({ role: 'user', content: 'a' }))
const long = 'n'.repeat(7 << 20)

describe('bodies are bounded', () => {
  it.each<[string, string, object | string, RegExp]>([
    ['nesting', '/v1/completions', `{"prompt":${nested(200_000)}}`, /nested more than 100 levels/],
    [
      'nesting in a chat',
      '/v1/chat/completions',
      `{"messages":[{"role":"user","content":${nested(200_000)}}]}`,
      /nested/,
    ],
    [
      'nesting in a template',
      '/v1/chat/completions',
      `{"messages":[{"role":"user","content":"a"}],"chat_template_kwargs":{"a":${nested(200_000)}}}`,
      /nested/,
    ],
    ['values', '/v1/completions', `{"prompt":[${'1,'.repeat(2_000_000)}1]}`, /more than 262144 values/],
    ['messages', '/v1/chat/completions', { messages: chat(20_000) }, /messages: .*1 to 4096/],
    ['items', '/v1/responses', { input: chat(20_000) }, /input: .*at most 4096/],
    [
      'tools',
      '/v1/chat/completions',
      { messages: chat(1), tools: Array(129).fill({ type: 'function', function: {} }) },
      /tools: .*at most 128/,
    ],
    [
      'tools of a response',
      '/v1/responses',
      { input: 'a', tools: Array(129).fill({ type: 'function' }) },
      /tools: .*at most 128/,
    ],
    ['stop strings', '/v1/completions', { ...QUICK, stop: Array(100_000).fill('z') }, /stop: .*at most 32/],
    ['a stop string', '/v1/completions', { ...QUICK, stop: long }, /stop: /],
    ['prompts', '/v1/completions', { ...QUICK, prompt: Array(257).fill('a') }, /prompt: .*at most 256/],
    ['a name', '/v1/completions', { ...QUICK, model: long }, /model: .*at most 1024 characters/],
    ['a user', '/v1/completions', { ...QUICK, user: long }, /user: /],
    [
      'a mix',
      '/v1/completions',
      { ...QUICK, adapter: Object.fromEntries(Array.from({ length: 65 }, (_, i) => [`a${i}`, 1])) },
      /adapter: .*at most 64/,
    ],
    ['the name of a field', '/v1/completions', { ...QUICK, [long]: 1 }, /no such option/],
    ['texts for vectors', '/v1/embeddings', { input: Array(2049).fill('a') }, /input: .*at most 2048/],
    [
      'the length of texts for labels',
      '/classify',
      { input: 'ab '.repeat(400_000) },
      /input: .*1048576 characters together/,
    ],
    [
      'a word for labels',
      '/classify',
      { input: 'a'.repeat(1_000_000) },
      /input: a word has more than 65536 characters/,
    ],
    ['a word of a prompt', '/v1/completions', { ...QUICK, prompt: 'ab'.repeat(500_000) }, /^This model's maximum/],
    [
      'spaces of a prompt',
      '/v1/completions',
      { ...QUICK, prompt: `a${' '.repeat(1_000_000)}` },
      /^This model's maximum/,
    ],
    [
      'a word of a chat',
      '/v1/chat/completions',
      { messages: [{ role: 'user', content: 'ab'.repeat(500_000) }] },
      /^This model's maximum context length is 256 tokens/,
    ],
    [
      'a word of a response',
      '/v1/responses',
      { input: 'ab'.repeat(500_000) },
      /^This model's maximum context length is 256 tokens/,
    ],
    [
      'a long prompt',
      '/v1/completions',
      { ...QUICK, prompt: 'the sea '.repeat(500_000) },
      /^This model's maximum context length is 256 tokens/,
    ],
    ['the name of an adapter', '/v1/load_lora_adapter', { lora_name: long, lora_path: 'f32' }, /lora_name: /],
    ['an empty name', '/v1/load_lora_adapter', { lora_name: '', lora_path: 'f32' }, /lora_name: /],
    ['a path', '/v1/load_lora_adapter', { lora_name: 'a', lora_path: long }, /lora_path: /],
  ])('in %s', async (_, path, body, message) => {
    const { status, text } = await post(path, body)
    expect([status, JSON.parse(text).error.message]).toEqual([400, expect.stringMatching(message)])
    expect(text.length).toBeLessThan(2000)
  })

  it('so that a long prompt leaves others their turn', async () => {
    const sea = 'the sea and the people '.repeat(300_000)
    const whole = performance.now()
    model.tokenizer!.encode(sea)
    const time = performance.now() - whole
    expect(await blockedWhile(() => post('/v1/completions', { ...QUICK, prompt: sea }))).toBeLessThan(
      Math.max(1000, time / 2),
    )
  })

  it('in the items of a response, which are read once each', async () => {
    const items = (count: number) =>
      Array.from({ length: count }, (_, i) => [
        { type: 'function_call', call_id: `${i}`, name: 'f', arguments: '{}' },
        { type: 'function_call_output', call_id: `${i}`, output: 'x' },
      ]).flat()
    const { status, text } = await post('/v1/responses', { input: items(2048) })
    expect([status, text]).toEqual([400, expect.stringContaining("This model's maximum context length is 256 tokens")])
    const few = await post('/v1/responses', { input: items(3), max_output_tokens: 2 })
    expect([few.status, few.text]).toEqual([200, expect.stringContaining('output_text')])
  })

  it('but not where common clients are', async () => {
    const bodies: [string, object][] = [
      ['/v1/completions', { ...QUICK, stop: Array.from({ length: 20 }, (_, i) => `\nUser${i}:`) }],
      ['/v1/completions', { ...QUICK, top_p: 0, temperature: 1 }],
      ['/v1/completions', { ...QUICK, top_p: 0, top_k: -1, temperature: 1 }],
    ]
    for (const [path, body] of bodies) expect((await post(path, body)).status).toBe(200)
    const greedy = JSON.parse((await post('/v1/completions', QUICK)).text)
    const none = JSON.parse((await post('/v1/completions', { ...QUICK, top_p: 0, temperature: 1 })).text)
    expect(none.choices[0].text).toBe(greedy.choices[0].text)
  })
})

describe('adapters', () => {
  it('of one name from four folders at once: one is added, and all others are refused', async () => {
    const own = await create({ resolveAdapter: folderOfAdapters(allowed) })
    const paths = ['f32', 'bf16', 'f16', './f32']
    const loads = paths.map((path) => post('/v1/load_lora_adapter', { lora_name: 'x', lora_path: path }, own))
    const answers = await Promise.all(loads)
    expect(answers.map(({ status }) => status).sort()).toEqual([200, 400, 400, 400])
    expect(own.session.adapters).toEqual(['x'])
    await own.close()
  })

  it('have one slot, however they are spelled, at once and after one another', async () => {
    const own = await create({ resolveAdapter: folderOfAdapters(allowed) })
    const names = ['f32', './f32', 'f32/', 'f32/.', './f32/../f32', 'bf16/../f32']
    symlinkSync(join(allowed, 'f32'), join(allowed, 'latest'))
    const asked = [...names, 'latest', ...names].map((name) => post('/v1/completions', { ...QUICK, model: name }, own))
    expect(new Set((await Promise.all(asked)).map(({ status }) => status))).toEqual(new Set([200]))
    for (const name of names) expect((await post('/v1/completions', { ...QUICK, model: name }, own)).status).toBe(200)
    expect(own.session.adapters).toHaveLength(1)
    const mixed = await post('/v1/completions', { ...QUICK, adapter: { f32: 0.5, './f32': 0.5 } }, own)
    const whole = await post('/v1/completions', { ...QUICK, model: 'f32' }, own)
    expect(JSON.parse(mixed.text).choices).toEqual(JSON.parse(whole.text).choices)
    await own.close()
  })

  it('with links that lead out are not read, in no file; links inside and those of the Hub’s cache are', async () => {
    const secret = join(scratch, 'secret.json')
    writeFileSync(secret, 'SECRET')
    for (const file of ['adapter_config.json', 'adapter_model.safetensors', 'chat_template.jinja', 'base.json']) {
      const name = `linked-${file}`
      cpSync(goldenPath('peft', 'f32'), join(allowed, name), { recursive: true })
      rmSync(join(allowed, name, file), { force: true })
      symlinkSync(secret, join(allowed, name, file))
      const { status, text } = await post('/v1/completions', { ...QUICK, model: name })
      if (file === 'base.json') expect(status).toBe(200)
      else
        expect([status, text]).toEqual([400, expect.stringMatching(/a link that leads out of the folder of adapters/)])
      expect(text).not.toMatch(/SECRET|Unexpected token|secret\.json/)
      expect(text).not.toContain(scratch)
    }
    // A link inside the adapter's folder leads to an adapter outside.
    mkdirSync(join(allowed, 'deep'))
    symlinkSync(goldenPath('peft', 'f32'), join(allowed, 'deep', 'inner'))
    expect((await post('/v1/completions', { ...QUICK, model: 'deep' })).status).toBe(400)
    mkdirSync(join(allowed, 'inside'))
    for (const file of ['adapter_config.json', 'adapter_model.safetensors']) {
      symlinkSync(join('..', 'bf16', file), join(allowed, 'inside', file))
    }
    expect((await post('/v1/completions', { ...QUICK, model: 'inside' })).status).toBe(200)
    const repository = join(scratch, 'hub', 'models--me--sea')
    cpSync(goldenPath('peft', 'f32'), join(repository, 'blobs'), { recursive: true })
    mkdirSync(join(repository, 'snapshots', 'abc'), { recursive: true })
    for (const file of ['adapter_config.json', 'adapter_model.safetensors']) {
      symlinkSync(join('..', '..', 'blobs', file), join(repository, 'snapshots', 'abc', file))
    }
    const own = await create({ resolveAdapter: folderOfAdapters(join(repository, 'snapshots')) })
    expect((await post('/v1/completions', { ...QUICK, model: 'abc' }, own)).status).toBe(200)
    await own.close()
  })

  it('that are damaged are refused without a path of the server', async () => {
    const broken: [string, (folder: string) => void][] = [
      ['no-config', (folder) => rmSync(join(folder, 'adapter_config.json'))],
      ['no-weights', (folder) => rmSync(join(folder, 'adapter_model.safetensors'))],
      ['no-json', (folder) => writeFileSync(join(folder, 'adapter_config.json'), '/etc/hostname')],
      ['no-tensors', (folder) => writeFileSync(join(folder, 'adapter_model.safetensors'), 'x'.repeat(100))],
      [
        'folders',
        (folder) => {
          rmSync(join(folder, 'adapter_config.json'))
          mkdirSync(join(folder, 'adapter_config.json'))
        },
      ],
      [
        'empty',
        (folder) => {
          rmSync(folder, { recursive: true })
          mkdirSync(folder)
        },
      ],
    ]
    for (const [name, damage] of broken) {
      cpSync(goldenPath('peft', 'f32'), join(allowed, name), { recursive: true })
      damage(join(allowed, name))
      for (const [path, body] of [
        ['/v1/completions', { ...QUICK, model: name }],
        ['/v1/load_lora_adapter', { lora_name: `my-${name}`, lora_path: name }],
      ] as const) {
        const { status, text } = await post(path, body)
        expect([name, status]).toEqual([name, 400])
        expect(text).not.toContain(scratch)
        expect(text).not.toContain(tmpdir())
      }
    }
  })
})

/** Starts a server, and returns a function that stops it with a signal. */
async function served(handle: Parameters<typeof listen>[0], drainSeconds: number) {
  const { url, close } = await listen(handle, { port: 0, drainSeconds })
  const { port } = new URL(url)
  return { port: Number(port), close }
}

function ask(
  port: number,
  body: string,
  declared = body.length,
): { sent: ReturnType<typeof httpRequest>; answer: Promise<IncomingMessage> } {
  const sent = httpRequest({
    port,
    method: 'POST',
    path: '/v1/completions',
    headers: { 'content-type': 'application/json', 'content-length': declared },
  })
  const answer = new Promise<IncomingMessage>((resolve, reject) => sent.on('response', resolve).on('error', reject))
  sent.write(body)
  if (declared === body.length) sent.end()
  return { sent, answer }
}

async function lengthOf(message: IncomingMessage): Promise<number> {
  let length = 0
  for await (const chunk of message) length += (chunk as Buffer).length
  return length
}

describe('a server that stops', () => {
  it('does not wait for a body that was sent in half, and tells its caller', async () => {
    const own = await create()
    const { port, close } = await served(own, 20)
    const half = ask(port, '{"prompt":', 100)
    const whole = ask(port, JSON.stringify({ ...QUICK, max_tokens: 100 }))
    await new Promise((resolve) => setTimeout(resolve, 100))
    const startedAt = performance.now()
    await close()
    // The server waits the short time for bodies, and not the 20 seconds for answers.
    expect(performance.now() - startedAt).toBeLessThan(15_000)
    const [first, second] = await Promise.all([half.answer, whole.answer])
    expect([first.statusCode, second.statusCode]).toEqual([503, 200])
    expect(JSON.parse(await textOf(second)).usage.completion_tokens).toBeGreaterThan(0)
    await own.close()
  })

  it('sends large answers whole to callers that read, and ends by its deadline though one does not', async () => {
    const large = new Uint8Array(21 << 20)
    const { port, close } = await served(async () => new Response(large), 3)
    const [reading, idle] = await Promise.all([ask(port, '{}').answer, ask(port, '{}').answer])
    reading.pause()
    idle.on('error', () => {}).pause()
    const closed = close()
    // The body is read after the server was told to stop.
    await new Promise((resolve) => setTimeout(resolve, 200))
    expect(await lengthOf(reading)).toBe(large.length)
    const startedAt = performance.now()
    await closed
    expect(performance.now() - startedAt).toBeLessThan(30_000)
    idle.destroy()
  })

  it('ends by its deadline though a connection sends half a head, and a handler never answers', async () => {
    const { port, close } = await served(() => new Promise(() => {}), 0)
    const socket: Socket = connect(port).on('error', () => {})
    socket.write('POST /v1/completions HTTP/1.1\r\nhost: ')
    const never = ask(port, '{}')
    never.answer.catch(() => {})
    await new Promise((resolve) => setTimeout(resolve, 100))
    await close()
    await expect(never.answer).rejects.toThrow()
  })
})

async function textOf(message: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = []
  for await (const chunk of message) chunks.push(chunk as Buffer)
  return Buffer.concat(chunks).toString()
}

describe('bodies that come slowly', () => {
  it('of 20 callers hold 64 MiB together: the slowest get 408, and an ordinary request is answered', async () => {
    const { port, close } = await served(handler, 0)
    const half = `{"prompt":"${'x'.repeat(7 << 20)}`
    const slow = Array.from({ length: 20 }, () => ask(port, half, 8 << 20))
    const statuses: (number | undefined)[] = []
    for (const { answer } of slow) {
      answer.then(({ statusCode }) => statuses.push(statusCode)).catch(() => statuses.push(undefined))
    }
    // Each holds 8 MiB, so eight stay. A caller that still sends may lose the connection before it reads the answer.
    await expect.poll(() => statuses.length, { timeout: 30_000 }).toBe(12)
    expect(statuses).toContain(408)
    expect(statuses.filter((status) => status !== 408 && status !== undefined)).toEqual([])
    expect((await ask(port, JSON.stringify(QUICK)).answer).statusCode).toBe(200)
    expect(statuses).toHaveLength(12)
    for (const { sent } of slow) sent.destroy()
    await close()
  })

  it('are copied into one buffer, and the slowest of the caller who holds most is lost', async () => {
    const inbox = new Inbox(new AbortController().signal, 4 << 20)
    const senders = new Map<string, ReadableStreamDefaultController<Uint8Array>>()
    const receive = (name: string, key: string) => {
      const body = new ReadableStream<Uint8Array>({ start: (created) => void senders.set(name, created) })
      const sent = new Request('http://localhost', { method: 'POST', body, duplex: 'half' } as RequestInit)
      sent.headers.set('content-type', 'application/json')
      return inbox.json({ request: sent, caller: { ...SERVER, key } }, 3 << 20).then(
        () => 'whole',
        (error) => error.status,
      )
    }
    const ends = { a1: receive('a1', 'a'), a2: receive('a2', 'a'), b: receive('b', 'b') }
    const send = async (name: string, text: string) => {
      senders.get(name)!.enqueue(new TextEncoder().encode(text))
      await new Promise((resolve) => setTimeout(resolve, 5))
    }
    const spaces = (count: number) => ' '.repeat(count)
    await send('a1', spaces(1 << 20))
    await send('a2', `{}${spaces(1.5 * 2 ** 20)}`)
    await send('b', `{}${spaces(1 << 20)}`)
    await send('b', spaces(1 << 19))
    expect(await ends.a1).toBe(408)
    for (const name of ['a2', 'b']) senders.get(name)!.close()
    expect(await Promise.all([ends.a2, ends.b])).toEqual(['whole', 'whole'])
    const sizes: number[] = []
    const bytes = new GrowingBytes((size) => sizes.push(size))
    for (let i = 0; i < 100_000; i++) bytes.add(new Uint8Array([i]))
    expect([bytes.bytes.length, bytes.bytes[300], sizes]).toEqual([
      100_000,
      44,
      [8192, 16_384, 32_768, 65_536, 131_072],
    ])
  })
})

it('long lists are answered in pieces of at most 1,000 rows and 256 kB, between which others have their turn', async () => {
  for (const data of [Array.from({ length: 10_000 }, (_, i) => i), Array(50).fill('é'.repeat(20_000))]) {
    let turns = 0
    const ticking = setInterval(() => turns++, 0)
    const sizes: number[] = []
    let text = ''
    const decoder = new TextDecoder()
    for await (const piece of jsonResponse({ object: 'list', data, none: undefined, left: [] }).body!) {
      sizes.push(piece.length)
      text += decoder.decode(piece, { stream: true })
    }
    clearInterval(ticking)
    expect(JSON.parse(text)).toEqual({ object: 'list', data, left: [] })
    expect([sizes.length, Math.max(...sizes) <= 256 << 10, turns > 0]).toEqual([data.length > 50 ? 11 : 17, true, true])
  }
})

describe('callers that never read', () => {
  it('lose a stream that grows, and so stop its text', async () => {
    let ended: AbortSignal | undefined
    const response = await eventStream(
      async ({ send }, signal) => {
        ended = signal
        for (let i = 0; i < 100 && !signal.aborted; i++) {
          send({ text: 'x'.repeat(1 << 20) })
          await Promise.resolve()
        }
        signal.throwIfAborted()
      },
      OPENAI,
      () => new HttpError(499, 'nobody reads this'),
      new AbortController().signal,
    )
    await expect.poll(() => ended?.aborted).toBe(true)
    await expect(response.text()).rejects.toThrow(/reads too slowly/)
  })

  it('hold no more memory together than the outbox allows, while one that reads gets all', async () => {
    const server = await import('node:http')
    const outbox = new Outbox({ maxUnread: 4 << 20 })
    const open = new Set<import('node:http').ServerResponse>()
    const own = server.createServer(async (_, outgoing) => {
      open.add(outgoing)
      outgoing.on('close', () => open.delete(outgoing))
      await outbox.write(outgoing, new Uint8Array(2 << 20))
      outgoing.end()
    })
    await new Promise<void>((resolve) => own.listen(0, resolve))
    const { port } = own.address() as import('node:net').AddressInfo
    const sockets = Array.from({ length: 12 }, () => {
      const socket = connect(port).on('error', () => {})
      socket.pause()
      socket.write('GET / HTTP/1.1\r\nhost: a\r\n\r\n')
      return socket
    })
    await expect.poll(() => open.size).toBeLessThanOrEqual(3)
    expect(await lengthOf(await ask(port, '{}').answer)).toBe(2 << 20)
    for (const socket of sockets) socket.destroy()
    own.closeAllConnections()
    own.close()
  })

  it('lose the connection if they stand still', async () => {
    const server = await import('node:http')
    const outbox = new Outbox({ stallMs: 50 })
    const closed = new Promise<void>((resolve) => {
      const own = server.createServer(async (_, outgoing) => {
        await outbox.write(outgoing, new Uint8Array(64 << 20))
        expect(outgoing.destroyed).toBe(true)
        own.close()
        resolve()
      })
      own.listen(0, () => {
        const { port } = own.address() as import('node:net').AddressInfo
        const socket = connect(port).on('error', () => {})
        socket.pause()
        socket.write('GET / HTTP/1.1\r\nhost: a\r\n\r\n')
      })
    })
    await closed
  })
})
