import { appendFileSync, existsSync, readFileSync, rmSync } from 'node:fs'
import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { exportAll } from '../../../src/app/openai/node/export.js'
import { type RecordOptions, recordAnswers } from '../../../src/app/openai/node/record.js'
import { openai } from '../../../src/app/openai/openai.js'
import { PRICES, worstCase } from '../../../src/app/openai/prices.js'
import { answerOf, jobOf, OLD_MODEL, ProviderServer } from './provider-server.js'

let server: ProviderServer
let dir: string

beforeEach(async () => {
  server = await ProviderServer.open()
  dir = join(await mkdtemp(join(tmpdir(), 'lowrank-openai-')), 'home')
  await exportAll({ out: dir, provider: openai, environment: server.environment })
  server.asked.length = 0
})

afterEach(async () => {
  await server.close()
  rmSync(dir, { recursive: true, force: true })
})

const record = (options: Partial<RecordOptions> = {}) =>
  recordAnswers({ dir, environment: server.environment, budget: 20, maxTokens: 50, ...options })
const linesOf = (place: string) =>
  existsSync(join(dir, place))
    ? readFileSync(join(dir, place), 'utf8')
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line))
    : []
const posts = () => server.asked.filter(({ method }) => method === 'POST')
const PRICE = PRICES.models['gpt-4.1-mini']

describe('lowrank openai record', () => {
  it('sends nothing without a budget', async () => {
    await expect(record({ budget: undefined })).rejects.toThrow('nothing is sent without a budget')
    expect(server.asked).toEqual([])
  })

  it('asks held-out prompts first, then traffic, then training prompts, each once over all runs', async () => {
    const report = await record()
    expect(report).toMatchObject({ answers: 30, notes: {}, gone: {} })
    const recorded = linesOf('recorded.jsonl')
    const order = { 'held-out': 0, traffic: 1, training: 2 }
    const origins = recorded.map(({ origin }) => order[origin as keyof typeof order])
    expect(origins).toEqual([...origins].sort())
    expect(recorded[0]).toMatchObject({
      ...{ model: OLD_MODEL, source: { provider: 'openai', model: OLD_MODEL }, finish: 'stop' },
      answer: { content: answerOf(100) },
    })
    for (const { body } of posts()) {
      expect(JSON.parse(body)).toMatchObject({
        store: false,
        max_completion_tokens: 50,
        service_tier: 'default',
        temperature: 0,
      })
    }
    server.asked.length = 0
    expect((await record()).answers).toBe(0)
    expect(posts()).toEqual([])
  })

  it('reserves the worst case on the disk before it sends', async () => {
    const reservedWhenAsked: boolean[] = []
    const { answer } = server
    server.answer = (body) => {
      const open = linesOf('ledger.jsonl').filter(({ reserved }) => reserved === worstCase(body as never, PRICE))
      reservedWhenAsked.push(open.length > 0)
      return answer(body)
    }
    await record()
    expect(reservedWhenAsked).toHaveLength(30)
    expect(reservedWhenAsked).not.toContain(false)
  })

  it('stays within the budget, over all runs and with lost answers', async () => {
    const budget = 0.0015
    server.faults.set('/chat/completions', ['hang up', { status: 500 }])
    const spents = []
    for (let run = 0; run < 3; run++) spents.push((await record({ budget })).spent)
    expect(Math.max(...spents)).toBeLessThanOrEqual(budget)
    const byId = new Map<string, number>()
    for (const { id, reserved, cost } of linesOf('ledger.jsonl')) byId.set(id, cost ?? reserved)
    expect(byId.size).toBe(posts().length)
    expect(posts().length).toBeLessThan(30)
    // Both tries without an answer keep what they reserved.
    const open = [...byId.values()].filter((dollars) => dollars > (50 * PRICE.output) / 1e6)
    expect(open).toHaveLength(2)
  })

  it('goes on after a crash in the middle of a line of the ledger', async () => {
    await record({ budget: 0.0005 })
    appendFileSync(join(dir, 'ledger.jsonl'), '{"id":"half')
    expect((await record()).spent).toBeGreaterThan(0)
    expect(linesOf('ledger.jsonl').length).toBeGreaterThan(0)
  })

  it('reports a model that is gone as gone', async () => {
    server.gone.add(OLD_MODEL)
    const report = await record()
    expect(report.answers).toBe(0)
    expect(Object.keys(report.gone)).toEqual([OLD_MODEL])
    expect(posts()).toHaveLength(1)
    expect(report.spent).toBe(0)
  })

  it('asks for log-probabilities once, and does without them', async () => {
    const error = { message: 'logprobs are not supported', param: 'logprobs', code: 'unsupported' }
    server.faults.set('/chat/completions', [{ status: 400, body: { error } }])
    expect((await record()).answers).toBe(30)
    expect(posts().filter(({ body }) => JSON.parse(body).logprobs)).toHaveLength(1)
  })

  it('refuses pictures and models without a price by name', async () => {
    const picture = { type: 'image_url', image_url: { url: 'data:,' } }
    const { content } = server.files.get('file-valid')!
    const row = {
      messages: [
        { role: 'user', content: [picture] },
        { role: 'assistant', content: 'A cat.' },
      ],
    }
    Object.assign(server.files.get('file-valid')!, {
      content: content + JSON.stringify(row),
      bytes: content.length + JSON.stringify(row).length,
    })
    server.jobs = [
      jobOf('ftjob-1'),
      jobOf('ftjob-2', { model: 'davinci-002', fine_tuned_model: 'ft:davinci-002:acme::x' }),
    ]
    rmSync(dir, { recursive: true })
    await exportAll({ out: dir, provider: openai, environment: server.environment })
    appendFileSync(join(dir, 'files/file-valid.jsonl'), '\n')
    const { notes } = await record()
    expect(Object.keys(notes).join('\n')).toMatch(/image_url[\s\S]*davinci-002/)
  })

  it('takes a batch at half the price, and finds it again after a stop', async () => {
    server.endsBatches = false
    const stop = new AbortController()
    const first = record({ batch: true, pollSeconds: 0.05, signal: stop.signal })
    while (!server.asked.some(({ path, method }) => method === 'GET' && path.startsWith('/batches'))) {
      await new Promise((resolve) => setTimeout(resolve, 5))
    }
    stop.abort()
    await expect(first).rejects.toThrow(/abort/i)
    const reserved = linesOf('ledger.jsonl').reduce((sum, entry) => sum + entry.reserved, 0)
    const bodies = server.batches.flatMap((batch) =>
      server.files.get(String(batch.input_file_id))!.content.trim().split('\n'),
    )
    const worst = bodies.map((line) => worstCase(JSON.parse(line).body, PRICE)).reduce((a, b) => a + b)
    expect(reserved).toBeCloseTo(worst / 2, 10)
    server.endsBatches = true
    for (const batch of server.batches) Object.assign(batch, { status: 'completed', output_file_id: batch.made })
    server.asked.length = 0
    const report = await record({ batch: true, pollSeconds: 0.05 })
    expect(report.answers).toBe(30)
    expect(report.spent).toBeCloseTo((30 * 0.5 * (12 * PRICE.input + 5 * PRICE.output)) / 1e6, 10)
  })
})
