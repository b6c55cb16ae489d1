// The training loop. It ends when all steps are taken, when it is interrupted, or when a number is not finite. The
// caller says what a step learns from, such as records, or texts with rewards.

import { FileError, NumericError, RuntimeError } from '../core/base/errors.js'
import type { SignalLike } from '../core/base/globals.js'
import type { BaseRecord } from '../lora/adapter.js'
import { recordOfBase } from '../model/base-record.js'
import type { EngineState } from './engine/engine.js'
import type { Learner } from './learner.js'
import type {
  Evaluation,
  EvaluationEvent,
  MemoryUse,
  RewardMetrics,
  SampleEvent,
  StepMetrics,
  TrainEvents,
} from './report.js'
import { doubtsOf, hasSignal } from './saved/doubts.js'
import type { FingerprintParts } from './saved/fingerprint.js'
import { History, type RunReport } from './saved/history.js'
import type { CardSources } from './saved/model-card.js'
import type { RunPlace } from './saved/run-folder.js'
import type { RunWriter } from './saved/run-writer.js'
import { learningRates, type TrainSettings, usesBest, warmupStepsOf } from './settings.js'

/** What a step adds to metrics.jsonl and the report. */
const STEP_BYTES = 500
/** More than a report and a model card without steps. */
const REPORT_BYTES = 1 << 20

/** The source of a run's steps, such as records or texts with rewards. */
export interface Lessons {
  readonly stepsPerEpoch: number
  readonly totalSteps: number
  /** Adds the gradients of a step, counted from 0, to the trainer. `tokens` and `examples`: how many it had. */
  forwardBackward(
    step: number,
  ): Promise<{ loss: number; tokens: number; examples: number; rewards?: RewardMetrics | undefined }>
  /** Runs before the first step, such as the scores of a reference. */
  before?(): Promise<void>
  /** Evaluates. Returns undefined if the signal ends it. */
  evaluate?(): Promise<Omit<EvaluationEvent, 'step'> | undefined>
  /** Returns answers for people to read, or undefined if there are none. */
  sample?(): Promise<SampleEvent['samples'] | undefined>
  /** Returns false between steps that belong together: the run is neither saved nor stopped there. */
  isWhole?(steps: number): boolean
  /**
   * True if the state is saved even when `forwardBackward` throws. Set if that calls functions of the user, such as
   * rewards, which may work again later.
   */
  readonly savesOnError?: boolean
}

export interface RunInput {
  readonly task: string
  readonly lowerIsBetter?: readonly string[] | undefined
  readonly settings: TrainSettings
  /** A run can only be resumed if these facts are the same as before. */
  readonly facts: FingerprintParts
  readonly out: RunPlace | undefined
  readonly record?: string | undefined
  readonly card?: CardSources | undefined
  readonly page?: RunPage | undefined
  readonly keepState?: boolean
  readonly signal: SignalLike | undefined
  /** Memory of the process, where the system tells it. */
  readonly memoryUse?: (() => MemoryUse | undefined) | undefined
  /** Returns what the next step has to wait for, or undefined if it need not wait. */
  readonly wait?: (() => Promise<void> | undefined) | undefined
  readonly on: TrainEvents
}

/** After so many steps without a signal, a warning comes while the run can still be stopped. */
const FIRST_STEPS = 3

const WITHOUT_SIGNAL = `in the first ${FIRST_STEPS} steps no text was better than another, so nothing is learned from them. Are the rewards constant, or the prompts too hard or too easy?`

export type RunPage = (about: CardSources, report: RunReport, steps: readonly StepMetrics[]) => Promise<string>

/** Trains the adapter of a trainer. If a loss is not finite, the adapter stays as it was after the last good step. */
export async function runLessons(trainer: Learner, lessons: Lessons, input: RunInput): Promise<RunReport> {
  const { settings, on, signal, wait, keepState = false } = input
  const { isWhole = () => true } = lessons
  const run = new Run(trainer, lessons, input)
  const { history } = run
  const isStopped = () => signal?.aborted && isWhole(history.steps)
  try {
    await run.begin()
    on.stage?.('train')
    // Read while the engine computes.
    const base = recordOfBase(trainer.parts.model)
    base.catch(() => {})
    while (!history.isOver && !isStopped()) {
      await untilFree(wait, signal)
      if (isStopped()) break
      const metrics = await run.takeStep(history.steps)
      await run.evaluateAfter(metrics)
      history.metrics.push(metrics)
      if (history.steps === FIRST_STEPS && !history.metrics.some(hasSignal)) on.warning?.(WITHOUT_SIGNAL)
      await run.writer?.stepTaken()
      on.step?.(history.eventOf(metrics))
      if (run.isDue(metrics.step, settings.saveEvery) && isWhole(metrics.step)) await run.save()
    }

    on.stage?.('save')
    const { steps, isOver } = history
    // If only writing is left, the state would go again at once.
    await run.save(!isOver || lessons.evaluate !== undefined || lessons.sample !== undefined || keepState)
    if (isOver && history.latest?.step !== steps) await run.evaluate(steps)
    const isDone = isOver && (lessons.evaluate === undefined || history.latest?.step === steps)
    if (isDone && history.samples.at(-1)?.step !== steps) await run.sample(steps)
    // The last evaluation may be the best.
    if (isDone && (history.keepsBest || keepState)) await run.save()
    const warnings = isDone ? doubtsOf(history, trainer.parts.adapter) : []
    const report = { ...history.report(isDone, trainer.sessions.runtimeName), warnings }
    if (isDone) await run.finish(report, await base)
    return report
  } catch (error) {
    await run.writer?.abandon().catch(() => {}) // `error` says why the run ended
    throw await run.withAdapter(error)
  }
}

