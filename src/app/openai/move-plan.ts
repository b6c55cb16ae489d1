// How each job is trained again: by its own method if that is possible here. A plan is data and changes nothing.

import { openGrader } from '../../api/export/measures.js'
import type { GraderModel } from '../../api/index.js'
import { LowrankError } from '../../core/base/errors.js'
import { isObject } from '../../core/base/options.js'
import type { Prompt } from './prompts.js'
import type { Clause, Item, Job } from './provider.js'

export type Planned =
  | {
      readonly kind: 'train'
      readonly task: 'causal-lm' | 'dpo' | 'grpo'
      readonly rows: readonly Item[]
      readonly notes: readonly string[]
    }
  | { readonly kind: 'not moved'; readonly notes: readonly string[] }

export interface Sources {
  readonly job: Job
  /** Allows rows that a provider's model wrote, after its clause was shown. */
  readonly termsRead?: boolean | undefined
  readonly clause: Clause
  readonly training: readonly Prompt[]
  readonly graderModels?: Readonly<Record<string, GraderModel>> | undefined
}

const OURS = 'Epochs and seed are the job’s. The learning rate, the batch size and the rank are lowrank’s own'

export function planMove({ job, training, graderModels, termsRead = false, clause }: Sources): Planned {
  const rows = training.map(({ row }) => row)
  const notMoved = (why: string): Planned => ({ kind: 'not moved', notes: [why] })
  if (rows.length === 0) return notMoved('its training file is missing or has no rows that can be read')
  const writers = [...new Set(rows.flatMap(({ source }) => (isObject(source) && source.provider) || []))]
  if (writers.length > 0 && !termsRead) {
    return notMoved(
      `rows of its file were written by ${writers.join(', ')}. ${clause.text}: ${clause.url} (${clause.read}). \`termsRead: true\` allows them`,
    )
  }
  const notes = [...writers.map((writer) => `some of its rows were written by a model of ${writer}`), OURS]
  if (job.method === 'dpo') return { kind: 'train', task: 'dpo', rows, notes }
  const answered = training.filter(({ wanted }) => wanted !== undefined).map(({ row }) => row)
  if (job.method === 'supervised') {
    return answered.length > 0
      ? { kind: 'train', task: 'causal-lm', rows: answered, notes }
      : notMoved('its file has no answers')
  }
  const problem = problemOf(job.grader, graderModels)
  if (problem === undefined) return { kind: 'train', task: 'grpo', rows, notes }
  if (answered.length === 0)
    return notMoved(`its grader cannot run here (${problem}), and its file has no answers to learn from`)
  const why = `its grader cannot run here (${problem}), so that it learned from the answers in its file`
  return { kind: 'train', task: 'causal-lm', rows: answered, notes: [why, ...notes] }
}

/** Why a grader cannot judge here. */
export function problemOf(grader: unknown, models: Sources['graderModels'] = {}): string | undefined {
  try {
    openGrader(grader, models)
    return undefined
  } catch (error) {
    if (!(error instanceof LowrankError)) throw error
    return error.message
  }
}

/** Models that train on machines of these sizes, the best first. */
const BASES = [
  { id: 'HuggingFaceTB/SmolLM2-1.7B-Instruct', gigabytes: 16 },
  { id: 'HuggingFaceTB/SmolLM2-360M-Instruct', gigabytes: 5 },
  { id: 'HuggingFaceTB/SmolLM2-135M-Instruct', gigabytes: 0 },
]

/** @param free bytes of memory */
export const baseThatFits = (free: number) => BASES.find(({ gigabytes }) => free >= gigabytes * 1e9)!.id
