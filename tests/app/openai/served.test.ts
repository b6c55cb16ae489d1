// biome-ignore-all lint/suspicious/noExplicitAny: answers and requests are JSON of any form

// The last steps: a client whose address alone changes, the router until the old model is gone, and what is recorded.

import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createHandler } from 'lowrank/server'
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { checkTraffic } from '../../../src/app/openai/node/check.js'
import { exportAll } from '../../../src/app/openai/node/export.js'
import { moveJobs } from '../../../src/app/openai/node/move.js'
import { openServed, type ServedOptions } from '../../../src/app/openai/node/served.js'
import { openai } from '../../../src/app/openai/openai.js'
import { enginesHere } from '../../engines-here.js'
import { jobOf, OLD_MODEL, ProviderServer } from './provider-server.js'

const base = 'models/union-3m'
const chatTemplate = readFileSync('models/data/chat.jinja', 'utf8')
let server: ProviderServer
let dir: string

beforeAll(enginesHere)
beforeEach(async () => {
  server = await ProviderServer.open()
  dir = join(await mkdtemp(join(tmpdir(), 'lowrank-served-')), 'home')
  const hyperparameters = { n_epochs: 1, batch_size: 1 }
  server.jobs = [jobOf('ftjob-1', { hyperparameters, method: { type: 'supervised', supervised: { hyperparameters } } })]
  await exportAll({ out: dir, provider: openai, environment: server.environment })
})
afterEach(async () => {
  await server.close()
  rmSync(dir, { recursive: true, force: true })
})

const moved = () => moveJobs({ dir, bases: [base], chatTemplate, maxTokens: 2 })
const recorded = () => {
  const place = join(dir, 'recorded.jsonl')
  const text = existsSync(place) ? readFileSync(place, 'utf8').trim() : ''
  return text === '' ? [] : text.split('\n').map((line) => JSON.parse(line))
}

async function serving<T>(options: Partial<ServedOptions>, work: (ask: Ask) => Promise<T>): Promise<T> {
  const served = await openServed({ dir, ...options })
  const { adapters, aliases, record } = served
  const handler = await createHandler({
    ...{ model: served.base, adapters, aliases, record, chatTemplate, upstreamKey: options.upstreamKey },
  })
  const ask = async (content: string, fields = {}) => {
    const body = JSON.stringify({ model: OLD_MODEL, messages: [{ role: 'user', content }], max_tokens: 3, ...fields })
    const init = { method: 'POST', headers: { 'content-type': 'application/json' }, body }
    const response = await handler(new Request('http://localhost/v1/chat/completions', init))
    return response.json() as Promise<any>
  }
  try {
    return await work(ask)
  } finally {
    await handler.close()
    await served.close()
  }
}
type Ask = (content: string, fields?: object) => Promise<any>
const posts = () => server.asked.filter(({ method }) => method === 'POST')

describe('a server over the folder', () => {
  it('answers under the old name by the new adapter, and sends nothing', async () => {
    await moved()
    const answer = await serving({}, (ask) => ask('Which number is 3?', { temperature: 0 }))
    expect(answer).toMatchObject({ model: OLD_MODEL, choices: [{ message: { role: 'assistant' } }] })
    expect(posts()).toEqual([])
  }, 60_000)

  it('asks the old model until its last day, keeps its answers in the folder, and compares with them later', async () => {
    await moved()
    const upstream = { upstream: server.url, upstreamKey: 'sk-secret' }
    const old = await serving({ ...upstream, isRecorded: true }, async (ask) => {
      await ask('Is this a picture?', { messages: [{ role: 'user', content: [{ type: 'image_url' }] }] })
      return ask('Which number is 500?')
    })
    expect(old.choices[0].message.content).toBe('It is 3.')
    expect(posts().map(({ headers }) => headers.authorization)).toEqual(['Bearer sk-secret', 'Bearer sk-secret'])
    const line = recorded().at(-1)
    expect(line).toMatchObject({
      ...{ model: OLD_MODEL, origin: 'served', source: { provider: 'openai', model: OLD_MODEL }, finish: 'stop' },
      request: { messages: [{ content: 'Which number is 500?' }], max_tokens: 3 },
    })
    expect(line.cost).toBeCloseTo((12 * 0.8 + 5 * 3.2) / 1e6, 12)
    const { asked, refused } = await checkTraffic({ dir, chatTemplate })
    expect(asked).toBe(7 + 2)
    expect(Object.values(refused).flat()).toEqual([expect.stringContaining('recorded.jsonl')])
    // Without the validation file, stored and recorded chats are what is compared.
    server.jobs = [jobOf('ftjob-1', { validation_file: null })]
    server.own = (_, path) => (path === '/files/file-valid/content' ? { status: 404 } : undefined)
    await exportAll({ out: dir, provider: openai, environment: server.environment })
    const [job] = await moved()
    const { prompts, unfinished, unanswered } = job.comparisons['stored chats: agreement with the old answer']
    expect([prompts + unfinished, unanswered]).toEqual([7 + 1, 1])
  }, 60_000)

  it('asks the old model no more after its last day', async () => {
    await moved()
    const place = join(dir, 'lists/models.jsonl')
    writeFileSync(place, readFileSync(place, 'utf8').replace('2027-01-14', '2026-01-14'))
    await serving({ upstream: server.url }, (ask) => ask('Which number is 3?'))
    expect(posts()).toEqual([])
  }, 60_000)

  it('records nothing by itself', async () => {
    await moved()
    await serving({ upstream: server.url }, (ask) => ask('Which number is 3?'))
    expect(posts()).toHaveLength(1)
    expect(recorded()).toEqual([])
  }, 60_000)

  it('asks the old model a second time for a share of the chats, within the budget', async () => {
    await moved()
    const draws = [0.1, 0.9, 0.2, 0.3]
    const draw = () => draws.shift() ?? 1
    const both = { upstream: server.url, compare: 0.5, draw }
    await expect(openServed({ dir, ...both })).rejects.toThrow('budget')
    await serving({ ...both, budget: 0.000175 }, async (ask) => {
      for (const [i, count] of [1, 1, 2, 2].entries()) {
        await ask(`Which number is ${i}?`, { temperature: 0 })
        // The second answer comes after that of the client. For a third one the budget is too small.
        while (recorded().length < count) await new Promise((resolve) => setTimeout(resolve, 10))
      }
    })
    expect(posts().map(({ body }) => JSON.parse(body))).toMatchObject([
      { messages: [{ content: 'Which number is 0?' }], store: false, max_completion_tokens: 3 },
      { messages: [{ content: 'Which number is 2?' }] },
    ])
    expect(recorded()).toMatchObject([
      { answer: { content: 'It is 0.' }, ours: { role: 'assistant' } },
      { answer: { content: 'It is 2.' } },
    ])
  }, 60_000)

  it('says what is missing', async () => {
    await expect(openServed({ dir })).rejects.toThrow('no job that was moved')
    await moved()
    await expect(openServed({ dir, base: 'models/other' })).rejects.toThrow('no adapter of models/other')
  }, 60_000)
})
