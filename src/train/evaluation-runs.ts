// Runs without gradients: an evaluation, and what a task wants to know of the model before the first step.

import type { Examples, OpenTask } from '../tasks/task.js'
import { EpochPlan, examplesOf, type MicroBatch, type PlanOptions, planEvaluation } from './rows/batches.js'
import type { TrainingSessions } from './sessions.js'
import type { EvaluationEvent, TrainEvents } from './train-report.js'

export interface EvaluateParts {
  readonly open: OpenTask
  readonly evalExamples: Examples<unknown> | undefined
  readonly sessions: TrainingSessions
  readonly planOptions: PlanOptions
  readonly signal: AbortSignal | undefined
  readonly on: TrainEvents
}

/**
 * Returns undefined if there are no records, or the signal ends it. A loss that is not finite comes without metrics.
 */
export async function evaluate(parts: EvaluateParts): Promise<Omit<EvaluationEvent, 'step'> | undefined> {
  const { open, evalExamples, planOptions } = parts
  if (evalExamples === undefined) return undefined
  let sum = 0
  let total = 0
  const predictions: unknown[] = []
  const plans = planEvaluation(costsOf(open, evalExamples), planOptions)
  const isDone = await runAll(parts, plans, async (plan) => {
    const batch = examplesOf(evalExamples, [plan])
    const { loss, normalizer, outputs } = await parts.sessions.forward(batch, plan.sequence)
    sum += loss * normalizer
    total += normalizer
    if (open.predict === undefined) return
    for (const prediction of open.predict(outputs, batch)) predictions.push(prediction)
  })
  if (!isDone) return undefined
  const loss = sum / total
  if (!Number.isFinite(loss)) return { loss, metrics: {} }
  const result = {
    loss,
    predictions,
    // Read again only where they are needed: stored examples are small, and read ones are not.
    get examples() {
      return examplesOf(evalExamples, plans)
    },
  }
  return { loss, metrics: open.metrics(result) }
}

/** A resumed run computes the same numbers again, in the same batches. */
export async function takeReference(
  parts: EvaluateParts & { examples: Examples<unknown>; costs: Int32Array; seed: number; totalSteps: number },
): Promise<void> {
  const { open, examples, costs, evalExamples = [], planOptions, seed, totalSteps } = parts
  parts.on.stage?.('evaluate')
  // The first pass over the data has each example once, unless the run is over before.
  const plan = new EpochPlan(costs, seed, 0, planOptions)
  const steps = Array.from({ length: Math.min(plan.length, totalSteps) }, (_, step) => plan.at(step))
  const batches = [
    ...steps.flat().map((plan) => ({ ...plan, from: examples })),
    ...planEvaluation(costsOf(open, evalExamples), planOptions).map((plan) => ({ ...plan, from: evalExamples })),
  ]
  await runAll(parts, batches, async (plan) => {
    const { outputs } = await parts.sessions.forward(examplesOf(plan.from, [plan]), plan.sequence)
    open.reference?.(outputs).forEach((two, i) => void plan.from.mark?.(plan.examples[i], two))
  })
}

export function costsOf(open: OpenTask, examples: Examples<unknown>): Int32Array {
  if (examples.costs !== undefined) return examples.costs
  const costs = new Int32Array(examples.length)
  let i = 0
  for (const example of examples) costs[i++] = open.cost(example)
  return costs
}

export function longestOf(costs: Iterable<number>): number {
  let longest = 0
  for (const cost of costs) longest = Math.max(longest, cost)
  return longest
}

/** Returns false when the signal ends it. */
async function runAll<Plan extends MicroBatch>(
  { signal, on }: EvaluateParts,
  plans: readonly Plan[],
  run: (plan: Plan) => Promise<void>,
): Promise<boolean> {
  const tell = (done: number) => on.progress?.({ stage: 'evaluate', done, total: plans.length })
  for (const [done, plan] of plans.entries()) {
    if (signal?.aborted) return false
    tell(done)
    await run(plan)
  }
  tell(plans.length)
  return true
}
