// One run of the training loop: steps, evaluations, saves, and its end, whichever it is: done, interrupted, or a number that
// is not finite.

import type { Directory } from '../base/bytes.js'
import { NumericError } from '../base/errors.js'
import { type Engine, openEngine } from '../runtime/host.js'
import type { Example } from '../text/records.js'
import { collate, planEpoch, planEvaluation, type StepPlan, stepsPerEpoch, targetsOf, tokensOf } from './batches.js'
import { type EngineState, TrainEngine } from './engine.js'
import { readFactors, writeFactors } from './factors.js'
import { checkFingerprint, fingerprintOf } from './fingerprint.js'
import { ModelSessions, type SessionParts } from './model-sessions.js'
import { ADAMW_DEFAULTS } from './optimizer.js'
import { peakRssBytes, steadyMedian, type TrainEvents, type TrainReport } from './report.js'
import { type FolderUse, readMetrics, readState, type StepMetrics } from './run-folder.js'
import { RunWriter } from './run-writer.js'
import { learningRates } from './schedule.js'

/** Steps that the time left is told from. */
const RECENT_STEPS = 100

/** `adapter` is where training starts; its factors are replaced by what it comes to. */
export interface RunParts extends SessionParts {
  readonly examples: readonly Example[]
  readonly evalExamples: readonly Example[] | undefined
  readonly out: { readonly directory: Directory; readonly use: FolderUse } | undefined
  readonly signal: AbortSignal | undefined
  readonly on: TrainEvents
}

/** The part of the report that the loop knows. */
export type RunReport = Pick<
  TrainReport,
  | 'steps'
  | 'tokens'
  | 'trainLoss'
  | 'evalLoss'
  | 'evalPerplexity'
  | 'stepMillis'
  | 'peakRssBytes'
  | 'interrupted'
  | 'runtime'
>

interface Start {
  engine: EngineState
  metrics: StepMetrics[]
  evalLossBefore: number | undefined
}

/**
 * Trains the adapter.
 *
 * @throws NumericError naming the step at which a loss or gradient was not finite; the adapter then has the factors of the
 *   last finite loss, and is saved if there was an update
 */
export async function trainAdapter(parts: RunParts): Promise<RunReport> {
  const engine = openEngine(parts.model.runtime, 'train', (runtime) => new TrainEngine(runtime))
  try {
    const sessions = await ModelSessions.create(parts, engine.remote)
    return await new TrainingRun(parts, engine, sessions).train()
  } finally {
    await engine.remote.dispose().catch(() => {})
    await engine.close()
  }
}

class TrainingRun {
  readonly #parts: RunParts
  readonly #engine: Engine<TrainEngine>
  readonly #sessions: ModelSessions
  readonly #totalSteps: number
  readonly #stepsPerEpoch: number
  readonly #lengths: readonly number[]
  readonly #names: readonly string[]
  #writer: RunWriter
  /** Of the run's start; empty where there is no folder to resume from. */
  #fingerprint: Record<string, string> = {}
  #evalLossBefore: number | undefined
  /** Of this process's steps: their tokens, and how long they took in milliseconds, together and each. */
  #tokens = 0
  #elapsedMs = 0
  readonly #times: number[] = []
  #epochPlan: { epoch: number; steps: StepPlan[] } | undefined

  constructor(parts: RunParts, engine: Engine<TrainEngine>, sessions: ModelSessions) {
    const { settings, examples, out } = parts
    this.#parts = parts
    this.#engine = engine
    this.#sessions = sessions
    this.#stepsPerEpoch = stepsPerEpoch(examples.length, sessions.planOptions)
    this.#totalSteps = settings.maxSteps ?? settings.epochs * this.#stepsPerEpoch
    this.#lengths = examples.map(({ inputIds }) => inputIds.length)
    this.#names = sessions.parameters.map(({ layer, factor }) => `${layer}.${factor}`)
    this.#writer = new RunWriter(out?.directory, out?.use ?? 'new', [])
  }

