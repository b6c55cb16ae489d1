// What a task wants to know of the model as it is before the first step: one run without gradients over all examples that are trained on or
// evaluated. A resumed run computes it again, in the same batches, and so gets the same numbers.

import type { LoraAdapter } from '../lora/adapter.js'
import type { Remote } from '../runtime/rpc.js'
import type { Examples, OpenTask } from '../tasks/task.js'
import { examplesOf, type PlanOptions, planEpoch, planEvaluation } from './batches.js'
import type { EngineSetup, TrainEngine } from './engine.js'
import type { EngineState } from './last-step.js'
import type { TrainEvents } from './report.js'
import type { TrainingSessions } from './sessions.js'

export interface ReferenceParts {
  readonly open: OpenTask
  readonly adapter: LoraAdapter
  readonly examples: Examples<unknown>
  readonly evalExamples: Examples<unknown> | undefined
  readonly sessions: TrainingSessions
  readonly engine: Remote<TrainEngine>
  readonly setup: EngineSetup
  /** Where training starts. */
  readonly begin: EngineState
  readonly planOptions: PlanOptions
  readonly totalSteps: number
  readonly signal: AbortSignal | undefined
  readonly on: TrainEvents
}

/** Gives the task its reference, or a part of it when the signal ends it. */
export async function takeReference(parts: ReferenceParts): Promise<void> {
  const { open, adapter, examples, evalExamples = [], sessions, engine, planOptions, signal, on } = parts
  on.stage?.('evaluate')
  await engine.start(parts.setup, parts.begin)
  const costsOf = (some: Examples<unknown>) => Array.from(some, (example) => open.cost(example))
  // The first pass over the data has each example once, unless the run is over before.
  const steps = planEpoch(costsOf(examples), adapter.config.seed, 0, planOptions).slice(0, parts.totalSteps)
  const batches = [
    ...steps.flat().map((plan) => ({ plan, from: examples })),
    ...planEvaluation(costsOf(evalExamples), planOptions).map((plan) => ({ plan, from: evalExamples })),
  ]
  for (const [done, { plan, from }] of batches.entries()) {
    if (signal?.aborted) return
    on.progress?.({ stage: 'evaluate', done, total: batches.length })
    const own = examplesOf(from, [plan])
    const pass = await sessions.evaluationPass(open.collate(own, plan.sequence), open.normalizer(own))
    open.takeReference?.(await engine.forward(pass, pass.predictions), own)
  }
  on.progress?.({ stage: 'evaluate', done: batches.length, total: batches.length })
}
