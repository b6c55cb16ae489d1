// Lessons of tasks in which the model writes texts for prompts and learns from them.

import { DataError, NumericError } from '../../core/base/errors.js'
import { Random } from '../../core/base/random.js'
import { bootstrap, meansOf } from '../evaluate/bootstrap.js'
import type { EvaluationEvent, RewardMetrics } from '../report.js'
import { stepPlans, stepsPerEpoch } from '../rows/batches.js'
import type { Lessons, Run } from '../run.js'
import type { Examples } from '../tasks/task.js'
import type { PromptRow } from './prompt-rows.js'
import type { Trainer } from './trainer.js'
import type { Sample } from './trainer-options.js'

export interface Written {
  readonly samples: readonly Sample[]
  readonly rewards?: RewardMetrics
}

/** What differs between such tasks. */
export interface Teaching<T extends Written> {
  readonly textsPerPrompt: number
  /** The number of steps with the same texts. */
  readonly iterations: number
  write(trainer: Trainer, rows: readonly PromptRow[], seed: number): Promise<T>
  /** Adds the gradients of a step. `isFirst` is true if no step was taken since the texts were written. */
  learn(
    trainer: Trainer,
    written: T,
    isFirst: boolean,
  ): Promise<{ readonly loss: number; readonly metrics?: Readonly<Record<string, number>> }>
  /** What one likeliest text for each held-out prompt is worth. The others are NaN if a text cannot be measured. */
  measure(trainer: Trainer, rows: readonly PromptRow[]): Promise<readonly Measures[]>
  close?(): Promise<void>
}

export type Measures = Readonly<Record<string, number>> & { readonly loss: number }

/** Held-out prompts that are answered between two looks at the signal. */
const EVALUATED = 32

export function promptLessons<T extends Written>(run: Run, trainer: Trainer, teaching: Teaching<T>): Lessons {
  const { settings, costs, evalExamples } = run
  const { textsPerPrompt, iterations } = teaching
  const rows = run.examples as Examples<PromptRow>
  const { seed } = run.adapter.config
  const options = { batchSize: settings.batchSize, accumulation: settings.gradientAccumulation, limit: 0 }
  const perEpoch = stepsPerEpoch(rows.length, options) * iterations
  const planOf = stepPlans(costs, seed, options)
  let written: T | undefined
  let prompt = ''
  return {
    stepsPerEpoch: perEpoch,
    totalSteps: settings.maxSteps ?? Math.ceil(settings.epochs * perEpoch),
    savesOnError: true,
    isWhole: (steps) => steps % iterations === 0,
    async forwardBackward(step) {
      const iteration = step % iterations
      if (iteration === 0 || written === undefined) {
        const plan = planOf(Math.floor(step / perEpoch), Math.floor((step % perEpoch) / iterations))
        const asked = plan.flatMap(({ examples }) => examples.map((index) => rows.at(index)!))
        prompt = asked[0].text
        const seedOfTexts = new Random(seed, `texts/${step - iteration}`).uint32()
        const made = await teaching.write(trainer, asked, seedOfTexts).catch((error) => {
          if (error instanceof NumericError && error.where === 'logits') return undefined
          throw error
        })
        if (made === undefined) return { loss: Number.NaN, tokens: 0, examples: 0 }
        written = made
      }
      const { samples, rewards } = written
      const { loss, metrics } = await teaching.learn(trainer, written, iteration === 0).catch((error) => {
        if (error instanceof NumericError) return { loss: Number.NaN, metrics: undefined }
        throw error
      })
      const tokens = samples.reduce((sum, { ids }) => sum + ids.length, 0)
      return { loss, tokens, examples: samples.length, rewards: rewards && { ...rewards, ...metrics } }
    },
    ...(evalExamples && {
      async evaluate() {
        const heldOut = [...evalExamples] as PromptRow[]
        const measures: Measures[] = []
        while (measures.length < heldOut.length) {
          if (run.options.signal?.aborted) return undefined
          const asked = heldOut.slice(measures.length, measures.length + EVALUATED)
          measures.push(...(await teaching.measure(trainer, asked)))
          run.on.progress?.({ stage: 'evaluate', done: measures.length, total: heldOut.length })
        }
        return evaluationOf(measures)
      },
    }),
    sample: async () => written?.samples.slice(0, textsPerPrompt).map(({ text }) => ({ prompt, text })),
    async close() {
      await trainer.dispose()
      await teaching.close?.()
    },
  }
}

/** The means over the prompts, with 95 % intervals. */
function evaluationOf(measures: readonly Measures[]): Omit<EvaluationEvent, 'step'> {
  const [{ metrics }] = bootstrap([meansOf(measures)], measures.length, { resamples: 1000, seed: 42 })
  const { loss, ...others } = metrics
  if (loss === undefined) throw new DataError({ where: 'evalData', what: 'no text for its prompts could be measured' })
  const entries = Object.entries(others).flatMap(([name, { value, low, high }]) => {
    return [
      [name, value],
      ...(low === null
        ? []
        : [
            [`${name}Low`, low],
            [`${name}High`, high],
          ]),
    ]
  })
  return { loss: loss.value, metrics: Object.fromEntries(entries) }
}