  async train(): Promise<RunReport> {
    const { on, settings } = this.#parts
    const { engine, metrics, evalLossBefore } = await this.#start()
    this.#evalLossBefore = evalLossBefore
    await this.#engine.remote.start(
      {
        parameters: this.#sessions.parameters,
        optimizer: { ...ADAMW_DEFAULTS, weightDecay: settings.weightDecay },
        maxGradNorm: settings.maxGradNorm,
      },
      engine,
    )
    try {
      this.#evalLossBefore ??= await this.#evaluate(metrics.length)
      on.stage?.('train')
      await this.#takeSteps(metrics.length)
      on.stage?.('save')
      await this.#save()
      const isTrained = this.#writer.metrics.length === this.#totalSteps
      const evalLossAfter = isTrained ? await this.#evaluate(this.#totalSteps) : undefined
      const isDone = isTrained && (this.#parts.evalExamples === undefined || evalLossAfter !== undefined)
      if (isDone) await this.#writer.finish()
      return this.#reportOf(evalLossAfter, isDone)
    } catch (error) {
      await this.#writer.abandon().catch(() => {}) // `error` says why the run ended
      throw error
    }
  }

  /** All steps from number `first` on, or as many as the signal leaves, with the evaluations and saves between them. */
  async #takeSteps(first: number): Promise<void> {
    const { settings, signal } = this.#parts
    for (let step = first; step < this.#totalSteps && !signal?.aborted; step++) {
      const done = step + 1
      const isDue = (every: number | undefined) => done < this.#totalSteps && every !== undefined && done % every === 0
      const metrics = await this.#step(step)
      this.#times.push(metrics.elapsedMs)
      const evalLoss = isDue(settings.evaluateEvery) ? await this.#evaluate(done) : undefined
      if (evalLoss !== undefined) metrics.evalLoss = evalLoss
      await this.#writer.add(metrics)
      this.#tell(metrics)
      if (isDue(settings.saveEvery)) await this.#save()
    }
  }

  #reportOf(evalLossAfter: number | undefined, isDone: boolean): RunReport {
    const { metrics } = this.#writer
    const [before, after] = [this.#evalLossBefore, evalLossAfter]
    return {
      steps: metrics.length,
      tokens: metrics.reduce((sum, { tokens }) => sum + tokens, 0),
      trainLoss: metrics.map(({ loss }) => loss),
      evalLoss: before === undefined || after === undefined ? null : { before, after },
      evalPerplexity: after === undefined ? null : Math.exp(after),
      stepMillis: steadyMedian(this.#times),
      peakRssBytes: peakRssBytes(),
      interrupted: !isDone,
      runtime: this.#sessions.runtimeName,
    }
  }

  /** The state that the first step of this process starts from. */
  async #start(): Promise<Start> {
    const { out, adapter } = this.#parts
    if (out !== undefined) this.#fingerprint = await fingerprintOf({ ...this.#parts, totalSteps: this.#totalSteps })
    if (out?.use !== 'resume') {
      const parameters = readFactors(adapter, this.#sessions.parameters)
      const zeros = () => parameters.map(({ length }) => new Float32Array(length))
      const engine = { parameters, firstMoments: zeros(), secondMoments: zeros(), updates: 0 }
      return { engine, metrics: [], evalLossBefore: undefined }
    }
    const { directory } = out
    const { engine, run } = await readState(directory, this.#names, ({ fingerprint }) =>
      checkFingerprint(fingerprint, this.#fingerprint, directory.name),
    )
    writeFactors(adapter, this.#sessions.parameters, engine.parameters)
    const metrics = await readMetrics(directory, run.step)
    this.#writer = new RunWriter(directory, 'resume', metrics)
    return { engine, metrics, evalLossBefore: run.evalLossBefore ?? undefined }
  }

  /** Step number `step`, counted from 0. */
  async #step(step: number): Promise<StepMetrics> {
    const startedAt = performance.now()
    const { examples, settings, model } = this.#parts
    const { epoch, plan } = this.#planOf(step)
    const normalizer = targetsOf(examples, plan)
    const runs = []
    for (const [index, microBatch] of plan.entries()) {
      const batch = collate(examples, microBatch, model.padTokenId)
      runs.push(await this.#sessions.trainingRun(batch, { normalizer, step, run: index }))
    }
    const rate = learningRates(settings.schedule, settings.learningRate, settings.warmupRatio, this.#totalSteps)(step)
    const { loss, gradientNorm } = await this.#engine.remote.step(runs, rate)
    if (!Number.isFinite(loss)) return this.#fail(`step ${step + 1}`, `the loss is ${loss}`)
    if (!Number.isFinite(gradientNorm)) return this.#fail(`step ${step + 1}`, `the gradient's norm is ${gradientNorm}`)
    const elapsedMs = performance.now() - startedAt
    return {
      step: step + 1,
      epoch,
      loss,
      learningRate: rate,
      gradientNorm,
      tokens: tokensOf(examples, plan),
      elapsedMs: Math.round(elapsedMs * 100) / 100,
    }
  }

  #planOf(step: number): { epoch: number; plan: StepPlan } {
    const epoch = Math.floor(step / this.#stepsPerEpoch)
    if (this.#epochPlan?.epoch !== epoch) {
      const { seed } = this.#parts.adapter.config
      this.#epochPlan = { epoch, steps: planEpoch(this.#lengths, seed, epoch, this.#sessions.planOptions) }
    }
    return { epoch, plan: this.#epochPlan.steps[step % this.#stepsPerEpoch] }
  }

  /** Loss over all evaluation records; undefined without any, or when the run is interrupted meanwhile. */
  async #evaluate(step: number): Promise<number | undefined> {
    const { on, model, signal, evalExamples: examples } = this.#parts
    if (examples === undefined) return undefined
    on.stage?.('evaluate')
    let sum = 0
    let targets = 0
    const lengths = examples.map(({ inputIds }) => inputIds.length)
    for (const plan of planEvaluation(lengths, this.#sessions.planOptions)) {
      if (signal?.aborted) return undefined
      const normalizer = targetsOf(examples, [plan])
      const run = await this.#sessions.evaluationRun(collate(examples, plan, model.padTokenId), normalizer)
      sum += (await this.#engine.remote.evaluate(run)) * normalizer
      targets += normalizer
    }
    const loss = sum / targets
    if (!Number.isFinite(loss)) return this.#fail(`evaluation after step ${step}`, `the loss is ${loss}`)
    on.evaluation?.({ step, loss, perplexity: Math.exp(loss) })
    return loss
  }

  /** Brings the adapter up to date, and saves it with the state to go on from. */
  async #save(): Promise<void> {
    const engine = await this.#engine.remote.state()
    const step = this.#writer.metrics.length
    if (!engine.parameters.every((values) => values.every(Number.isFinite))) {
      return this.#fail(`step ${step}`, 'its update gave weights that are not finite')
    }
    writeFactors(this.#parts.adapter, this.#sessions.parameters, engine.parameters)
    const run = { step, fingerprint: this.#fingerprint, evalLossBefore: this.#evalLossBefore ?? null }
    await this.#writer.save(this.#parts.adapter, { names: this.#names, engine, run })
  }

  /** Ends the run at a number that is not finite, with the factors of the last loss that was. */
  async #fail(where: string, what: string): Promise<never> {
    const { adapter, out } = this.#parts
    writeFactors(adapter, this.#sessions.parameters, await this.#engine.remote.lastGood())
    const isTrained = this.#writer.metrics.length > 0
    if (isTrained) await this.#writer.save(adapter)
    const kept = isTrained && out !== undefined ? `; the last good adapter is in ${out.directory.name}` : ''
    throw new NumericError({ where, what: what + kept, hint: 'Lower the learning rate, or clip gradients harder' })
  }

  #tell(metrics: StepMetrics): void {
    const { on } = this.#parts
    if (on.step === undefined) return
    this.#tokens += metrics.tokens
    this.#elapsedMs += metrics.elapsedMs
    // The last ones alone: sorting all of them at each step would take longer and longer.
    const stepMillis = steadyMedian(this.#times.slice(-RECENT_STEPS)) ?? metrics.elapsedMs
    on.step({
      ...metrics,
      totalSteps: this.#totalSteps,
      tokensPerSecond: (this.#tokens / this.#elapsedMs) * 1000,
      secondsLeft: ((this.#totalSteps - metrics.step) * stepMillis) / 1000,
    })
  }
}
