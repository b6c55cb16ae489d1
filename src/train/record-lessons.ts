// Training on records: the batches of each step, evaluations, and the scores of the model before the first step, if the
// task compares with them.

import type { Learner, Predicted } from './learner.js'
import {
  type Batch,
  batchOf,
  costsOf,
  type MicroBatch,
  planEvaluation,
  stepPlans,
  stepsPerEpoch,
} from './rows/batches.js'
import type { Lessons, Run } from './run.js'
import { samplerOf } from './samples.js'
import type { Examples } from './tasks/task.js'

/** A batch, with the examples that its numbers count. */
interface Placed extends MicroBatch {
  readonly of: Examples<unknown>
}

export function recordLessons(run: Run, learner: Learner): Lessons {
  const { open, model, settings, examples, costs, evalExamples, on } = run
  const { sample = [], signal } = run.options
  const options = {
    batchSize: settings.batchSize,
    accumulation: settings.gradientAccumulation,
    limit: model.contextLength ?? Number.POSITIVE_INFINITY,
    inOrder: open.needsNeighbors ?? false,
  }
  const perEpoch = stepsPerEpoch(examples.length, options)
  const totalSteps = settings.maxSteps ?? Math.ceil(settings.epochs * perEpoch)
  const evaluated = evalExamples ?? []
  const evalPlans = planEvaluation(costsOf(open, evaluated), options).map((plan) => ({ ...plan, of: evaluated }))
  const others = evalExamples && open.others?.(examples, evalExamples)
  const otherPlans = others && planEvaluation(costsOf(open, others), options).map((plan) => ({ ...plan, of: others }))
  const plans = stepPlans(costs, run.adapter.config.seed, options)
  const planOf = (step: number) => plans(Math.floor(step / perEpoch), step % perEpoch)
  const sampler = sample.length === 0 ? undefined : samplerOf(sample, run)
  /** Runs batches without gradients. Returns false if the signal ends it. */
  const runAll = async (
    plans: readonly Placed[],
    take: (found: Predicted, batch: Batch, plan: Placed) => void,
    factors?: readonly Float32Array[],
  ) => {
    const tell = (done: number) => on.progress?.({ stage: 'evaluate', done, total: plans.length })
    for (const [done, plan] of plans.entries()) {
      if (signal?.aborted) return false
      tell(done)
      const batch = batchOf(plan.of, plan)
      take(await learner.forward(batch, { factors, hasLoss: plan.of !== others }), batch, plan)
    }
    tell(plans.length)
    return true
  }

  return {
    stepsPerEpoch: perEpoch,
    totalSteps,

    async forwardBackward(step) {
      const plans = planOf(step)
      const batches = plans.map((plan) => batchOf(examples, plan))
      const indices = plans.flatMap((plan) => plan.examples)
      const tokens = indices.reduce((sum, index) => sum + costs[index], 0)
      return { loss: await learner.forwardBackward(batches), tokens, examples: indices.length }
    },

    // A resumed run computes the same numbers again, in the same batches.
    ...(open.reference && {
      async before() {
        on.stage?.('evaluate')
        // The first pass over the data has each example once, unless the run is over before.
        const steps = Array.from({ length: Math.min(perEpoch, totalSteps) }, (_, step) => planOf(step))
        const batches = [...steps.flat().map((plan) => ({ ...plan, of: examples })), ...evalPlans]
        await runAll(batches, ({ outputs }, _, { of, examples }) => {
          open.reference!(outputs).forEach((two, i) => void of.mark!(examples[i], two))
        })
      },
    }),

    ...(evalExamples && {
      async evaluate(factors) {
        let [sum, total] = [0, 0]
        const predictions: unknown[] = []
        const predictionsOfOthers: unknown[] = []
        const isDone = await runAll(
          [...evalPlans, ...(otherPlans ?? [])],
          ({ loss, normalizer, outputs }, batch, { of }) => {
            for (const prediction of open.predict(outputs, batch.examples)) {
              ;(of === others ? predictionsOfOthers : predictions).push(prediction)
            }
            if (of === others) return
            sum += loss * normalizer
            total += normalizer
          },
          factors,
        )
        if (!isDone) return undefined
        const loss = sum / total
        // Metrics of a loss that is not finite say nothing.
        if (!Number.isFinite(loss)) return { loss, metrics: {} }
        const result = {
          loss,
          predictions,
          others: others && predictionsOfOthers,
          // Read again only if they are needed: as objects, examples take much more memory than in the store.
          get examples() {
            return evalPlans.flatMap((plan) => batchOf(plan.of, plan).examples)
          },
        }
        return { loss, metrics: open.metrics(result) }
      },
    }),

    ...(sampler && { sample: () => sampler(learner) }),
  }
}
