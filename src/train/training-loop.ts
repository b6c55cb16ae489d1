// The training loop. It ends when all steps are taken, when it is interrupted, or when a number is not finite. The
// caller says what a step learns from, such as records, or texts with rewards.

import { FileError, NumericError, RuntimeError } from '../core/base/errors.js'
import type { SignalLike } from '../core/base/globals.js'
import type { BaseRecord } from '../lora/adapter.js'
import { recordOfBase } from '../model/base-record.js'
import { runRecord } from './about-run.js'
import type { EngineState } from './engine/engine.js'
import type { Learner } from './learner.js'
import type { Evaluation, StepMetrics } from './report.js'
import type { Lessons, Run, RunContext } from './run.js'
import { doubtsOf, hasSignal } from './saved/doubts.js'
import { History, type RunReport } from './saved/history.js'
import type { RunPlace } from './saved/run-folder.js'
import type { RunWriter } from './saved/run-writer.js'
import { learningRates, usesBest, warmupStepsOf } from './settings.js'
import { canBeWeaker, WEAKER, weaker, withStrength } from './strength.js'

/** What a step adds to metrics.jsonl and the report. */
const STEP_BYTES = 500
/** More than a report and a model card without steps. */
const REPORT_BYTES = 1 << 20

/** After so many steps without a signal, a warning comes while the run can still be stopped. */
const FIRST_STEPS = 3

const WITHOUT_SIGNAL = `in the first ${FIRST_STEPS} steps no text was better than another, so nothing is learned from them. Are the rewards constant, or the prompts too hard or too easy?`

/** Trains the adapter of a run. If a loss is not finite, the adapter stays as it was after the last good step. */
export async function runLessons(
  learner: Learner,
  lessons: Lessons,
  run: Run,
  place: RunPlace | undefined,
): Promise<RunReport> {
  const { settings, on, around } = run
  const { signal, keepState = false } = run.options
  const { isWhole = () => true } = lessons
  const loop = new Loop(learner, lessons, run, place)
  const { history } = loop
  const isStopped = () => signal?.aborted && isWhole(history.steps)
  try {
    await loop.begin()
    on.stage?.('train')
    // Read while the engine computes.
    const base = recordOfBase(run.model)
    base.catch(() => {})
    while (!history.isOver && !isStopped()) {
      await untilFree(around.wait, signal)
      if (isStopped()) break
      const metrics = await loop.takeStep(history.steps)
      await loop.evaluateAfter(metrics)
      history.metrics.push(metrics)
      if (history.steps === FIRST_STEPS && !history.metrics.some(hasSignal)) on.warning?.(WITHOUT_SIGNAL)
      await loop.writer?.stepTaken()
      on.step?.(history.eventOf(metrics))
      if (loop.isDue(metrics.step, settings.saveEvery) && isWhole(metrics.step)) await loop.save()
    }

    on.stage?.('save')
    const { steps, isOver } = history
    // If only writing is left, the state would go again at once.
    await loop.save(!isOver || lessons.evaluate !== undefined || lessons.sample !== undefined || keepState)
    if (isOver && history.latest?.step !== steps) await loop.evaluate(steps)
    const isWholeRun = isOver && (lessons.evaluate === undefined || history.latest?.step === steps)
    const isDone = isWholeRun && (await loop.chooseStrength())
    if (isDone && history.samples.at(-1)?.step !== steps) await loop.sample(steps)
    // The last evaluation may be the best.
    if (isDone && (history.keepsBest || keepState)) await loop.save()
    const warnings = isDone ? [...doubtsOf(history, run.adapter), ...run.doubts] : []
    const report = { ...history.report(isDone, learner.sessions.runtimeName), warnings }
    if (isDone) await loop.finish(report, await base)
    return report
  } catch (error) {
    await loop.writer?.abandon().catch(() => {}) // `error` says why the run ended
    throw await loop.withAdapter(error)
  }
}

class Loop {
  readonly history: History
  writer: RunWriter | undefined
  readonly #rateOf: (step: number) => number
  #fingerprint: Record<string, string> = {}
  /** The change of a new adapter of plain LoRA, which starts without one, may also be taken in part. */
  readonly #isInParts: boolean
  /** The engine is gone, and the adapter has its factors. */
  #isClosed = false

  constructor(
    private readonly learner: Learner,
    private readonly lessons: Lessons,
    private readonly run: Run,
    private readonly place: RunPlace | undefined,
  ) {
    const { settings, task, open, adapter } = run
    this.#isInParts = open.chooses !== undefined && settings.keep === 'best' && canBeWeaker(adapter)
    this.history = new History(settings, task.lowerIsBetter, lessons.totalSteps)
    this.#rateOf = learningRates(settings, lessons.totalSteps)
  }

