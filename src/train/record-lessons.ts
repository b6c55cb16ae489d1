// Training on records: the batches of each step, evaluations, and the scores of the model before the first step, if the
// task compares with them.

import type { Learner } from './learner.js'
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
  const plans = stepPlans(costs, run.adapter.config.seed, options)
  const planOf = (step: number) => plans(Math.floor(step / perEpoch), step % perEpoch)
  const sampler = sample.length === 0 ? undefined : samplerOf(sample, run)
  /** Runs batches without gradients. Returns false if the signal ends it. */
  const runAll = async (
    plans: readonly Placed[],
    take: (found: Awaited<ReturnType<Learner['forward']>>, batch: Batch, plan: Placed) => void,
  ) => {
    const tell = (done: number) => on.progress?.({ stage: 'evaluate', done, total: plans.length })
    for (const [done, plan] of plans.entries()) {
      if (signal?.aborted) return false
      tell(done)
      const batch = batchOf(plan.of, plan)
      take(await learner.forward(batch), batch, plan)
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
      async evaluate() {
        let [sum, total] = [0, 0]
        const predictions: unknown[] = []
        const isDone = await runAll(evalPlans, ({ loss, normalizer, outputs }, batch) => {
          sum += loss * normalizer
          total += normalizer
          for (const prediction of open.predict(outputs, batch.examples)) predictions.push(prediction)
        })
        if (!isDone) return undefined
        const loss = sum / total
        // Metrics of a loss that is not finite say nothing.
        if (!Number.isFinite(loss)) return { loss, metrics: {} }
        const result = {
          loss,
          predictions,
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
