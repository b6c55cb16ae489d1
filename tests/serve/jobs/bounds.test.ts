// What a caller sends and the server keeps or logs has a bound of its own: no text, list, object or name in it can grow
// to what a whole body may have.

import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, it } from 'vitest'
import { checkData } from '../../../src/api/node.js'
import { type FieldTable, LOAD_FIELDS, METADATA } from '../../../src/serve/fields.js'
import {
  ALIAS_FIELDS,
  FILE_FIELDS,
  HYPERPARAMETERS,
  JOB_FIELDS,
  LOWRANK,
  METADATA_FIELDS,
  STORED_FIELDS,
} from '../../../src/serve/jobs/fields.js'
import { type Job, MAX_INVALID } from '../../../src/serve/jobs/job.js'
import { insertJob, tell } from '../../../src/serve/jobs/node/job-rows.js'
import { openStore } from '../../../src/serve/store/node/open.js'

const folder = mkdtempSync(join(tmpdir(), 'lowrank-bounds-'))
afterAll(() => rmSync(folder, { recursive: true }))

/** A kept field may have as many characters of JSON as a grader. */
const MOST = 66_000
const LARGE = 'x'.repeat(200_000)

const metadata = { purpose: 'test' }
const hyperparameters = {
  ...{ n_epochs: 2, batch_size: 4, learning_rate_multiplier: 1, beta: 0.1, compute_multiplier: 1 },
  ...{ eval_interval: 'auto', eval_samples: 'auto', reasoning_effort: 'default' },
}
const grader = { type: 'string_check', name: 'g', input: '{{sample.output_text}}', reference: 'a', operation: 'eq' }
const lowrank = {
  ...{ method: 'kto', rank: 8, alpha: 16, dropout: 0.1, useRslora: true, learningRate: 1e-3, schedule: 'cosine' },
  ...{ warmupRatio: 0.1, weightDecay: 0.1, gradientAccumulation: 2, maxLength: 64, packing: true, maxSteps: 4 },
  ...{ taskOptions: { tagNames: 'O B-PER I-PER' }, gate: { alias: 'a', metric: 'loss' } },
}

/** A body of each kind that is kept, with all fields that have another value than null. */
const KEPT: [table: FieldTable, bodies: Record<string, unknown>[]][] = [
  [
    JOB_FIELDS,
    [
      {
        ...{ model: 'base', training_file: 'file-a', validation_file: 'file-b', suffix: 's', seed: 1 },
        ...{ metadata, hyperparameters, lowrank },
        method: { type: 'supervised', supervised: { hyperparameters } },
      },
      { method: { type: 'reinforcement', reinforcement: { grader, hyperparameters } } },
    ],
  ],
  [FILE_FIELDS, [{ purpose: 'fine-tune', expires_after: { anchor: 'created_at', seconds: 3600 } }]],
  [STORED_FIELDS, [{ purpose: 'fine-tune', lowrank: { from: 'stored', metadata, method: 'kto' } }]],
  [METADATA_FIELDS, [{ metadata }]],
  [ALIAS_FIELDS, [{ name: 'a', model: 'base' }]],
  [LOAD_FIELDS, [{ lora_name: 'a', lora_path: 'b' }]],
  [{ metadata: { ...METADATA, about: 'stored chats, which are also bounded in bytes' } }, [{ metadata }]],
]

/** The value with one of its texts, names, lists or objects made large, at every place. */
function* grown(value: unknown): Generator<unknown> {
  if (typeof value === 'string') yield value + LARGE
  if (typeof value === 'string') yield LARGE
  if (Array.isArray(value)) yield Array(50_000).fill(value[0])
  if (typeof value !== 'object' || value === null) return
  yield { ...value, [LARGE]: 1 }
  yield { ...value, more: LARGE }
  yield { ...value, ...Object.fromEntries(Array.from({ length: 20_000 }, (_, i) => [`name ${i}`, 'x'])) }
  for (const [name, member] of Object.entries(value)) {
    for (const larger of grown(member)) yield { ...value, [name]: larger }
  }
}

it('bounds every field that is kept', () => {
  let tried = 0
  for (const [table, bodies] of KEPT) {
    const named = new Set(bodies.flatMap((body) => Object.keys(body)))
    for (const [name, { about }] of Object.entries(table)) if (about !== 'refused') expect(named).toContain(name)
    for (const [name, value] of bodies.flatMap(Object.entries)) {
      expect(table[name].accepts(value), name).toBe(true)
      for (const larger of grown(value)) {
        tried++
        if (table[name].accepts(larger)) expect(JSON.stringify(larger).length, name).toBeLessThan(MOST)
      }
    }
  }
  for (const [table, all] of [[HYPERPARAMETERS, hyperparameters] as const, [LOWRANK, lowrank] as const]) {
    expect(Object.keys(all).sort()).toEqual(Object.keys(table).sort())
  }
  expect(tried).toBeGreaterThan(100)
})

it('bounds what events repeat of a file', async () => {
  const store = await openStore(folder, (error) => expect.unreachable(String(error)))
  const job = { id: 'ftjob-a', owner: 'x', created_at: 1, status: 'running', metadata: null } as unknown as Job
  await store.write(async (rows) => {
    await insertJob(rows, job)
    for (let i = 0; i < 2; i++) await tell(rows, job, 'wide', `have a field "${LARGE}"`)
  })
  const events = await store.rows.selectFrom('events').select('message').execute()
  expect(events.map(({ message }) => [message.length < 3000, message.slice(-4)])).toEqual([[true, 'xx …']])
  await store.close()
})

it('stops reading at the 100th line that cannot be used', async () => {
  const bytes = Buffer.from('{"text": 1}\n'.repeat(200_000))
  let end = 0
  const source = {
    name: 'bad.jsonl',
    byteLength: bytes.length,
    async read(offset: number, byteLength: number) {
      end = Math.max(end, offset + byteLength)
      return Uint8Array.from(bytes.subarray(offset, offset + byteLength))
    },
    async close() {},
  }
  const { invalid, records } = await checkData({ data: source, task: 'causal-lm', maxInvalid: MAX_INVALID })
  expect([invalid.length, invalid.at(-1)!.where, records]).toEqual([100, 'bad.jsonl, line 100', 0])
  expect(end).toBeLessThan(bytes.length)
})