  /** The first step of this process starts from the adapter, or from the state of a run that was stopped. */
  async begin(): Promise<void> {
    this.#requireRoom()
    const { learner, lessons, history } = this
    const { before, evaluate, sample } = lessons
    const isTrainedFirst = [before, evaluate, sample].every((first) => first === undefined)
    if (isTrainedFirst && this.place?.use !== 'resume') learner.sessions.openTraining()
    // While this reads, the session of the steps begins to open.
    const state = await this.#resume()
    if (before !== undefined) {
      await learner.start()
      await before()
    }
    await learner.start(state, history.steps)
    if (history.evaluations.length === 0) await this.evaluate(0)
    if (history.samples.length === 0) await this.sample(0)
    const last = history.metrics.at(-1)
    if (last !== undefined) await this.evaluateAfter(last)
  }

  async #resume(): Promise<EngineState | undefined> {
    const { run, place, lessons, learner } = this
    const { totalSteps } = lessons
    if (place === undefined) return undefined
    const { RunWriter, checkFingerprint, fingerprintOf, readMetrics, readState, stepsIn } = await import(
      './saved/saved-run.js'
    )
    this.writer = new RunWriter(place, { task: run.task.name, record: runRecord(run) }, this.history.metrics)
    this.#fingerprint = await fingerprintOf(run, totalSteps)
    if (place.use !== 'resume') return undefined
    const saved = await readState(place.directory, learner.names, ({ fingerprint, step }) => {
      const isLonger = step === stepsIn(fingerprint) && totalSteps > step
      checkFingerprint(fingerprint, this.#fingerprint, place.directory.name, isLonger)
      if (isLonger && (run.settings.schedule !== 'constant' || warmupStepsOf(run.settings, totalSteps) > 0)) {
        run.on.warning?.(
          `the ${step} steps that are made had the learning rates of a run of ${step} steps; one run of ${totalSteps} would give other weights`,
        )
      }
    })
    this.history.restore(await readMetrics(place.directory, saved.run.step), saved.run)
    return saved.engine
  }

  /** True if something periodic is due. After the last step it is not, because the end of the run does it. */
  isDue(step: number, every: number | undefined): boolean {
    return step < this.lessons.totalSteps && every !== undefined && step % every === 0
  }

  async takeStep(step: number): Promise<StepMetrics> {
    const { learner, lessons, history } = this
    const startedAt = performance.now()
    const { loss, tokens, examples, rewards } = await lessons.forwardBackward(step).catch(async (error) => {
      if (lessons.savesOnError) await this.save()
      throw error
    })
    const learningRate = this.#rateOf(step)
    const gradientNorm = await learner.step(loss, learningRate)
    if (!Number.isFinite(loss)) return this.#fail(`step ${step + 1}`, `the loss is ${loss}`)
    if (!Number.isFinite(gradientNorm)) return this.#fail(`step ${step + 1}`, `the gradient's norm is ${gradientNorm}`)
    const elapsedMs = Math.round((performance.now() - startedAt) * 100) / 100
    const epoch = Math.floor(step / lessons.stepsPerEpoch)
    const metrics = { step: step + 1, epoch, loss, learningRate, gradientNorm, tokens, elapsedMs }
    history.measure(metrics, examples, this.run.around.memoryUse?.())
    return { ...metrics, ...(rewards && { rewards }) }
  }

  async evaluateAfter(metrics: StepMetrics): Promise<void> {
    const { settings } = this.run
    const every = settings.evalEvery ?? (usesBest(settings) ? this.lessons.stepsPerEpoch : undefined)
    if (!this.isDue(metrics.step, every) || this.history.latest?.step === metrics.step) return
    const evaluation = await this.evaluate(metrics.step)
    if (evaluation !== undefined) metrics.evalLoss = evaluation.loss
  }

