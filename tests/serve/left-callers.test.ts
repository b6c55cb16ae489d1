// Callers that leave at any moment, on every route: the server answers the next request, and nothing of theirs stays.

import { once } from 'node:events'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { Agent, request as httpRequest, type IncomingMessage } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { loadModel, type Model } from 'lowrank'
import { createHandler, folderOfAdapters, type Handler, type Listening, listen, trainingIn } from 'lowrank/server'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { ROUTES } from '../../src/serve/routes.js'
import { enginesHere } from '../engines-here.js'

const folder = mkdtempSync(join(tmpdir(), 'lowrank-leaving-'))
const FILE = `file-${'a'.repeat(24)}`
const JOB = `ftjob-${'a'.repeat(24)}`
const CHAT = `chatcmpl-${'a'.repeat(8)}`
const KEY = { authorization: 'Bearer x' }
let model: Model
let handler: Handler
let server: Listening
const uncaught: unknown[] = []
const onUncaught = (error: unknown) => void uncaught.push(error)

function put(kind: string, record: { id: string }, ...files: [name: string, content: string][]): void {
  const place = join(folder, kind, record.id)
  mkdirSync(place, { recursive: true })
  const about = { owner: 'admin', created_at: 1_700_000_000, metadata: null }
  for (const [name, content] of [['record.json', JSON.stringify({ ...about, ...record })], ...files]) {
    writeFileSync(join(place, name), content)
  }
}

beforeAll(enginesHere)
beforeAll(async () => {
  const content = `${JSON.stringify({ text: 'x'.repeat(1000) })}\n`.repeat(5000)
  const file = { id: FILE, bytes: content.length, filename: 'x', purpose: 'fine-tune' }
  put('files', file, ['content.jsonl', content])
  const job = { base: 'union-3m', model: 'union-3m', method: 'supervised', status: 'failed', hyperparameters: {} }
  const events = Array.from({ length: 200 }, (_, i) =>
    JSON.stringify({ id: `ftevent-${i}`, message: 'x'.repeat(9000) }),
  )
  const ofJob = { id: JOB, ...job, training_file: FILE, suffix: '', checkpoints: [], deleted: [], result_files: [] }
  put('jobs', ofJob as never, ['events.jsonl', events.join('\n')])
  const said = { role: 'assistant', content: 'y'.repeat(1 << 20) }
  const answer = { id: CHAT, model: 'union-3m', choices: [{ message: said }] }
  put('completions', { id: CHAT, messages: [{ role: 'user', content: 'x'.repeat(1 << 20) }], answer } as never)
  process.on('uncaughtException', onUncaught).on('unhandledRejection', onUncaught)
  model = await loadModel('models/union-3m')
  handler = await createHandler({
    ...{ model, training: trainingIn(folder), hosts: ['127.0.0.1'], page: true, on: {} },
    ...{ apiKeys: [{ key: 'x', isAdmin: true }], resolveAdapter: folderOfAdapters('tests/golden/peft') },
    chatTemplate: '{% for m in messages %}{{ m.content }}{% endfor %}',
  })
  server = await listen(handler, { port: 0 })
})
afterAll(async () => {
  process.off('uncaughtException', onUncaught).off('unhandledRejection', onUncaught)
  await server.close()
  await handler.close()
  await model.close()
  rmSync(folder, { recursive: true })
})

const VALUES: Readonly<Record<string, unknown>> = {
  ...{ prompt: 'And the', input: 'And the', query: 'a', documents: ['b'], text_1: 'a', text_2: 'b', tokens: [1, 2] },
  ...{ messages: [{ role: 'user', content: 'And the' }], max_tokens: 60, max_output_tokens: 60, ignore_eos: true },
  ...{ filename: 'x', purpose: 'fine-tune', bytes: 9, mime_type: 'text/jsonl' },
  ...{ name: 'best', lora_name: 'mine', lora_path: 'f32', training_file: 'file-none', metadata: { rating: 'good' } },
}
const FORM = '--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n{"text":"a"}\r\n--b--\r\n'

interface Asked {
  readonly method: string
  readonly path: string
  readonly body: string
}

function requestsOf([path, methods]: [string, (typeof ROUTES)[string]]): Asked[] {
  const id = path.includes('fine_tuning') ? JOB : path.includes('completions') ? CHAT : FILE
  return Object.entries(methods).flatMap(([method, { fields }]): Asked[] => {
    const target = `${path.replace('*', id)}${method === 'GET' ? '?limit=100' : ''}`
    if (method !== 'POST') return [{ method, path: target, body: '' }]
    if (fields === undefined) return [{ method, path: target, body: FORM }]
    const known = Object.keys(fields).filter((name) => name in VALUES)
    const names = known.includes('prompt') ? known.filter((name) => name !== 'messages') : known
    const body = Object.fromEntries(names.map((name) => [name, VALUES[name]]))
    const bodies = 'stream' in fields ? [body, { ...body, stream: true }] : [body]
    return bodies.map((each) => ({ method, path: target, body: JSON.stringify(each) }))
  })
}

