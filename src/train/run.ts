// One run of the training loop: steps, evaluations, saves, and its end, whichever it is: done, interrupted, or a number that
// is not finite.

import { NumericError } from '../base/errors.js'
import { type Engine, openEngine } from '../runtime/host.js'
import type { Feeds } from '../runtime/runtime.js'
import type { Examples } from '../tasks/task.js'
import { costOf, examplesOf, type PlanOptions, planEpoch, type StepPlan, stepsPerEpoch } from './batches.js'
import { BestEvaluation, type Evaluation } from './best.js'
import type { EngineSetup, TrainEngine } from './engine.js'
import { evaluate } from './evaluate.js'
import { type EngineState, type LastStep, makeLastStep, readLastStep } from './last-step.js'
import { readParameters, writeParameters } from './parameters.js'
import { untilFree } from './pause.js'
import { Pace, peakRssBytes, steadyMedian, type TrainEvents, type TrainReport } from './report.js'
import type { RunState, StepMetrics } from './run-folder.js'
import type { RunPlace } from './run-place.js'
import type { RunWriter } from './run-writer.js'
import { learningRates, loraPlusRates } from './schedule.js'
import { type SessionParts, TrainingSessions } from './sessions.js'
import { usesBest } from './settings.js'

const LEFT_OUT = 'what was under way did not end within 5 seconds: the run is saved as it was after the last step'

/** Steps that the time left is told from. */
const RECENT_STEPS = 100

/** `adapter` is where training starts; its factors are replaced by what it comes to. */
export interface RunInput extends SessionParts {
  /** Name of the task. */
  readonly task: string
  /** Its own settings. */
  readonly taskOptions: Readonly<Record<string, unknown>> | undefined
  readonly examples: Examples<unknown>
  readonly evalExamples: Examples<unknown> | undefined
  readonly out: RunPlace | undefined
  /** Text of run.json. */
  readonly record?: string | undefined
  /** The model card of a run that is done. */
  readonly card?: ((report: RunReport) => Promise<string>) | undefined
  readonly signal: AbortSignal | undefined
  /** What the next step waits for; undefined while it need not wait. */
  readonly wait?: (() => Promise<void> | undefined) | undefined
  readonly on: TrainEvents
}

/** The part of the report that the loop knows. */
export type RunReport = Pick<
  TrainReport,
  | 'steps'
  | 'tokens'
  | 'trainLoss'
  | 'keptStep'
  | 'stoppedEarly'
  | 'evalLoss'
  | 'evalMetrics'
  | 'stepMillis'
  | 'peakRssBytes'
  | 'interrupted'
  | 'runtime'
>

/**
 * Trains the adapter.
 *
 * @throws NumericError naming the step at which a loss or gradient was not finite; the adapter then has the factors of the
 *   last finite loss, and is saved if there was an update
 */
export async function trainAdapter(parts: RunInput): Promise<RunReport> {
  if (parts.out === undefined) return trainInto(parts, [])
  // A page that keeps the adapter in memory fetches none of this.
  const [{ withRunPlace }, { RunWriter }] = await Promise.all([import('./run-place.js'), import('./run-writer.js')])
  return withRunPlace(parts.out, (out) => {
    const metrics: StepMetrics[] = []
    return trainInto({ ...parts, out }, metrics, new RunWriter(out, parts, metrics))
  })
}

async function trainInto(parts: RunInput, metrics: StepMetrics[], writer?: RunWriter): Promise<RunReport> {
  const { model, settings } = parts
  const load = async () => (await import('./engine.js')).TrainEngine
  const engine = await openEngine(model.runtime, 'train', load, settings.threads)
  const endWatch = engine.endAfter(parts.signal)
  try {
    const sessions = await TrainingSessions.create(parts, engine.remote)
    return await new Run(parts, { engine, sessions, metrics, writer }).train()
  } finally {
    endWatch()
    // What ended the run is the reason, and not that its worker cannot be closed.
    await engine.close().catch(() => {})
  }
}

/** What a run works with; `metrics` grows with each step. */
interface RunTools {
  readonly engine: Engine<TrainEngine>
  readonly sessions: TrainingSessions
  readonly metrics: StepMetrics[]
  readonly writer: RunWriter | undefined
}