  /** Returns undefined if there are no records to evaluate, or if the run is interrupted meanwhile. */
  async evaluate(step: number): Promise<Evaluation | undefined> {
    const { history, lessons, run } = this
    if (lessons.evaluate === undefined) return undefined
    run.on.stage?.('evaluate')
    const result = await lessons.evaluate()
    if (result === undefined) return undefined
    const evaluation = { step, ...result }
    if (!Number.isFinite(evaluation.loss)) {
      return this.#fail(`evaluation after step ${step}`, `the loss is ${evaluation.loss}`)
    }
    const { best, keepsBest } = history
    best.values(evaluation)
    if (step === 0) best.start = evaluation
    const isKept = step === 0 || (best.add(evaluation) && (this.#isInParts || best.isGain(evaluation)))
    if (isKept && keepsBest) await this.learner.engine.keepBest()
    history.evaluations.push(evaluation)
    run.on.evaluation?.({ ...evaluation, metrics: { ...evaluation.metrics } })
    if (step > 0) await this.sample(step)
    return evaluation
  }

  /**
   * Tries the best weights with a half and a quarter of their change, and takes the smaller alpha if it is better. Even
   * if all of the change makes things worse, a part may not. Returns false if the run is interrupted meanwhile.
   */
  async chooseStrength(): Promise<boolean> {
    const { learner, lessons, history, run } = this
    const { state } = history.best
    if (!this.#isInParts || state === undefined || state.best.strength !== undefined) return true
    const { best: factors = [] } = await learner.engine.state()
    let chosen = 1
    for (const strength of WEAKER) {
      const result = await lessons.evaluate!(weaker(learner.names, factors, strength))
      if (result === undefined) return false
      const evaluation = { step: state.best.step, ...result, strength }
      if (history.best.addPart(evaluation)) chosen = strength
    }
    if (history.best.kept?.step !== 0 && chosen < 1) run.adapter = withStrength(run.adapter, chosen)
    return true
  }

  /** The weights that the adapter gets. */
  #kept({ best, parameters }: EngineState): readonly Float32Array[] {
    const isStart = this.#isInParts && this.history.best.kept?.step === 0
    return isStart && best !== undefined ? weaker(this.learner.names, best, 0) : (best ?? parameters)
  }

  async sample(step: number): Promise<void> {
    const samples = await this.lessons.sample?.()
    if (samples === undefined) return
    this.history.samples.push({ step, samples })
    this.run.on.sample?.({ step, samples: samples.map((sample) => ({ ...sample })) })
  }

  async save(withState = true): Promise<void> {
    const { learner, history } = this
    const engine = await learner.engine.state()
    if (!engine.parameters.every((values) => values.every(Number.isFinite))) {
      return this.#fail(`step ${history.steps}`, 'its update gave weights that are not finite')
    }
    await learner.writeFactors(this.#kept(engine))
    const run = history.state(this.#fingerprint)
    await this.writer?.save(this.run.adapter, withState ? { names: learner.names, engine, run } : undefined)
  }

  /** Gives an error the adapter as it was trained so far, so that what cannot be written is not lost. */
  async withAdapter(error: unknown): Promise<unknown> {
    const { learner, history } = this
    if (history.steps === 0 || typeof error !== 'object' || error === null) return error
    const isWritten = error instanceof NumericError || error instanceof RuntimeError || this.#isClosed
    const engine = isWritten ? undefined : await learner.engine.state().catch(() => undefined)
    if (engine !== undefined) await learner.writeFactors(this.#kept(engine))
    return Object.assign(error, { adapter: this.run.adapter })
  }

  /** @throws FileError before a training whose results would find no room */
  #requireRoom(): void {
    const { run, lessons, history, place } = this
    const free = place?.directory.freeBytes?.() ?? Number.POSITIVE_INFINITY
    const { adapter } = run
    const stateValues = (history.keepsBest ? 4 : 3) * adapter.totalTrainableParams()
    const bytes = 4 * (adapter.totalParams() + stateValues) + STEP_BYTES * lessons.totalSteps + REPORT_BYTES
    if (bytes <= free) return
    throw new FileError({
      where: place!.directory.name,
      what: 'not enough free space for the adapter, its state and the report',
      expected: `${Math.ceil(bytes / 1e6)} MB`,
      got: `${Math.floor(free / 1e6)} MB`,
      hint: 'Make room, or choose another disk; nothing was trained',
    })
  }

  async finish(report: RunReport, base: BaseRecord): Promise<void> {
    const { learner, history, run } = this
    // The worker ends while the last files are written.
    this.#isClosed = true
    void learner.close()
    run.adapter.trainedOn = base
    await this.writer?.finish(report, base, {
      card: (await import('./saved/model-card.js')).cardOf(report, run),
      page: await run.around.page?.(run, report, history.metrics),
      keepState: run.options.keepState ?? false,
    })
  }

  /** Puts the factors of the last finite loss into the adapter, and throws. */
  async #fail(where: string, what: string): Promise<never> {
    const { learner, history, run, place } = this
    await learner.writeFactors(await learner.engine.lastGood())
    const isTrained = history.steps > 0
    if (isTrained) await this.writer?.save(run.adapter)
    const kept = isTrained && place !== undefined ? `; the last good adapter is in ${place.directory.name}` : ''
    throw new NumericError({ where, what: what + kept, hint: 'Lower the learning rate, or clip gradients harder' })
  }
}

async function untilFree(wait: RunContext['wait'], signal: SignalLike | undefined): Promise<void> {
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
