// Runs in which the model writes texts for prompts and learns from them.

import { DataError, NumericError } from '../../core/base/errors.js'
import { isObject, objectOf, pickFields } from '../../core/base/options.js'
import { Random } from '../../core/base/random.js'
import { readRows } from '../../files/data/read-rows.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import { CHAT_FIELDS, type MessageOfParts, withSystem } from '../../model/text/chat.js'
import { checkFields, type Example, fieldsOf } from '../../model/text/records.js'
import type { Prompt } from '../../run/session.js'
import { runRecord } from '../about-run.js'
import type { TrainInput, TrainResult } from '../options.js'
import type { RewardMetrics } from '../report.js'
import { EpochPlan } from '../rows/batches.js'
import { DataFacts } from '../rows/facts.js'
import { checkWriter } from '../rows/sources.js'
import { placeOf, withRunPlace } from '../saved/run-place.js'
import { resolveSettings, type TrainSettings, withDefaultRate } from '../settings.js'
import { causalLm } from '../tasks/causal-lm.js'
import type { OpenTask } from '../tasks/task.js'
import type { LoopName } from '../tasks/tasks.js'
import type { RunContext } from '../train.js'
import { type Lessons, runLessons } from '../training-loop.js'
import type { RewardInput } from './graders/rewards.js'
import { Trainer } from './trainer.js'
import type { Sample } from './trainer-options.js'

export interface PromptRow extends Pick<RewardInput, 'messages' | 'answer' | 'row'> {
  readonly prompt: Prompt
  readonly text: string
}

export interface Written {
  readonly samples: readonly Sample[]
  readonly rewards?: RewardMetrics
}

/** The parts in which GRPO and distillation differ. */
export interface PromptTask<T extends Written> {
  readonly name: LoopName
  readonly taskOptions: Readonly<Record<string, unknown>>
  /** The default learning rate, which follows from the model's width, is multiplied by this factor. */
  readonly rateShare: number
  readonly textsPerPrompt: number
  /** The texts that run through the training graph together. Default: those of one prompt. */
  readonly batchSize?: number
  /** The task of the training graph, if it is not to give the log-probabilities of tokens: see {@link Trainer.open}. */
  readonly task?: OpenTask<Example>
  /** The number of steps with the same texts. */
  readonly iterations: number
  write(trainer: Trainer, rows: readonly PromptRow[], seed: number): Promise<T>
  /** Adds the gradients of a step. `isFirst` is true if no step was taken since the texts were written. */
  learn(
    trainer: Trainer,
    written: T,
    isFirst: boolean,
  ): Promise<{ readonly loss: number; readonly metrics?: Readonly<Record<string, number>> }>
}

export async function trainOnPrompts<T extends Written>(
  given: TrainInput,
  { limits, wait, memoryUse, sources, page }: RunContext,
  { name: task, rateShare, textsPerPrompt, batchSize = textsPerPrompt, iterations, ...promptTask }: PromptTask<T>,
): Promise<TrainResult> {
  const startedAt = performance.now()
  const { on = {}, signal, model, keepState = false } = given
  on.task?.(task)
  on.stage?.('encode')
  const plan = await promptSteps(given, iterations)
  const { rows, promptsPerStep, stepsPerEpoch, totalSteps } = plan
  const facts = new DataFacts()
  for (const { row } of rows) facts.add(row, false)
  on.stage?.('prepare')
  return withRunPlace(await placeOf(given), async (place) => {
    const { task: open } = promptTask
    const trainer = await Trainer.open(model, { ...given, batchSize, resume: undefined }, { limits, task: open })
    try {
      const { adapter, inner } = trainer
      const { seed } = adapter.config
      const settings = settingsFor(given, adapter, rateShare)
      let written: T | undefined
      let prompt = ''
      const lessons: Lessons = {
        stepsPerEpoch,
        totalSteps,
        savesOnError: true,
        isWhole: (steps) => steps % iterations === 0,
        async forwardBackward(step) {
          const iteration = step % iterations
          if (iteration === 0 || written === undefined) {
            const pass = planOfPrompts(plan, seed, Math.floor(step / stepsPerEpoch))
            const [{ examples }] = pass.at(Math.floor((step % stepsPerEpoch) / iterations))
            const asked = examples.map((index) => rows[index])
            prompt = asked[0].text
            const seedOfTexts = new Random(seed, `texts/${step - iteration}`).uint32()
            const made = await promptTask.write(trainer, asked, seedOfTexts).catch((error) => {
              if (error instanceof NumericError && error.where === 'logits') return undefined
              throw error
            })
            if (made === undefined) return { loss: Number.NaN, tokens: 0, examples: 0 }
            written = made
          }
          const { samples, rewards } = written
          const { loss, metrics } = await promptTask.learn(trainer, written, iteration === 0).catch((error) => {
            if (error instanceof NumericError) return { loss: Number.NaN, metrics: undefined }
            throw error
          })
          const tokens = samples.reduce((sum, { ids }) => sum + ids.length, 0)
          return { loss, tokens, examples: samples.length, rewards: rewards && { ...rewards, ...metrics } }
        },
        sample: async () => written?.samples.slice(0, textsPerPrompt).map(({ text }) => ({ prompt, text })),
      }
      const taskOptions = { ...promptTask.taskOptions, promptsPerStep }
      const about = { task, taskOptions, examples: rows, evalExamples: undefined, totalSteps }
      const report = await runLessons(inner, lessons, {
        ...{ task, settings, out: place, keepState, signal, memoryUse, wait, on },
        record: sources && runRecord(given, sources, { settings, config: adapter.config }),
        card: { options: given, sources, task, use: causalLm.use, adapter, settings, facts },
        page,
        facts: { ...inner.parts, ...about },
      })
      const counts = { truncatedRecords: 0, skippedRecords: 0, newHead: null, labels: null }
      const params = { trainableParams: adapter.totalTrainableParams(), totalParams: adapter.totalParams() }
      const seconds = (performance.now() - startedAt) / 1000
      return { adapter, report: { ...report, ...counts, ...params, task, seconds } }
    } finally {
      await trainer.dispose()
    }
  })
}

