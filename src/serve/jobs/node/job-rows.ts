// Jobs and their events as rows. Each change of a job is one transaction, with the events that tell of it.

import { seconds } from '../../adapters.js'
import type { Caller } from '../../keys.js'
import { requireRow, type Store, setLabels } from '../../store/store.js'
import type { Row, Rows } from '../../store/tables.js'
import { ENDED, type Job, modelName } from '../job.js'

export interface JobEvent {
  readonly id: string
  readonly object: 'fine_tuning.job.event'
  readonly created_at: number
  readonly level: 'info' | 'warn' | 'error'
  readonly message: string
  readonly type: 'message' | 'metrics'
  readonly data: Readonly<Record<string, unknown>> | null
}

/** The level is `info` by default. */
export type Details = Partial<Pick<JobEvent, 'level' | 'data'>>

/** What a job's folder has before its row is there. */
export const OF_NEW_JOB = /^((training|validation)\.jsonl|(grader|settings)\.json)$/

/** A message may repeat a part of a caller's file, such as the name of a field. */
const MAX_MESSAGE = 2000

export function shortened(message: string): string {
  return message.length <= MAX_MESSAGE ? message : `${message.slice(0, MAX_MESSAGE)} …`
}

export function jobOf({ record }: Pick<Row<'jobs'>, 'record'>): Job {
  return JSON.parse(record)
}

const columnsOf = (job: Job) => {
  return { status: job.status, is_paused: job.isPaused ? 1 : 0, record: JSON.stringify(job) }
}

export async function insertJob(rows: Rows, job: Job): Promise<void> {
  const { id, owner, created_at } = job
  const row = { id, owner, created_at, ...columnsOf(job) }
  const { seq } = await rows.insertInto('jobs').values(row).returning('seq').executeTakeFirstOrThrow()
  await setLabels(rows, 'jobs', { seq, owner }, job.metadata)
}

/** @throws HttpError if the caller has no such job */
export async function findJob(rows: Rows, id: string, caller: Caller): Promise<Job> {
  const [found] = await rows.selectFrom('jobs').selectAll().where('id', '=', id).execute()
  return jobOf(requireRow(found, caller, 'job', id))
}

/** Changes a job that has not ended, and returns it. Returns undefined if it has ended meanwhile. */
export function changeJob(
  store: Store,
  id: string,
  change: (job: Job, rows: Rows) => void | Promise<void>,
): Promise<Job | undefined> {
  return store.write(async (rows) => {
    const [found] = await rows.selectFrom('jobs').selectAll().where('id', '=', id).execute()
    if (found === undefined || ENDED.includes(found.status as Job['status'])) return undefined
    const job = jobOf(found)
    await change(job, rows)
    await rows.updateTable('jobs').set(columnsOf(job)).where('id', '=', id).execute()
    return job
  })
}

/** Adds an event, unless the job has one with this key. */
export async function tell(
  rows: Rows,
  { id: job }: Pick<Job, 'id'>,
  key: string,
  message: string,
  { level = 'info', data = null }: Details = {},
): Promise<void> {
  const about = { id: `ftevent-${job.replace('ftjob-', '')}-${key}`, job, created_at: seconds(), level }
  await insertEvent(rows, { ...about, message: shortened(message), data: data && JSON.stringify(data) })
}

export async function insertEvent(rows: Rows, event: Omit<Row<'events'>, 'seq'>): Promise<void> {
  const added = rows.insertInto('events').values(event)
  await added.onConflict((conflict) => conflict.column('id').doNothing()).execute()
}

export function wireEvent({ id, created_at, level, message, data }: Row<'events'>): JobEvent {
  const about = { id, object: 'fine_tuning.job.event', created_at, level: level as JobEvent['level'], message } as const
  return data === null ? { ...about, type: 'message', data } : { ...about, type: 'metrics', data: JSON.parse(data) }
}

/** Lets a server serve what a job has made up to a step, or its result. */
export async function offerModel(rows: Rows, job: Job, created_at: number, step?: number): Promise<void> {
  const place = step === undefined ? 'run' : `checkpoints/step-${step}`
  const made = { name: modelName(job, step), job: job.id, owner: job.owner, place, created_at, is_deleted: 0 }
  const added = rows.insertInto('models').values(made)
  await added.onConflict((conflict) => conflict.column('name').doNothing()).execute()
}
