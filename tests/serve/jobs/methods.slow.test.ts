// Jobs in processes: each method learns, and a server and a process that are killed lose nothing and do nothing twice.

import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as wait } from 'node:timers/promises'
import { afterAll, beforeAll, expect, it } from 'vitest'

const folder = mkdtempSync(join(tmpdir(), 'lowrank-methods-'))
let server: ChildProcess
let url = ''

async function start(): Promise<void> {
  const args = [
    'dist/cli/main.js',
    'serve',
    'models/union-3m',
    '--port',
    '0',
    '--train',
    folder,
    '--quiet',
    '--log',
    'off',
  ]
  server = spawn(process.execPath, args, { env: { ...process.env, LOWRANK_ADMIN_KEY: 'root' } })
  let told = ''
  for await (const text of server.stderr!) {
    told += text
    url = /http:\/\/[\d.:]+/.exec(told)?.[0] ?? ''
    if (url !== '' && / serves /.test(told)) break
  }
  server.stderr!.resume()
  expect(url, told).not.toBe('')
}

async function call(path: string, body?: object | FormData): Promise<any> {
  const isForm = body instanceof FormData
  const answer = await fetch(`${url}/v1${path}`, {
    method: body === undefined ? 'GET' : 'POST',
    headers: { authorization: 'Bearer root', ...(!isForm && { 'content-type': 'application/json' }) },
    ...(body !== undefined && { body: isForm ? body : JSON.stringify(body) }),
  })
  const value = await answer.json()
  if (!answer.ok) throw new Error(`${path}: ${JSON.stringify(value)}`)
  return value
}

async function upload(rows: readonly object[]): Promise<string> {
  const form = new FormData()
  form.set('purpose', 'fine-tune')
  form.set('file', new File([rows.map((row) => `${JSON.stringify(row)}\n`).join('')], 'rows.jsonl'))
  return (await call('/files', form)).id
}

async function create(rows: readonly object[], options: object): Promise<string> {
  return (await call('/fine_tuning/jobs', { model: 'union-3m', training_file: await upload(rows), ...options })).id
}

async function ended(id: string): Promise<any> {
  for (;;) {
    const job = await call(`/fine_tuning/jobs/${id}`)
    if (['succeeded', 'failed', 'cancelled'].includes(job.status)) return job
    await wait(100)
  }
}

beforeAll(start)
afterAll(async () => {
  const exit = once(server, 'exit')
  server.kill('SIGTERM')
  await exit
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
        lowrank: { ...few, taskOptions: { maxCompletionLength: 4 } },
      },
    ),
    // Chats need a chat template, which this model has not.
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
  const [dpo, kto, reinforced, chats] = await Promise.all(ids.map(ended))
  for (const job of [dpo, kto, reinforced]) {
    expect([job.status, job.error]).toEqual(['succeeded', null])
    expect(job.trained_tokens).toBeGreaterThan(0)
  }
  expect(dpo.method).toMatchObject({ type: 'dpo', dpo: { hyperparameters: { beta: 0.2 } } })
  expect(reinforced.method.reinforcement.grader).toEqual(grader)
  const { data } = await call(`/fine_tuning/jobs/${reinforced.id}/events?limit=100`)
  expect(data.filter(({ type }: any) => type === 'metrics')[0].data.train_mean_reward).toBeGreaterThanOrEqual(0)
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

it('goes on where it was after the server, its process or both were killed', async () => {
  const id = await create(
    rows((i) => ({ text: `The boat number ${i} sails.` })),
    {
      hyperparameters: { n_epochs: 40, batch_size: 1 },
      lowrank: { rank: 2 },
    },
  )
  const processOf = () => {
    const { stdout } = { stdout: execFileSync('pgrep', ['-P', String(server.pid), '-f', id], { encoding: 'utf8' }) }
    return Number(stdout.split('\n')[0])
  }
  const steps = async () => {
    const { data } = await call(`/fine_tuning/jobs/${id}/events?limit=100`)
    return data.filter(({ type }: any) => type === 'metrics').length
  }
  for (const victims of ['process', 'server', 'both']) {
    const before = await steps()
    while ((await steps()) <= before) await wait(20)
    const pid = processOf()
    const exit = once(server, 'exit')
    if (victims !== 'server') process.kill(pid, 'SIGKILL')
    if (victims === 'process') continue
    server.kill('SIGKILL')
    await exit
    await start()
  }
  const job = await ended(id)
  expect([job.status, job.error]).toEqual(['succeeded', null])
  const events: any[] = []
  for (let page = await call(`/fine_tuning/jobs/${id}/events?limit=100`); ; ) {
    events.push(...page.data)
    if (!page.has_more) break
    page = await call(`/fine_tuning/jobs/${id}/events?limit=100&after=${page.last_id}`)
  }
  const told = events.flatMap(({ type, data }) => (type === 'metrics' ? [data.step] : []))
  expect(told.toReversed()).toEqual(Array.from({ length: 160 }, (_, i) => i + 1))
  expect(
    (await call('/files?purpose=fine-tune-results')).data.filter(({ id: file }: any) =>
      job.result_files.includes(file),
    ),
  ).toHaveLength(1)
  const { data: checkpoints } = await call(`/fine_tuning/jobs/${id}/checkpoints?limit=100`)
  expect(checkpoints.map(({ step_number }: any) => step_number)).toEqual(
    Array.from({ length: 40 }, (_, i) => 160 - 4 * i),
  )
  const out = join(folder, 'again')
  execFileSync(process.execPath, ['dist/cli/main.js', ...job.lowrank.command.replace('DIR', out).split(' ').slice(1)], {
    stdio: 'pipe',
  })
  const bytes = (place: string) => readFileSync(join(place, 'adapter_model.safetensors'))
  expect(bytes(out).equals(bytes(join(folder, 'jobs', id, 'run')))).toBe(true)
})
