// One run of the training loop, to its end: done, interrupted, or a number that is not finite.

import { NumericError } from '../base/errors.js'
import type { SignalLike } from '../base/globals.js'
import { recordOfBase } from '../graph/base-record.js'
import type { BaseRecord } from '../lora/adapter.js'
import { openEngine } from '../runtime/host.js'
import type { Remote } from '../runtime/rpc.js'
import type { Examples } from '../tasks/task.js'
import { BestEvaluation } from './best.js'
import type { TrainEngine } from './engine.js'
import { evaluate, takeReference } from './evaluation-runs.js'
import { startOf, writeParameters } from './parameters.js'
import { EpochPlan, examplesOf, type PlanOptions, type StepPlan, stepsPerEpoch } from './rows/batches.js'
import type { Sampler } from './samples.js'
import { checkFingerprint, fingerprintOf, stepsIn } from './saved/fingerprint.js'
import type { CardSources } from './saved/model-card.js'
import { readMetrics, readState } from './saved/run-folder.js'
import { type RunPlace, withRunPlace } from './saved/run-place.js'
import { RunWriter } from './saved/run-writer.js'
import { type SessionParts, TrainingSessions } from './sessions.js'
import { learningRates, usesBest, warmupStepsOf } from './settings.js'
import {
  type Evaluation,
  type MemoryUse,
  Pace,
  peakRssBytes,
  type SampleEvent,
  type StepMetrics,
  steadyMedian,
  type TrainEvents,
  type TrainReport,
} from './train-report.js'
import type { EngineState } from './weights/held.js'

const RECENT_STEPS = 100

/** `adapter` is where training starts; its factors are replaced by what it comes to. */
export interface RunInput extends SessionParts {
  readonly task: string
  readonly taskOptions: Readonly<Record<string, unknown>> | undefined
  readonly lowerIsBetter?: readonly string[] | undefined
  readonly examples: Examples<unknown>
  /** {@link OpenTask.cost} of each. */
  readonly costs: Int32Array
  readonly evalExamples: Examples<unknown> | undefined
  readonly out: RunPlace | undefined
  readonly record?: string | undefined
  readonly card?: CardSources | undefined
  readonly page?: ((report: RunReport, steps: readonly StepMetrics[]) => Promise<string>) | undefined
  readonly sampler?: Sampler | undefined
  readonly keepState?: boolean
  readonly signal: SignalLike | undefined
  /** Memory of the process, where the system tells it. */
  readonly memoryUse?: (() => MemoryUse | undefined) | undefined
  /** Gives what the next step waits for; undefined while it need not wait. */
  readonly wait?: (() => Promise<void> | undefined) | undefined
  readonly on: TrainEvents
}

export type RunReport = Omit<
  TrainReport,
  'task' | 'truncatedRecords' | 'skippedRecords' | 'newHead' | 'labels' | 'trainableParams' | 'totalParams' | 'seconds'
>

export async function trainAdapter(input: RunInput): Promise<RunReport> {
  const { out } = input
  return out === undefined ? openAndRun(input) : withRunPlace(out, (place) => openAndRun({ ...input, out: place }))
}

async function openAndRun(input: RunInput): Promise<RunReport> {
  const { model, settings } = input
  // If a worker has the engine, this thread does not load its code.
  const load = async () => (await import('./engine.js')).TrainEngine
  const engine = await openEngine(model.runtime, 'train', load, settings.threads)
  let closing: Promise<void> | undefined
  // A worker that cannot be closed is not the reason why the run ended.
  const close = () => (closing ??= engine.close().catch(() => {}))
  try {
    return await new Run(input, engine.remote, await TrainingSessions.create(input, engine.remote), close).run()
  } finally {
    await close()
  }
}

class Run {
  readonly #writer: RunWriter | undefined
  readonly #totalSteps: number
  readonly #stepsPerEpoch: number
  readonly #planOptions: PlanOptions
  readonly #names: readonly string[]
  readonly #rateOf: (step: number) => number
  readonly #metrics: StepMetrics[] = []
  readonly #best: BestEvaluation
  readonly #pace = new Pace()
  readonly #times: number[] = []
  #memory: MemoryUse | null = null
  /** Digests of the run's parts at its start; empty without a folder. */
  #fingerprint: Record<string, string> = {}
  #base: Promise<BaseRecord> | undefined
  readonly #evaluations: Evaluation[] = []
  readonly #samples: SampleEvent[] = []
  #epochPlan: { epoch: number; steps: EpochPlan } | undefined