/** What is deleted goes last. */
const REQUESTS = Object.entries(ROUTES)
  .flatMap(requestsOf)
  .sort((a, b) => Number(a.method === 'DELETE') - Number(b.method === 'DELETE'))
const MOMENTS = ['in the body', 'before the answer', 'in the answer', 'unread', 'after the answer'] as const

/** Sends a request, and breaks the connection at a moment. Returns the status, if there was one. */
async function leave({ method, path, body }: Asked, moment: (typeof MOMENTS)[number]): Promise<number | undefined> {
  const type = body === FORM ? 'multipart/form-data; boundary=b' : 'application/json'
  const { port } = new URL(server.url)
  const length = method === 'GET' ? {} : { 'content-length': Buffer.byteLength(body) }
  const headers = { ...KEY, 'content-type': type, ...length }
  const agent = new Agent({ keepAlive: true })
  const sent = httpRequest({ port, host: '127.0.0.1', method, path, headers, agent }).on('error', () => {})
  if (moment === 'in the body') {
    sent.flushHeaders()
    await new Promise((resolve) => sent.write(body.slice(0, body.length / 2) || 'x', resolve))
    sent.destroy()
    return undefined
  }
  await new Promise<void>((resolve) => sent.end(body, resolve))
  if (moment === 'before the answer') {
    sent.destroy()
    return undefined
  }
  const [response] = (await once(sent, 'response')) as [IncomingMessage]
  response.on('error', () => {})
  if (moment === 'in the answer') await once(response, 'readable')
  // What waits for this caller fills all buffers.
  else if (moment === 'unread') await new Promise((resolve) => setTimeout(resolve, 30))
  else for await (const _ of response);
  agent.destroy()
  response.destroy()
  return response.statusCode
}

it('answers the next request after a caller has left, on every route, at every moment', async () => {
  const statuses = new Map<number | undefined, number>()
  for (const asked of REQUESTS) {
    for (const moment of MOMENTS) {
      const status = await leave(asked, moment)
      statuses.set(status, (statuses.get(status) ?? 0) + 1)
      const next = await fetch(`${server.url}/v1/models`, { headers: KEY })
      expect([next.status, uncaught], `${asked.method} ${asked.path} ${moment}`).toEqual([200, []])
    }
  }
  const [requests, moments] = [REQUESTS.length, MOMENTS.length]
  for (const page of ['docs/reliability.md', 'SECURITY.md']) {
    for (const told of [`in ${requests} requests`, `at ${moments} moments`, `${requests * moments} times`]) {
      expect(readFileSync(page, 'utf8'), page).toContain(told)
    }
  }
  expect(statuses.get(200)).toBeGreaterThan(70)
  expect(statuses.get(500)).toBeUndefined()
  await expect.poll(() => handler.metrics()).toMatch(/num_requests_running 0/)
  if (!existsSync('/proc/self/fd')) return
  const links = () =>
    readdirSync('/proc/self/fd').flatMap((fd) => {
      try {
        return [readlinkSync(`/proc/self/fd/${fd}`)]
      } catch {
        return []
      }
    })
  await expect.poll(() => links().filter((link) => link.includes('content.jsonl'))).toEqual([])
})

it('breaks the connection if a file is shorter than it was', async () => {
  const id = `file-${'b'.repeat(24)}`
  const file = { owner: 'admin', created_at: 1_800_000_000, bytes: 9, filename: 'x', purpose: 'fine-tune' as const }
  const place = mkdtempSync(join(tmpdir(), 'lowrank-short-'))
  const record = join(place, 'files', id)
  mkdirSync(record, { recursive: true })
  writeFileSync(join(record, 'record.json'), JSON.stringify({ id, ...file }))
  writeFileSync(join(record, 'content.jsonl'), '{}\n')
  const own = await createHandler({
    ...{ model, training: trainingIn(place), hosts: ['127.0.0.1'], apiKeys: [{ key: 'x', isAdmin: true }] },
  })
  const { url, close } = await listen(own, { port: 0 })
  const answer = await fetch(`${url}/v1/files/${id}/content`, { headers: KEY })
  await expect(answer.text()).rejects.toThrow()
  await close()
  await own.close()
  rmSync(place, { recursive: true })
})