class Run {
  readonly #parts: RunInput
  readonly #engine: Engine<TrainEngine>
  readonly #sessions: TrainingSessions
  readonly #totalSteps: number
  readonly #stepsPerEpoch: number
  readonly #planOptions: PlanOptions
  readonly #costs: readonly number[]
  readonly #names: readonly string[]
  /** One for each step. */
  readonly #metrics: StepMetrics[]
  readonly #writer: RunWriter | undefined
  /** Of the run's start; empty where there is no folder to resume from. */
  #fingerprint: Record<string, string> = {}
  #evalLossBefore: number | undefined
  readonly #best: BestEvaluation
  #latest: Evaluation | undefined
  readonly #pace = new Pace()
  /** Milliseconds of each step of this process. */
  readonly #times: number[] = []
  #epochPlan: { epoch: number; steps: StepPlan[] } | undefined

  constructor(parts: RunInput, { engine, sessions, metrics, writer }: RunTools) {
    const { settings, examples, open, model } = parts
    this.#parts = parts
    this.#engine = engine
    this.#metrics = metrics
    this.#writer = writer
    this.#best = new BestEvaluation(settings.bestMetric)
    this.#sessions = sessions
    this.#planOptions = {
      batchSize: settings.batchSize,
      accumulation: settings.gradientAccumulation,
      limit: model.contextLength ?? Number.POSITIVE_INFINITY,
    }
    this.#stepsPerEpoch = stepsPerEpoch(examples.length, this.#planOptions)
    this.#totalSteps = settings.maxSteps ?? settings.epochs * this.#stepsPerEpoch
    this.#costs = Array.from(examples, (example) => open.cost(example))
    this.#names = sessions.parameters.map(({ name }) => name)
  }

  async train(): Promise<RunReport> {
    const { on } = this.#parts
    const engine = await this.#start()
    const first = this.#metrics.length
    // In this thread, a run that goes on stops all else.
    const isInThread = 'module' in this.#parts.model.runtime
    const last = isInThread ? undefined : makeLastStep(engine.parameters, this.#keepsBest)
    await this.#engine.remote.start(await this.#setup(), engine, last)
    try {
      this.#evalLossBefore ??= (await this.#evaluate(first))?.loss
      on.stage?.('train')
      await this.#takeSteps(first)
      on.stage?.('save')
      await this.#save()
      const steps = this.#metrics.length
      const isTrained = steps === this.#totalSteps || this.#isStale
      if (isTrained && this.#latest?.step !== steps) await this.#evaluate(steps)
      const isDone = isTrained && (this.#parts.evalExamples === undefined || this.#latest?.step === steps)
      // The last evaluation may be the best.
      if (isDone && this.#keepsBest) await this.#save()
      const report = this.#reportOf(isDone)
      if (isDone) await this.#writer?.finish(await this.#parts.card?.(report))
      return report
    } catch (error) {
      return await this.#endBy(error, last)
    }
  }

  /** Saves what the last step gave if it was stopped while the next one, or an evaluation, goes on. Otherwise throws the error. */
  async #endBy(error: unknown, last: LastStep | undefined): Promise<RunReport> {
    try {
      const state = last && this.#engine.isGivenUp() && (await readLastStep(last, this.#metrics.length))
      if (!state) throw error
      this.#parts.on.warning?.(LEFT_OUT)
      await this.#saveState(state)
      return this.#reportOf(false)
    } catch (reason) {
      await this.#writer?.abandon().catch(() => {}) // `reason` says why the run ended
      throw reason
    }
  }

  /** All steps from number `first` on, or as many as the signal leaves, with the evaluations and saves between them. */
  async #takeSteps(first: number): Promise<void> {
    const { settings, signal, wait } = this.#parts
    const evalEvery = settings.evalEvery ?? (usesBest(settings) ? this.#stepsPerEpoch : undefined)
    for (let step = first; step < this.#totalSteps && !this.#isStale && !signal?.aborted; step++) {
      await untilFree(wait, signal)
      if (signal?.aborted) break
      const done = step + 1
      const isDue = (every: number | undefined) => done < this.#totalSteps && every !== undefined && done % every === 0
      const metrics = await this.#step(step)
      this.#times.push(metrics.elapsedMs)
      const evaluation = isDue(evalEvery) ? await this.#evaluate(done) : undefined
      if (evaluation !== undefined) metrics.evalLoss = evaluation.loss
      this.#metrics.push(metrics)
      await this.#writer?.stepTaken()
      this.#tell(metrics)
      if (isDue(settings.saveEvery)) await this.#save()
    }
  }

  get #keepsBest(): boolean {
    return this.#parts.settings.keep === 'best'
  }

  /** Whether the run ends, because evaluations got no better. */
  get #isStale(): boolean {
    return this.#best.isStale(this.#parts.settings.earlyStopping)
  }

  /** The best evaluation, where its weights are kept. */
  get #kept(): Evaluation | undefined {
    return this.#keepsBest ? this.#best.state?.best : undefined
  }

  #reportOf(isDone: boolean): RunReport {
    const metrics = this.#metrics
    const before = this.#evalLossBefore
    const after = isDone ? (this.#kept ?? this.#latest) : undefined
    return {
      steps: metrics.length,
      tokens: metrics.reduce((sum, { tokens }) => sum + tokens, 0),
      trainLoss: metrics.map(({ loss }) => loss),
      keptStep: this.#kept?.step ?? metrics.length,
      stoppedEarly: isDone && metrics.length < this.#totalSteps,
      evalLoss: before === undefined || after === undefined ? null : { before, after: after.loss },
      evalMetrics: after === undefined ? null : { ...after.metrics },
      stepMillis: steadyMedian(this.#times),
      peakRssBytes: peakRssBytes(),
      interrupted: !isDone,
      runtime: this.#sessions.runtimeName,
    }
  }

  async #setup(): Promise<EngineSetup> {
    const { weightDecay, loraPlusRatio, loraFa: isFa, maxGradNorm } = this.#parts.settings
    const { parameters } = this.#sessions
    const rates = loraPlusRates(parameters, loraPlusRatio)
    const factors = isFa ? (await import('./lora-fa.js')).gradientFactors(this.#parts.adapter, this.#names) : undefined
    return { parameters, optimizer: { weightDecay, rates, factors }, maxGradNorm }
  }

  /** The state that the first step of this process starts from. */
  async #start(): Promise<EngineState> {
    const { out, adapter, open } = this.#parts
    const parameters = readParameters(adapter, this.#names)
    const zeros = () => parameters.map(({ length }) => new Float32Array(length))
    const begin: EngineState = { parameters, firstMoments: zeros(), secondMoments: zeros(), updates: 0 }
    let state = begin
    const record = out && (await import('./fingerprint.js'))
    if (record) this.#fingerprint = await record.fingerprintOf({ ...this.#parts, totalSteps: this.#totalSteps })
    if (record !== undefined && out?.use === 'resume') {
      const { resumeRun } = await import('./run-folder.js')
      const { directory } = out
      const check = (of: RunState) => record.checkFingerprint(of.fingerprint, this.#fingerprint, directory.name)
      const { engine, run, metrics } = await resumeRun(directory, this.#names, check)
      writeParameters(adapter, this.#names, engine.parameters)
      this.#metrics.push(...metrics)
      this.#best.resume(run.best)
      this.#evalLossBefore = run.evalLossBefore ?? undefined
      state = engine
    }
    if (open.takeReference === undefined) return state
    await (await import('./reference.js')).takeReference({
      ...this.#parts,
      begin,
      engine: this.#engine.remote,
      sessions: this.#sessions,
      setup: await this.#setup(),
      planOptions: this.#planOptions,
      totalSteps: this.#totalSteps,
    })
    return state
  }

  /** Step number `step`, counted from 0. */
  async #step(step: number): Promise<StepMetrics> {
    const startedAt = performance.now()
    const { settings } = this.#parts
    const { epoch, plan } = this.#planOf(step)
    const { loss: stepLoss, feeds, normalizer } = await this.#feedsOf(plan, step)
    const passes = []
    for (const [run, own] of feeds.entries()) {
      passes.push(await this.#sessions.trainingPass(own, { normalizer, step, run }))
    }
    const rate = learningRates(settings.schedule, settings.learningRate, settings.warmupRatio, this.#totalSteps)(step)
    const { loss, gradientNorm } = await this.#engine.remote.step(passes, rate, stepLoss)
    if (!Number.isFinite(loss)) return this.#fail(`step ${step + 1}`, `the loss is ${loss}`)
    if (!Number.isFinite(gradientNorm)) return this.#fail(`step ${step + 1}`, `the gradient's norm is ${gradientNorm}`)
    const elapsedMs = performance.now() - startedAt
    return {
      step: step + 1,
      epoch,
      loss,
      learningRate: rate,
      gradientNorm,
      tokens: costOf(this.#costs, plan),
      elapsedMs: Math.round(elapsedMs * 100) / 100,
    }
  }

  /** What each run of a step is fed. Where the runs need one another, a first pass gives the loss, and the gradients that are fed. */
  async #feedsOf(
    plan: StepPlan,
    step: number,
  ): Promise<{ feeds: Feeds[]; normalizer: number; loss: number | undefined }> {
    const { examples, open } = this.#parts
    const batches = plan.map((microBatch) => examplesOf(examples, [microBatch]))
    const feeds = batches.map((batch, run) => open.collate(batch, plan[run].sequence))
    if (open.stepLoss === undefined) return { feeds, normalizer: open.normalizer(batches.flat()), loss: undefined }
    const runs = []
    for (const [run, batch] of batches.entries()) {
      const pass = await this.#sessions.firstPass(feeds[run], { step, run })
      runs.push({ outputs: await this.#engine.remote.forward(pass, pass.predictions), examples: batch })
    }
    const { loss, feeds: fed } = open.stepLoss(runs)
    return { feeds: feeds.map((own, run) => ({ ...own, ...fed[run] })), normalizer: 1, loss }
  }

  #planOf(step: number): { epoch: number; plan: StepPlan } {
    const epoch = Math.floor(step / this.#stepsPerEpoch)
    if (this.#epochPlan?.epoch !== epoch) {
      const { seed } = this.#parts.adapter.config
      this.#epochPlan = { epoch, steps: planEpoch(this.#costs, seed, epoch, this.#planOptions) }
    }
    return { epoch, plan: this.#epochPlan.steps[step % this.#stepsPerEpoch] }
  }

  /** What the evaluation records give; undefined without any, or when the run is interrupted meanwhile. */
  async #evaluate(step: number): Promise<Evaluation | undefined> {
    const { on, open, signal, evalExamples: examples } = this.#parts
    if (examples === undefined) return undefined
    on.stage?.('evaluate')
    const result = await evaluate({
      open,
      examples,
      signal,
      sessions: this.#sessions,
      engine: this.#engine.remote,
      planOptions: this.#planOptions,
      progress: (done, total) => on.progress?.({ stage: 'evaluate', done, total }),
    })
    if (result === undefined) return undefined
    const { loss, metrics } = result
    if (!Number.isFinite(loss)) return this.#fail(`evaluation after step ${step}`, `the loss is ${loss}`)
    const evaluation = { step, loss, metrics }
    if (step === 0) this.#best.value(evaluation)
    else if (this.#best.add(evaluation) && this.#keepsBest) await this.#engine.remote.keepBest()
    this.#latest = evaluation
    on.evaluation?.({ ...evaluation, metrics: { ...metrics } })
    return evaluation
  }

  /** Brings the adapter up to date, and saves it with the state to go on from. */
  async #save(): Promise<void> {
    await this.#saveState(await this.#engine.remote.state())
  }

  async #saveState(engine: EngineState): Promise<void> {
    const step = this.#metrics.length
    if (!engine.parameters.every((values) => values.every(Number.isFinite))) {
      return this.#fail(`step ${step}`, 'its update gave weights that are not finite')
    }
    writeParameters(this.#parts.adapter, this.#names, engine.best ?? engine.parameters)
    const run: RunState = {
      step,
      fingerprint: this.#fingerprint,
      evalLossBefore: this.#evalLossBefore ?? null,
      best: this.#best.state,
    }
    await this.#writer?.save(this.#parts.adapter, { names: this.#names, engine, run })
  }

  /** Ends the run at a number that is not finite, with the factors of the last loss that was. */
  async #fail(where: string, what: string): Promise<never> {
    const { adapter, out } = this.#parts
    writeParameters(adapter, this.#names, await this.#engine.remote.lastGood())
    const isTrained = this.#metrics.length > 0
    if (isTrained) await this.#writer?.save(adapter)
    const kept = isTrained && out !== undefined ? `; the last good adapter is in ${out.directory.name}` : ''
    throw new NumericError({ where, what: what + kept, hint: 'Lower the learning rate, or clip gradients harder' })
  }

  #tell(metrics: StepMetrics): void {
    const { on } = this.#parts
    if (on.step === undefined) return
    const examples = this.#planOf(metrics.step - 1).plan.reduce((sum, one) => sum + one.examples.length, 0)
    // The last ones alone: sorting all of them at each step would take longer and longer.
    const stepMillis = steadyMedian(this.#times.slice(-RECENT_STEPS)) ?? metrics.elapsedMs
    on.step({
      ...metrics,
      totalSteps: this.#totalSteps,
      ...this.#pace.after(metrics, examples),
      secondsLeft: ((this.#totalSteps - metrics.step) * stepMillis) / 1000,
    })
  }
}
