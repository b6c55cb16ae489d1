// biome-ignore-all lint/suspicious/noExplicitAny: answers and requests are JSON of any form

// Jobs in processes: each method learns, and a job's command gives the bytes of its result.

import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as wait } from 'node:timers/promises'
import { afterAll, beforeAll, expect, it } from 'vitest'
// @ts-expect-error A script without declarations.
import { JobServer } from '../../../scripts/stress/job-server.mjs'

const folder = mkdtempSync(join(tmpdir(), 'lowrank-methods-'))
const server = new JobServer(folder, { options: ['--train-when', 'idle'] })
const create = async (rows: readonly object[], options: object) => server.create(await server.upload(rows), options)

beforeAll(() => server.start())
afterAll(async () => {
  await server.end()
  rmSync(folder, { recursive: true, force: true })
})

const rows = <T>(make: (i: number) => T) => Array.from({ length: 4 }, (_, i) => make(i))

it('learns from pairs of answers, judged answers, and a grader', async () => {
  const few = { maxSteps: 2, rank: 2 }
  const answer = (content: string) => [{ role: 'assistant', content }]
  const pair = (i: number) => ({ prompt: `Boat ${i} is `, chosen: 'red and fast.', rejected: 'a boat.' })
  const grader = {
    type: 'string_check',
    name: 'is',
    operation: 'ilike',
    input: '{{sample.output_text}}',
    reference: '{{item.word}}',
  }
  const ids = [
    await create(rows(pair), { method: { type: 'dpo', dpo: { hyperparameters: { beta: 0.2 } } }, lowrank: few }),
    await create(
      rows((i) => ({ prompt: `Boat ${i} is `, completion: 'red.', label: i % 2 === 0 })),
      {
        lowrank: { ...few, method: 'kto' },
      },
    ),
    await create(
      rows((i) => ({ prompt: `Boat ${i} is `, word: 'a' })),
      {
        method: {
          type: 'reinforcement',
          reinforcement: { grader, hyperparameters: { compute_multiplier: 0.25, batch_size: 2 } },
        },
        lowrank: { ...few, maxSteps: 3, taskOptions: { maxCompletionLength: 4 } },
        validation_file: await server.upload(rows((i) => ({ prompt: `Ship ${i} is `, word: 'a' }))),
      },
    ),
    // This job must fail: chats need a chat template, and the model has none.
    await create(
      rows((i) => ({
        input: { messages: [{ role: 'user', content: `${i}` }] },
        preferred_output: answer('a'),
        non_preferred_output: answer('b'),
      })),
      {
        method: { type: 'dpo' },
      },
    ),
  ]
  const [dpo, kto, reinforced, chats] = await Promise.all(ids.map((id) => server.ended(id)))
  for (const job of [dpo, kto, reinforced]) {
    expect([job.status, job.error]).toEqual(['succeeded', null])
    expect(job.trained_tokens).toBeGreaterThan(0)
  }
  expect(dpo.method).toMatchObject({ type: 'dpo', dpo: { hyperparameters: { beta: 0.2 } } })
  expect(reinforced.method.reinforcement.grader).toEqual(grader)
  const { data } = await server.call(`/fine_tuning/jobs/${reinforced.id}/events?limit=100`)
  const told = data.filter(({ type }: any) => type === 'metrics').map((event: any) => event.data)
  expect(told[0].train_mean_reward).toBeGreaterThanOrEqual(0)
  expect(told.map((metrics: any) => metrics.valid_mean_reward)).toContainEqual(
    expect.toBeOneOf([0, 0.25, 0.5, 0.75, 1]),
  )
  expect(chats).toMatchObject({
    status: 'failed',
    error: { message: expect.stringMatching(/^union-3m: .*chat template/) },
  })
  await expect(
    create([{ prompt: 'x' }], {
      method: { type: 'reinforcement', reinforcement: { grader: { type: 'python', name: 'x', source: '' } } },
    }),
  ).rejects.toThrow(/python/)
})