class Run {
  readonly history: History
  writer: RunWriter | undefined
  readonly #rateOf: (step: number) => number
  #fingerprint: Record<string, string> = {}
  /** The engine is gone, and the adapter has its factors. */
  #isClosed = false

  constructor(
    private readonly trainer: Learner,
    private readonly lessons: Lessons,
    private readonly input: RunInput,
  ) {
    const { settings, lowerIsBetter } = input
    this.history = new History(settings, lowerIsBetter, lessons.totalSteps)
    this.#rateOf = learningRates(settings, lessons.totalSteps)
  }

  /** The first step of this process starts from the adapter, or from the state of a run that was stopped. */
  async begin(): Promise<void> {
    this.#requireRoom()
    const { trainer, lessons, history } = this
    const { before, evaluate, sample } = lessons
    const isTrainedFirst = [before, evaluate, sample].every((first) => first === undefined)
    if (isTrainedFirst && this.input.out?.use !== 'resume') trainer.sessions.openTraining()
    // While this reads, the session of the steps begins to open.
    const state = await this.#resume()
    if (before !== undefined) {
      await trainer.start()
      await before()
    }
    await trainer.start(state, history.steps)
    if (history.evaluations.length === 0) await this.evaluate(0)
    if (history.samples.length === 0) await this.sample(0)
    const last = history.metrics.at(-1)
    if (last !== undefined) await this.evaluateAfter(last)
  }

  async #resume(): Promise<EngineState | undefined> {
    const { out, settings, on, facts } = this.input
    const { totalSteps } = this.lessons
    if (out === undefined) return undefined
    const { RunWriter, checkFingerprint, fingerprintOf, readMetrics, readState, stepsIn } = await import(
      './saved/saved-run.js'
    )
    this.writer = new RunWriter(out, this.input, this.history.metrics)
    this.#fingerprint = await fingerprintOf(facts)
    if (out.use !== 'resume') return undefined
    const { engine, run } = await readState(out.directory, this.trainer.names, ({ fingerprint, step }) => {
      const isLonger = step === stepsIn(fingerprint) && totalSteps > step
      checkFingerprint(fingerprint, this.#fingerprint, out.directory.name, isLonger)
      if (isLonger && (settings.schedule !== 'constant' || warmupStepsOf(settings, totalSteps) > 0)) {
        on.warning?.(
          `the ${step} steps that are made had the learning rates of a run of ${step} steps; one run of ${totalSteps} would give other weights`,
        )
      }
    })
    this.history.restore(await readMetrics(out.directory, run.step), run)
    return engine
  }

  /** True if something periodic is due. After the last step it is not, because the end of the run does it. */
  isDue(step: number, every: number | undefined): boolean {
    return step < this.lessons.totalSteps && every !== undefined && step % every === 0
  }

  async takeStep(step: number): Promise<StepMetrics> {
    const { trainer, lessons, history } = this
    const startedAt = performance.now()
    const { loss, tokens, examples, rewards } = await lessons.forwardBackward(step).catch(async (error) => {
      if (lessons.savesOnError) await this.save()
      throw error
    })
    const learningRate = this.#rateOf(step)
    const gradientNorm = await trainer.step(loss, learningRate)
    if (!Number.isFinite(loss)) return this.#fail(`step ${step + 1}`, `the loss is ${loss}`)
    if (!Number.isFinite(gradientNorm)) return this.#fail(`step ${step + 1}`, `the gradient's norm is ${gradientNorm}`)
    const elapsedMs = Math.round((performance.now() - startedAt) * 100) / 100
    const epoch = Math.floor(step / lessons.stepsPerEpoch)
    const metrics = { step: step + 1, epoch, loss, learningRate, gradientNorm, tokens, elapsedMs }
    history.measure(metrics, examples, this.input.memoryUse?.())
    return { ...metrics, ...(rewards && { rewards }) }
  }

  async evaluateAfter(metrics: StepMetrics): Promise<void> {
    const { settings } = this.input
    const every = settings.evalEvery ?? (usesBest(settings) ? this.lessons.stepsPerEpoch : undefined)
    if (!this.isDue(metrics.step, every) || this.history.latest?.step === metrics.step) return
    const evaluation = await this.evaluate(metrics.step)
    if (evaluation !== undefined) metrics.evalLoss = evaluation.loss
  }

