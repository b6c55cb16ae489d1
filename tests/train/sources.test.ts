// Rows that a provider's model wrote enter no training before the caller has read the provider's terms.

import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as wait } from 'node:timers/promises'
import { checkData, evaluate, loadModel, openTrainer, train } from 'lowrank'
import { createHandler, trainingIn } from 'lowrank/server'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { CLAUSES } from '../../src/train/rows/sources.js'
import { enginesHere } from '../engines-here.js'

const model = 'models/union-3m'
const folder = mkdtempSync(join(tmpdir(), 'lowrank-sources-'))
const source = { provider: 'openai', model: 'ft:gpt-4.1-mini:acme::abc' }
const own = { prompt: 'A boat ', completion: 'sails.' }
const theirs = { prompt: 'A ship ', completion: 'sinks.', source }
const clause = CLAUSES.openai.url
const few = { model, maxSteps: 1, on: {} } as const

beforeAll(enginesHere)
afterAll(() => rmSync(folder, { recursive: true, force: true }))

describe('a row of a provider', () => {
  it('is refused by every task that reads rows, with the clause', async () => {
    const pair = { prompt: 'A ', chosen: 'b', rejected: 'c', source }
    await expect(train({ ...few, data: [own, theirs] })).rejects.toThrow(clause)
    await expect(train({ ...few, data: [own], evalData: [theirs] })).rejects.toThrow(clause)
    await expect(train({ ...few, task: 'dpo', data: [pair] })).rejects.toThrow(clause)
    await expect(train({ ...few, task: 'grpo', data: [theirs], rewards: [() => 1] })).rejects.toThrow(clause)
    const taught = { ...few, task: 'distill', data: [theirs], teacher: model } as const
    await expect(train(taught)).rejects.toThrow(clause)
    const { invalid } = await checkData({ model, data: [own, theirs] })
    expect(invalid.map(({ where }) => where)).toEqual(['data[1]'])
  })

  it('is refused in loops of the caller', async () => {
    const trainer = await openTrainer(model, {})
    try {
      await expect(trainer.forwardBackward([theirs] as never)).rejects.toThrow(clause)
    } finally {
      await trainer.dispose()
    }
  })

  it('may be measured', async () => {
    const opened = await loadModel(model)
    const { records } = await evaluate({ model: opened, adapters: {}, data: [theirs], on: {} })
    expect(records).toBe(1)
    await opened.close()
  })

  it('is trained on after the terms are read, and the card says who wrote it', async () => {
    const out = join(folder, 'read')
    await train({ ...few, data: [own, theirs, { ...own, source: { provider: 'owner' } }], termsRead: true, out })
    expect(readFileSync(join(out, 'README.md'), 'utf8')).toContain(
      '- records that openai, ft:gpt-4.1-mini:acme::abc wrote: 1',
    )
  })

  it('is refused in jobs of a server, unless its operator has read the terms', async () => {
    const ends = await Promise.all(
      [undefined, true].map(async (termsRead) => {
        const handler = await createHandler({
          ...{ model, apiKeys: [{ key: 'secret', isAdmin: true }], hosts: ['localhost'] },
          training: trainingIn(join(folder, `jobs-${termsRead}`), { termsRead, threads: 1 }),
        })
        const ask = async (path: string, body?: string | FormData) => {
          const init = body === undefined ? {} : { method: 'POST', body }
          const json = typeof body === 'string' && { 'content-type': 'application/json' }
          const headers = { authorization: 'Bearer secret', ...json }
          return (await handler(new Request(`http://localhost/v1${path}`, { ...init, headers }))).json()
        }
        try {
          const form = new FormData()
          form.set('purpose', 'fine-tune')
          form.set('file', new Blob([own, theirs].map((row) => `${JSON.stringify(row)}\n`)), 'rows.jsonl')
          const { id: training_file } = await ask('/files', form)
          const { data } = await ask('/models')
          const lowrank = { maxSteps: 1, rank: 1 }
          const created = await ask('/fine_tuning/jobs', JSON.stringify({ model: data[0].id, training_file, lowrank }))
          for (;;) {
            const job = await ask(`/fine_tuning/jobs/${created.id}`)
            if (['succeeded', 'failed'].includes(job.status)) return { status: job.status, error: job.error }
            await wait(50)
          }
        } finally {
          await handler.close()
        }
      }),
    )
    expect(ends).toEqual([
      { status: 'failed', error: expect.objectContaining({ message: expect.stringContaining(clause) }) },
      expect.objectContaining({ status: 'succeeded' }),
    ])
  }, 120_000)
})
