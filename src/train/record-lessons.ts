// Training on records: the batches of each step, evaluations, and the scores of the model before the first step, if the
// task compares with them.

import type { Learner } from './learner.js'
import type { TrainEvents } from './report.js'
import { type Batch, batchOf, EpochPlan, type MicroBatch, planEvaluation, stepsPerEpoch } from './rows/batches.js'
import type { Sampler } from './samples.js'
import type { TrainSettings } from './settings.js'
import type { Examples, OpenTask } from './tasks/task.js'
import type { Lessons } from './training-loop.js'

export interface RecordParts {
  readonly settings: TrainSettings
  readonly examples: Examples<unknown>
  /** {@link OpenTask.cost} of each example. */
  readonly costs: Int32Array
  readonly evalExamples: Examples<unknown> | undefined
  readonly sampler: Sampler | undefined
  readonly signal: AbortSignal | undefined
  readonly on: TrainEvents
}

/** A batch, with the examples that its numbers count. */
interface Placed extends MicroBatch {
  readonly of: Examples<unknown>
}

export function recordLessons(trainer: Learner, parts: RecordParts): Lessons {
  const { settings, examples, costs, evalExamples, sampler, signal, on } = parts
  const { open, model, adapter } = trainer.parts
  const { seed } = adapter.config
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
  let pass = { epoch: -1, steps: undefined as unknown as EpochPlan }
  const planOf = (step: number) => {
    const epoch = Math.floor(step / perEpoch)
    if (pass.epoch !== epoch) pass = { epoch, steps: new EpochPlan(costs, seed, epoch, options) }
    return pass.steps.at(step % perEpoch)
  }
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
      take(await trainer.forward(batch), batch, plan)
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
      return { loss: await trainer.forwardBackward(batches), tokens, examples: indices.length }
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

    ...(sampler && { sample: () => sampler(trainer, options.limit, signal) }),
  }
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