  constructor(
    private readonly input: RunInput,
    private readonly engine: Remote<TrainEngine>,
    private readonly sessions: TrainingSessions,
    private readonly close: () => Promise<void>,
  ) {
    const { settings, examples, open, model, out, lowerIsBetter } = input
    this.#writer = out && new RunWriter(out, input, this.#metrics)
    this.#best = new BestEvaluation(settings.bestMetric, lowerIsBetter)
    this.#planOptions = {
      batchSize: settings.batchSize,
      accumulation: settings.gradientAccumulation,
      limit: model.contextLength ?? Number.POSITIVE_INFINITY,
      inOrder: open.needsNeighbors ?? false,
    }
    this.#stepsPerEpoch = stepsPerEpoch(examples.length, this.#planOptions)
    this.#totalSteps = settings.maxSteps ?? settings.epochs * this.#stepsPerEpoch
    this.#rateOf = learningRates(settings, this.#totalSteps)
    this.#names = sessions.parameters.map(({ name }) => name)
  }

  async run(): Promise<RunReport> {
    try {
      await this.#start()
      await this.#makeUp()
      await this.#takeSteps()
      return await this.#end()
    } catch (error) {
      await this.#writer?.abandon().catch(() => {}) // `error` says why the run ended
      throw error
    }
  }

  /** The first step of this process starts from the adapter, or from the state of a run that was stopped. */
  async #start(): Promise<void> {
    const { out, adapter, open, evalExamples, sampler } = this.input
    const isTrainedFirst = [evalExamples, open.reference, sampler].every((before) => before === undefined)
    if (isTrainedFirst && out?.use !== 'resume') this.sessions.openTraining()
    const setup = await this.sessions.setup()
    const begin = open.reference && startOf(adapter, this.#names)
    // While this reads, the session of the steps begins to open: copies are made later.
    const state = (out && (await this.#resume(out))) ?? begin ?? startOf(adapter, this.#names)
    if (begin !== undefined) {
      await this.engine.start(setup, begin)
      const { seed } = adapter.config
      await takeReference({ ...this.input, ...this.#evaluating, seed, totalSteps: this.#totalSteps })
    }
    await this.engine.start(setup, state)
  }

  async #resume({ directory, use }: RunPlace): Promise<EngineState | undefined> {
    this.#fingerprint = await fingerprintOf({ ...this.input, totalSteps: this.#totalSteps })
    if (use !== 'resume') return undefined
    const { engine, run } = await readState(directory, this.#names, ({ fingerprint, step }) => {
      const isLonger = step === stepsIn(fingerprint) && this.#totalSteps > step
      checkFingerprint(fingerprint, this.#fingerprint, directory.name, isLonger)
      const { settings, on } = this.input
      if (isLonger && (settings.schedule !== 'constant' || warmupStepsOf(settings, this.#totalSteps) > 0)) {
        on.warning?.(
          `the ${step} steps that are made had the learning rates of a run of ${step} steps; one run of ${this.#totalSteps} would give other weights`,
        )
      }
    })
    for (const metrics of await readMetrics(directory, run.step)) this.#metrics.push(metrics)
    writeParameters(this.input.adapter, this.#names, engine.parameters)
    this.#best.state = run.best
    this.#evaluations.push(...run.evaluations)
    this.#samples.push(...run.samples)
    return engine
  }

  async #makeUp(): Promise<void> {
    const last = this.#metrics.at(-1)
    if (this.#evaluations.length === 0) await this.#evaluate(0)
    if (this.#samples.length === 0) await this.#sample(0)
    if (last !== undefined) await this.#evaluateAfter(last)
  }

  async #takeSteps(): Promise<void> {
    const { model, settings, signal, wait, on } = this.input
    on.stage?.('train')
    // Read while the engine computes.
    this.#base = recordOfBase(model)
    this.#base.catch(() => {})
    while (this.#metrics.length < this.#totalSteps && !this.#isStale && !signal?.aborted) {
      await untilFree(wait, signal)
      if (signal?.aborted) break
      const metrics = await this.#step(this.#metrics.length)
      await this.#evaluateAfter(metrics)
      this.#metrics.push(metrics)
      await this.#writer?.stepTaken()
      this.#tell(metrics)
      if (this.#isDue(metrics.step, settings.saveEvery)) await this.#save()
    }
  }

  async #end(): Promise<RunReport> {
    const { on, evalExamples, sampler, card, page, keepState = false } = this.input
    on.stage?.('save')
    const steps = this.#metrics.length
    const isTrained = steps === this.#totalSteps || this.#isStale
    // If only writing is left, the state would go again at once.
    const isLast = isTrained && evalExamples === undefined && sampler === undefined && !keepState
    await this.#save(!isLast)
    if (isTrained && this.#latest?.step !== steps) await this.#evaluate(steps)
    const isDone = isTrained && (evalExamples === undefined || this.#latest?.step === steps)
    if (isDone && this.#samples.at(-1)?.step !== steps) await this.#sample(steps)
    // The last evaluation may be the best.
    if (isDone && (this.#keepsBest || keepState)) await this.#save()
    const report = this.#reportOf(isDone)
    if (isDone) {
      // The worker ends while the last files are written.
      void this.close()
      const base = await this.#base!
      this.input.adapter.trainedOn = base
      await this.#writer?.finish(report, base, {
        card: card && (await import('./saved/model-card.js')).cardOf(report, card),
        page: await page?.(report, this.#metrics),
        keepState,
      })
    }
    return report
  }

  get #keepsBest(): boolean {
    return this.input.settings.keep === 'best'
  }

  get #isStale(): boolean {
    return this.#best.isStale(this.input.settings.earlyStopping)
  }

  get #kept(): Evaluation | undefined {
    return this.#keepsBest ? this.#best.state?.best : undefined
  }

  get #latest(): Evaluation | undefined {
    const last = this.#evaluations.at(-1)
    return last?.step === 0 ? undefined : last
  }

  get #evaluating() {
    return { sessions: this.sessions, planOptions: this.#planOptions }
  }

  /** True for what happens every so many steps; after the last one the run's end does it. */
  #isDue(step: number, every: number | undefined): boolean {
    return step < this.#totalSteps && every !== undefined && step % every === 0
  }

  async #step(step: number): Promise<StepMetrics> {
    const startedAt = performance.now()
    const { epoch, plan } = this.#planOf(step)
    const batches = plan.map((batch) => ({
      examples: examplesOf(this.input.examples, [batch]),
      length: batch.sequence,
    }))
    const learningRate = this.#rateOf(step)
    const { loss, gradientNorm } = await this.sessions.step(batches, step, learningRate)
    if (!Number.isFinite(loss)) return this.#fail(`step ${step + 1}`, `the loss is ${loss}`)
    if (!Number.isFinite(gradientNorm)) return this.#fail(`step ${step + 1}`, `the gradient's norm is ${gradientNorm}`)
    const elapsedMs = performance.now() - startedAt
    this.#times.push(elapsedMs)
    this.#measureMemory()
    return {
      step: step + 1,
      epoch,
      loss,
      learningRate,
      gradientNorm,
      tokens: plan.flatMap((batch) => batch.examples).reduce((sum, index) => sum + this.input.costs[index], 0),
      elapsedMs: Math.round(elapsedMs * 100) / 100,
    }
  }

  #planOf(step: number): { epoch: number; plan: StepPlan } {
    const epoch = Math.floor(step / this.#stepsPerEpoch)
    if (this.#epochPlan?.epoch !== epoch) {
      const { seed } = this.input.adapter.config
      this.#epochPlan = { epoch, steps: new EpochPlan(this.input.costs, seed, epoch, this.#planOptions) }
    }
    return { epoch, plan: this.#epochPlan.steps.at(step % this.#stepsPerEpoch) }
  }

  async #evaluateAfter(metrics: StepMetrics): Promise<void> {
    const { settings } = this.input
    const evalEvery = settings.evalEvery ?? (usesBest(settings) ? this.#stepsPerEpoch : undefined)
    if (!this.#isDue(metrics.step, evalEvery) || this.#latest?.step === metrics.step) return
    const evaluation = await this.#evaluate(metrics.step)
    if (evaluation !== undefined) metrics.evalLoss = evaluation.loss
  }

  /** Returns undefined if there are no records, or the run is interrupted meanwhile. */
  async #evaluate(step: number): Promise<Evaluation | undefined> {
    const { on, evalExamples } = this.input
    if (evalExamples === undefined) return undefined
    on.stage?.('evaluate')
    const result = await evaluate({ ...this.input, ...this.#evaluating })
    if (result === undefined) return undefined
    const evaluation = { step, ...result }
    if (!Number.isFinite(evaluation.loss)) {
      return this.#fail(`evaluation after step ${step}`, `the loss is ${evaluation.loss}`)
    }
    if (step === 0) this.#best.value(evaluation)
    else if (this.#best.add(evaluation) && this.#keepsBest) await this.engine.keepBest()
    this.#evaluations.push(evaluation)
    on.evaluation?.({ ...evaluation, metrics: { ...evaluation.metrics } })
    if (step > 0) await this.#sample(step)
    return evaluation
  }

  async #sample(step: number): Promise<void> {
    const { sampler, signal, on } = this.input
    const samples = await sampler?.(this.sessions, this.#planOptions.limit, signal)
    if (samples === undefined) return
    this.#samples.push({ step, samples })
    on.sample?.({ step, samples: samples.map((sample) => ({ ...sample })) })
  }

  async #save(withState = true): Promise<void> {
    const engine = await this.engine.state()
    const step = this.#metrics.length
    if (!engine.parameters.every((values) => values.every(Number.isFinite))) {
      return this.#fail(`step ${step}`, 'its update gave weights that are not finite')
    }
    const { adapter } = this.input
    writeParameters(adapter, this.#names, engine.best ?? engine.parameters)
    const run = {
      step,
      fingerprint: this.#fingerprint,
      evaluations: this.#evaluations,
      samples: this.#samples,
      best: this.#best.state,
    }
    await this.#writer?.save(adapter, withState ? { names: this.#names, engine, run } : undefined)
  }

  /** Leaves the factors of the last finite loss. */
  async #fail(where: string, what: string): Promise<never> {
    const { adapter, out } = this.input
    writeParameters(adapter, this.#names, await this.engine.lastGood())
    const isTrained = this.#metrics.length > 0
    if (isTrained) await this.#writer?.save(adapter)
    const kept = isTrained && out !== undefined ? `; the last good adapter is in ${out.directory.name}` : ''
    throw new NumericError({ where, what: what + kept, hint: 'Lower the learning rate, or clip gradients harder' })
  }

  #reportOf(isDone: boolean): RunReport {
    const metrics = this.#metrics
    const before = this.#evaluations[0]?.loss
    const after = isDone ? (this.#kept ?? this.#latest) : undefined
    return {
      steps: metrics.length,
      tokens: metrics.reduce((sum, { tokens }) => sum + tokens, 0),
      trainLoss: metrics.map(({ loss }) => loss),
      keptStep: this.#kept?.step ?? metrics.length,
      stoppedEarly: isDone && metrics.length < this.#totalSteps,
      evalLoss: before === undefined || after === undefined ? null : { before, after: after.loss },
      evalMetrics: after === undefined ? null : { ...after.metrics },
      evaluations: this.#evaluations,
      samples: this.#samples,
      stepMillis: steadyMedian(this.#times),
      peakRssBytes: peakRssBytes(),
      memory: this.#memory,
      interrupted: !isDone,
      runtime: this.sessions.runtimeName,
    }
  }

  #measureMemory(): void {
    const now = this.input.memoryUse?.()
    if (now === undefined) return
    const { anonymous, mapped } = this.#memory ?? now
    this.#memory = { anonymous: Math.max(anonymous, now.anonymous), mapped: Math.max(mapped, now.mapped) }
  }

  #tell(metrics: StepMetrics): void {
    const { on } = this.input
    if (on.step === undefined) return
    const examples = this.#planOf(metrics.step - 1).plan.reduce((sum, batch) => sum + batch.examples.length, 0)
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
