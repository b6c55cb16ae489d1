// A job as it is kept, and as callers see it.

import type { Caller } from '../keys.js'

export type JobStatus = 'validating_files' | 'queued' | 'running' | 'succeeded' | 'failed' | 'cancelled'

export interface Checkpoint {
  readonly step: number
  readonly created_at: number
  readonly metrics: Readonly<Record<string, number>>
  /** True for the last step, whose model is the result of the job. */
  readonly isResult?: boolean
}

/** Publishes the result under an alias if it is no worse than the model that has the alias, or else than the base. */
export interface Gate {
  readonly alias: string
  readonly metric?: string
}

/** The change of the gate's metric on the validation file, with the 95 % interval of the paired differences. */
export interface Judged {
  readonly value: number
  readonly low: number | null
  readonly high: number | null
  readonly isPassed: boolean
  readonly isPublished: boolean
}

export type Hyperparameters = Readonly<Record<string, 'auto' | number>>

export interface Job {
  readonly id: string
  readonly owner: string
  readonly created_at: number
  readonly model: string
  /** The name of the base under which the result is known. */
  readonly base: string
  /** The folder of the adapter that the job starts from. */
  readonly start?: string | undefined
  readonly training_file: string
  readonly validation_file: string | null
  readonly method: 'supervised' | 'dpo' | 'reinforcement'
  readonly grader?: object | undefined
  readonly suffix: string
  readonly seed: number
  readonly metadata: Readonly<Record<string, string>> | null
  /** Options that OpenAI's API does not have. */
  readonly lowrank: Readonly<Record<string, unknown>>
  /** As the caller gave them. After the files are checked, numbers replace `auto`. */
  hyperparameters: Hyperparameters
  status: JobStatus
  isPaused: boolean
  /** Steps between two checkpoints. Known after the files are checked. */
  checkpointEvery: number
  /** How often it was paused or resumed. */
  turns: number
  error: { readonly code: string; readonly message: string; readonly param: string | null } | null
  finished_at: number | null
  estimated_finish: number | null
  trained_tokens: number | null
  result_files: readonly string[]
  checkpoints: readonly Checkpoint[]
  judged?: Judged
}

/** A job's process may take this long to stop: enough for a step of a large model, and for saving. */
export const STOP_MS = 120_000

/** The check of a file ends at this many lines that cannot be used. */
export const MAX_INVALID = 100

export const ENDED: readonly JobStatus[] = ['succeeded', 'failed', 'cancelled']

export function modelName({ id, base, suffix }: Pick<Job, 'id' | 'base' | 'suffix'>, step?: number): string {
  const name = `ft:${base}:lowrank:${suffix}:${id.replace('ftjob-', '').slice(0, 10)}`
  return step === undefined ? name : `${name}:ckpt-step-${step}`
}

/** @param folder where the job is; only admins see it */
export function wireJob(job: Job, caller: Caller, folder: string) {
  const { id, created_at, finished_at, estimated_finish, model, base: _, seed, status, error, metadata } = job
  const { trained_tokens, training_file, validation_file, result_files, suffix, method, grader, lowrank } = job
  const { hyperparameters } = job
  const { n_epochs = 'auto', batch_size = 'auto', learning_rate_multiplier = 'auto' } = hyperparameters
  return {
    ...{ id, object: 'fine_tuning.job', created_at, finished_at, estimated_finish, model, organization_id: 'lowrank' },
    fine_tuned_model: status === 'succeeded' ? modelName(job) : null,
    ...{ status, error, seed, metadata, trained_tokens, training_file, validation_file, result_files },
    ...{ integrations: null, user_provided_suffix: suffix || null },
    hyperparameters: { n_epochs, batch_size, learning_rate_multiplier },
    method: { type: method, [method]: { ...(grader && { grader }), hyperparameters } },
    lowrank: {
      ...lowrank,
      ...(job.judged && { judged: job.judged }),
      ...(caller.isAdmin && { command: `lowrank train --config ${folder}/settings.json --out DIR` }),
    },
  }
}