/** Reads the prompts of a run and counts its steps. `iterations`: how many steps use the same texts. */
export async function promptSteps(given: TrainInput, iterations: number) {
  const rows = await promptsOf(given)
  const { batchSize, gradientAccumulation, maxSteps, epochs } = resolveSettings(given)
  const promptsPerStep = batchSize * gradientAccumulation
  const stepsPerEpoch = Math.ceil(rows.length / promptsPerStep) * iterations
  return { rows, promptsPerStep, stepsPerEpoch, totalSteps: maxSteps ?? Math.ceil(epochs * stepsPerEpoch) }
}

/** The order of the prompts in one pass over them. */
export function planOfPrompts(
  { rows, promptsPerStep }: Pick<Awaited<ReturnType<typeof promptSteps>>, 'rows' | 'promptsPerStep'>,
  seed: number,
  epoch: number,
): EpochPlan {
  const options = { batchSize: promptsPerStep, accumulation: 1, limit: 0 }
  return new EpochPlan(new Int32Array(rows.length), seed, epoch, options)
}

export function settingsFor(given: TrainInput, adapter: LoraAdapter, rateShare: number): TrainSettings {
  const layers = { widths: adapter.parts('linear').map(({ k }) => k), trainsBase: false }
  return withDefaultRate(resolveSettings(given), given, { rateShare }, layers)
}

async function promptsOf({ data, columns, termsRead }: TrainInput): Promise<PromptRow[]> {
  const rows: PromptRow[] = []
  for await (const { row, where } of readRows(data, { name: 'data', columns })) {
    checkWriter(row, where, termsRead)
    rows.push(promptOf(row, where))
  }
  if (rows.length === 0) throw new DataError({ where: 'data', what: 'it holds no records' })
  return rows
}

/**
 * Reads a record with `prompt`, `question` or `messages`. A question is a chat of one message. If messages end with an
 * answer, it is the wanted one.
 */
export function promptOf(row: unknown, where: string): PromptRow {
  const record = objectOf(row)
  checkFields(pickFields(record, CHAT_FIELDS), ['system'], where)
  const { question, messages = typeof question === 'string' ? [{ role: 'user', content: question }] : undefined } =
    record
  const { prompt = messages } = record
  const given = [record.answer, record.completion, record.solution].find((value) => /string|number/.test(typeof value))
  const wanted = given === undefined ? undefined : String(given)
  if (typeof prompt === 'string' && prompt !== '') {
    checkFields(pickFields(record, CHAT_FIELDS), [], where)
    return { prompt, text: prompt, messages: undefined, answer: wanted, row: record }
  }
  const isChat = Array.isArray(prompt) && prompt.length > 0 && prompt.every(isObject)
  if (!isChat) {
    throw new DataError({
      where,
      what: 'no prompt to answer',
      expected: '"prompt" as a text or a list of messages, "question", or "messages"',
      got: fieldsOf(row),
    })
  }
  const all = withSystem({ given: prompt, answers: [] }, record.system, where).given as MessageOfParts[]
  const isAnswered = all[all.length - 1].role === 'assistant'
  const asked = isAnswered ? all.slice(0, -1) : all
  const answer = wanted ?? (isAnswered ? all[all.length - 1].content : undefined)
  const text = String(asked[asked.length - 1]?.content ?? '')
  return { prompt: asked, text, messages: asked, answer: answer as string | undefined, row: record }
}
