// One evaluation: the loss over all evaluation records, and the task's metrics of what was predicted.

import type { Remote } from '../runtime/rpc.js'
import type { Examples, OpenTask } from '../tasks/task.js'
import { examplesOf, type PlanOptions, planEvaluation } from './batches.js'
import type { TrainEngine } from './engine.js'
import type { TrainingSessions } from './sessions.js'

export interface EvaluateParts {
  readonly open: OpenTask
  readonly examples: Examples<unknown>
  readonly sessions: TrainingSessions
  readonly engine: Remote<TrainEngine>
  readonly planOptions: PlanOptions
  readonly signal: AbortSignal | undefined
  /** Called with the number of batches that are done. */
  progress(done: number, total: number): void
}

/** Undefined when the signal ends it. The loss may be not finite; there are no metrics then. */
export async function evaluate(
  parts: EvaluateParts,
): Promise<{ loss: number; metrics: Record<string, number> } | undefined> {
  const { open, examples, sessions, engine, planOptions, signal, progress } = parts
  let sum = 0
  let total = 0
  const predictions: unknown[] = []
  const costs = Array.from(examples, (example) => open.cost(example))
  const plans = planEvaluation(costs, planOptions)
  for (const [done, plan] of plans.entries()) {
    if (signal?.aborted) return undefined
    progress(done, plans.length)
    const batch = examplesOf(examples, [plan])
    const normalizer = open.normalizer(batch)
    const pass = await sessions.evaluationPass(open.collate(batch, plan.sequence), normalizer)
    const isApart = open.stepLoss !== undefined
    const outputs = await engine.forward(pass, [...(isApart ? [] : [pass.loss]), ...pass.predictions])
    const own = open.stepLoss?.([{ outputs, examples: batch }]).loss ?? Number(outputs[pass.loss].data[0])
    sum += own * normalizer
    total += normalizer
    if (open.predict === undefined) continue
    for (const prediction of open.predict(outputs, batch)) predictions.push(prediction)
  }
  progress(plans.length, plans.length)
  const loss = sum / total
  if (!Number.isFinite(loss)) return { loss, metrics: {} }
  const result = {
    loss,
    predictions,
    // Read again only where they are needed: stored examples are small, and read ones are not.
    get examples() {
      return examplesOf(examples, plans)
    },
  }
  return { loss, metrics: open.metrics(result) }
}
