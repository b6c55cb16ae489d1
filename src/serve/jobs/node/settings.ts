// The options of `train` that a job comes to.

import path from 'node:path'
import type { TrainingNeeds } from '../../../api/node/parts.js'
import type { TrainOptions } from '../../../api/node.js'
import type { Gate, Hyperparameters, Job } from '../job.js'

/** The settings that a job's process reads. */
export interface JobSettings extends Omit<TrainOptions, 'model' | 'data' | 'evalData' | 'adapter' | 'graderModels'> {
  readonly model: string
  readonly data: string
  readonly evalData?: string | undefined
  readonly adapter?: string | undefined
  readonly graderModels?: Readonly<Record<string, string>> | undefined
}

/** How every job trains. `graderModels` says what answers for the models that graders name. */
export type Base = Pick<JobSettings, 'model' | 'dtype' | 'threads' | 'chatTemplate' | 'termsRead'> &
  Required<Pick<JobSettings, 'graderModels'>>

const TASKS = { supervised: 'causal-lm', dpo: 'dpo', reinforcement: 'grpo' } as const
/** Texts for each prompt of `reinforcement`, times `compute_multiplier`. */
const TEXTS = 8
/** Names of `lowrank` that belong to the new adapter. */
const OF_CONFIG = ['rank', 'alpha', 'dropout', 'useRslora']
/** Steps between two saves of the state, so that a crash costs little. */
const MOST_STEPS_BETWEEN_SAVES = 200

/** The settings that are known before the files are checked. */
export function settingsOf(job: Job, folder: string, { graderModels, ...base }: Base): JobSettings {
  const { method: special, gate: _, ...others } = job.lowrank as { method?: 'kto'; gate?: Gate }
  const pick = (isOfConfig: boolean) =>
    Object.fromEntries(Object.entries(others).filter(([name]) => OF_CONFIG.includes(name) === isOfConfig))
  const task = special ?? TASKS[job.method]
  const evalData = job.validation_file === null ? undefined : path.join(folder, 'validation.jsonl')
  return {
    ...base,
    ...{ data: path.join(folder, 'training.jsonl'), evalData, task },
    ...(job.grader !== undefined && { rewards: path.join(folder, 'grader.json'), graderModels }),
    ...(job.start === undefined ? { config: { ...pick(true), seed: job.seed } } : { adapter: job.start }),
    ...pick(false),
  }
}

/** Sets all numbers, after the files are checked. */
export function resolve(
  settings: JobSettings,
  given: Hyperparameters,
  { records, learningRate }: Pick<TrainingNeeds, 'records' | 'learningRate'>,
) {
  const { n_epochs = 'auto', batch_size = 'auto', learning_rate_multiplier = 'auto', beta, compute_multiplier } = given
  const { gradientAccumulation = 1, taskOptions, evalData, task } = settings
  const or = (value: 'auto' | number, chosen: number) => (value === 'auto' ? chosen : value)
  const hyperparameters = {
    n_epochs: or(n_epochs, epochsFor(records)),
    batch_size: or(batch_size, Math.max(task === 'kto' ? 2 : 1, batchFor(records))),
    learning_rate_multiplier: or(learning_rate_multiplier, 1),
    ...(beta !== undefined && { beta: or(beta, 0.1) }),
    ...(compute_multiplier !== undefined && { compute_multiplier: or(compute_multiplier, 1) }),
  }
  const { n_epochs: epochs, batch_size: batchSize, learning_rate_multiplier: times } = hyperparameters
  const { compute_multiplier: texts } = hyperparameters
  const { saveEvery, checkpointEvery } = savesFor(Math.ceil(records / (batchSize * gradientAccumulation)))
  const ofTask = {
    ...(beta !== undefined && { beta: hyperparameters.beta }),
    ...(texts !== undefined && { numGenerations: Math.max(2, Math.round(TEXTS * texts)) }),
    ...taskOptions,
  }
  const resolved: JobSettings = {
    ...{ epochs, batchSize, saveEvery, learningRate: learningRate * times },
    ...(evalData !== undefined && { evalEvery: checkpointEvery }),
    ...settings,
    ...(Object.keys(ofTask).length > 0 && { taskOptions: ofTask }),
  }
  return { hyperparameters, checkpointEvery, settings: resolved }
}

/** OpenAI's rule: three passes, more over few records and fewer over very many. */
function epochsFor(records: number): number {
  if (records * 3 < 100) return Math.min(25, Math.ceil(100 / records))
  return records * 3 > 25_000 ? Math.max(1, Math.floor(25_000 / records)) : 3
}

/** Small batches for few records: a handful of steps would teach little. */
function batchFor(records: number): number {
  return Math.max(1, Math.min(8, Math.floor(records / 8)))
}

/** When a run saves its state, and when a checkpoint is kept: about once for each pass over the records. */
function savesFor(stepsPerEpoch: number) {
  const saves = Math.ceil(stepsPerEpoch / MOST_STEPS_BETWEEN_SAVES)
  const saveEvery = Math.ceil(stepsPerEpoch / saves)
  return { saveEvery, checkpointEvery: saveEvery * saves }
}