it('gives the bytes of its command with and without validation, paused and resumed, and while requests run', async () => {
  const texts = rows((i) => ({ text: `The boat number ${i} sails.` }))
  const [training, validation] = [await server.upload(texts), await server.upload(texts.slice(2))]
  const options = { hyperparameters: { n_epochs: 6, batch_size: 1 }, lowrank: { rank: 2 }, seed: 5 }
  const isRunning = async (id: string) => {
    const { data } = await server.call(`/fine_tuning/jobs/${id}/events`)
    return data.some(({ type }: any) => type === 'metrics')
  }
  const plain = await server.create(training, options)
  const validated = await server.create(training, { ...options, validation_file: validation })
  const paused = await server.create(training, options)
  await Promise.all([server.ended(plain), server.ended(validated)])
  while (!(await isRunning(paused))) await wait(20)
  expect((await server.call(`/fine_tuning/jobs/${paused}/pause`, {})).status).toBe('queued')
  // While a job is paused, the next one trains. It waits while requests run.
  const loaded = await server.create(training, options)
  const asked: Promise<unknown>[] = []
  const ask = () => server.call('/completions', { model: 'union-3m', prompt: 'A boat', max_tokens: 32 })
  while (!(await isRunning(loaded))) await wait(20)
  for (let i = 0; i < 6; i++) asked.push(ask())
  await Promise.all(asked)
  await server.call(`/fine_tuning/jobs/${paused}/resume`, {})
  const jobs = await Promise.all([plain, validated, paused, loaded].map((id) => server.ended(id)))
  expect(jobs.map(({ status }: any) => status)).toEqual(jobs.map(() => 'succeeded'))
  const bytes = (place: string) => readFileSync(join(place, 'adapter_model.safetensors'))
  const expected = bytes(server.repeat(jobs[0], join(folder, 'again')))
  for (const { id } of jobs) expect(bytes(server.runOf(id)).equals(expected), id).toBe(true)
  // The command of the job with validation measures on the validation file too.
  expect(bytes(server.repeat(jobs[1], join(folder, 'validated'))).equals(expected)).toBe(true)
  const { data: told } = await server.call(`/fine_tuning/jobs/${validated}/events?limit=100`)
  const needs = told.filter(({ message }: any) => /needs about/.test(message))
  expect(needs).toEqual([
    expect.objectContaining({ message: expect.stringMatching(/from the same file as the server.*free.*disk/) }),
  ])
  const order = told.map(({ message }: any) => message)
  expect(order.indexOf(needs[0].message)).toBeGreaterThan(order.indexOf('Fine-tuning job started'))
})

it('fails with the first of the lines that cannot be used, and says how far it read', async () => {
  const bad = await server.ended(await create(Array(5000).fill({ text: 1 }), {}))
  expect([bad.status, bad.error.message]).toEqual([
    'failed',
    expect.stringMatching(/^at least 100 lines cannot be used, read up to .*line 100\. The first: .*line 1:/),
  ])
  const { data } = await server.call(`/fine_tuning/jobs/${bad.id}/events?limit=100`)
  expect(data.filter(({ level }: any) => level === 'error').length).toBeLessThanOrEqual(101)
})

it('publishes a result under the alias of its gate, and no result that is worse', async () => {
  const texts = await server.upload(rows((i) => ({ text: `The boat number ${i} sails to the island of ${i * 7}.` })))
  const shared = { validation_file: texts, hyperparameters: { n_epochs: 4, batch_size: 1 } }
  const lowrank = (more: object) => ({ rank: 2, gate: { alias: 'boats' }, ...more })
  const good = await server.ended(await server.create(texts, { ...shared, lowrank: lowrank({ learningRate: 0.01 }) }))
  const aliases = async () => (await server.call('/aliases')).data.map(({ model }: any) => model)
  expect(good.lowrank.judged).toMatchObject({ isPassed: true, isPublished: true })
  expect(await aliases()).toEqual([good.fine_tuned_model])
  const bad = await server.ended(await server.create(texts, { ...shared, lowrank: lowrank({ learningRate: 5 }) }))
  expect([bad.status, bad.lowrank.judged.isPassed]).toEqual(['succeeded', false])
  expect(bad.lowrank.judged.low).toBeGreaterThan(0)
  expect(await aliases()).toEqual([good.fine_tuned_model])
})

it('takes no step while a request runs, with `--train-when idle`', async () => {
  const texts = await server.upload(rows((i) => ({ text: `The boat number ${i} sails.` })))
  const id = await server.create(texts, { hyperparameters: { n_epochs: 1000, batch_size: 1 }, lowrank: { rank: 2 } })
  const newest = async () => {
    const { data } = await server.call(`/fine_tuning/jobs/${id}/events`)
    return data.find(({ type }: any) => type === 'metrics')?.data.step ?? 0
  }
  while ((await newest()) < 3) await wait(20)
  const body = { model: 'union-3m', prompt: 'A', max_tokens: 200, n: 8, ignore_eos: true, stream: true }
  let events = 0
  let before: number | undefined
  for await (const piece of (await server.request('/completions', body)).body) {
    events += Buffer.from(piece).toString().split('data: ').length - 1
    if (events > 400) before ??= await newest()
  }
  // The step that runs when the request comes is finished.
  expect((await newest()) - before!).toBeLessThanOrEqual(1)
  const during = await newest()
  while ((await newest()) < during + 3) await wait(20)
  // Of a job that is cancelled while no process has it, the unfinished run goes too.
  await server.call(`/fine_tuning/jobs/${id}/pause`, {})
  while (server.trainers().length > 0) await wait(100)
  expect(existsSync(server.runOf(id))).toBe(true)
  await server.call(`/fine_tuning/jobs/${id}/cancel`, {})
  while (existsSync(server.runOf(id))) await wait(20)
})