  /** Returns undefined if there are no records to evaluate, or if the run is interrupted meanwhile. */
  async evaluate(step: number): Promise<Evaluation | undefined> {
    const { history, lessons, input } = this
    if (lessons.evaluate === undefined) return undefined
    input.on.stage?.('evaluate')
    const result = await lessons.evaluate()
    if (result === undefined) return undefined
    const evaluation = { step, ...result }
    if (!Number.isFinite(evaluation.loss)) {
      return this.#fail(`evaluation after step ${step}`, `the loss is ${evaluation.loss}`)
    }
    const { best, keepsBest } = history
    best.value(evaluation)
    if (step === 0) best.start = evaluation
    const isKept = step === 0 || (best.add(evaluation) && best.isGain(evaluation))
    if (isKept && keepsBest) await this.trainer.engine.keepBest()
    history.evaluations.push(evaluation)
    input.on.evaluation?.({ ...evaluation, metrics: { ...evaluation.metrics } })
    if (step > 0) await this.sample(step)
    return evaluation
  }

  async sample(step: number): Promise<void> {
    const samples = await this.lessons.sample?.()
    if (samples === undefined) return
    this.history.samples.push({ step, samples })
    this.input.on.sample?.({ step, samples: samples.map((sample) => ({ ...sample })) })
  }

  async save(withState = true): Promise<void> {
    const { trainer, history } = this
    const engine = await trainer.engine.state()
    if (!engine.parameters.every((values) => values.every(Number.isFinite))) {
      return this.#fail(`step ${history.steps}`, 'its update gave weights that are not finite')
    }
    await trainer.writeFactors(engine.best ?? engine.parameters)
    const run = history.state(this.#fingerprint)
    await this.writer?.save(trainer.parts.adapter, withState ? { names: trainer.names, engine, run } : undefined)
  }

  /** Gives an error the adapter as it was trained so far, so that what cannot be written is not lost. */
  async withAdapter(error: unknown): Promise<unknown> {
    const { trainer, history } = this
    if (history.steps === 0 || typeof error !== 'object' || error === null) return error
    const isWritten = error instanceof NumericError || error instanceof RuntimeError || this.#isClosed
    const engine = isWritten ? undefined : await trainer.engine.state().catch(() => undefined)
    if (engine !== undefined) await trainer.writeFactors(engine.best ?? engine.parameters)
    return Object.assign(error, { adapter: trainer.parts.adapter })
  }

  /** @throws FileError before a training whose results would find no room */
  #requireRoom(): void {
    const { trainer, lessons, history, input } = this
    const free = input.out?.directory.freeBytes?.() ?? Number.POSITIVE_INFINITY
    const { adapter } = trainer.parts
    const stateValues = (history.keepsBest ? 4 : 3) * adapter.totalTrainableParams()
    const bytes = 4 * (adapter.totalParams() + stateValues) + STEP_BYTES * lessons.totalSteps + REPORT_BYTES
    if (bytes <= free) return
    throw new FileError({
      where: input.out!.directory.name,
      what: 'not enough free space for the adapter, its state and the report',
      expected: `${Math.ceil(bytes / 1e6)} MB`,
      got: `${Math.floor(free / 1e6)} MB`,
      hint: 'Make room, or choose another disk; nothing was trained',
    })
  }

  async finish(report: RunReport, base: BaseRecord): Promise<void> {
    const { trainer, history, input } = this
    const { card, page, keepState = false } = input
    // The worker ends while the last files are written.
    this.#isClosed = true
    void trainer.close()
    trainer.parts.adapter.trainedOn = base
    await this.writer?.finish(report, base, {
      card: card && (await import('./saved/model-card.js')).cardOf(report, card),
      page: card && (await page?.(card, report, history.metrics)),
      keepState,
    })
  }

  /** Puts the factors of the last finite loss into the adapter, and throws. */
  async #fail(where: string, what: string): Promise<never> {
    const { trainer, history, input } = this
    await trainer.writeFactors(await trainer.engine.lastGood())
    const isTrained = history.steps > 0
    if (isTrained) await this.writer?.save(trainer.parts.adapter)
    const kept = isTrained && input.out !== undefined ? `; the last good adapter is in ${input.out.directory.name}` : ''
    throw new NumericError({ where, what: what + kept, hint: 'Lower the learning rate, or clip gradients harder' })
  }
}

async function untilFree(wait: RunInput['wait'], signal: RunInput['signal']): Promise<void> {
  for (let pause = wait?.(); pause !== undefined && !signal?.aborted; pause = wait?.()) {
    let end = () => {}
    const aborted = new Promise<void>((resolve) => {
      end = resolve
    })
    signal?.addEventListener('abort', end)
    await Promise.race([pause, aborted])
    signal?.removeEventListener('abort', end)
  }
}
