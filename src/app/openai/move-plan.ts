// How each job is trained again: by its own method if that is possible here. A plan is data and changes nothing.

import { openGrader } from '../../api/export/measures.js'
import type { GraderModel } from '../../api/index.js'
import { LowrankError } from '../../core/base/errors.js'
import type { Prompt } from './prompts.js'
import type { Item, Job } from './provider.js'

export interface Planned {
  /** undefined if the job is not moved. */
  readonly task?: 'causal-lm' | 'dpo' | 'grpo'
  readonly rows: readonly Item[]
  /** Sentences for the report: how the new job differs from the old one, or why it is not moved. */
  readonly notes: readonly string[]
}

export type GraderModels = Readonly<Record<string, GraderModel>>

const OURS = 'Epochs and seed are the job’s. The learning rate, the batch size and the rank are lowrank’s own'

export function planMove(job: Job, training: readonly Prompt[], graderModels?: GraderModels): Planned {
  const notMoved = (why: string): Planned => ({ rows: [], notes: [`not moved: ${why}`] })
  const rows = training.map(({ row }) => row)
  if (rows.length === 0) return notMoved('its training file is missing or has no rows that can be read')
  if (job.method === 'dpo') return { task: 'dpo', rows, notes: [OURS] }
  const problem = job.method === 'reinforcement' ? problemOf(job.grader, graderModels) : undefined
  if (job.method === 'reinforcement' && problem === undefined) return { task: 'grpo', rows, notes: [OURS] }
  const answered = training.filter(({ wanted }) => wanted !== undefined).map(({ row }) => row)
  const why = problem && `its grader cannot run here (${problem})`
  if (answered.length === 0)
    return notMoved([why, 'its file has no answers to learn from'].filter(Boolean).join(', and '))
  const notes = [...(why ? [`${why}, so that it learned from the answers in its file`] : []), OURS]
  return { task: 'causal-lm', rows: answered, notes }
}

/** Why a grader cannot judge here. */
export function problemOf(grader: unknown, models: GraderModels = {}): string | undefined {
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
