// Records the steps, evaluations and answers of a run, and makes its events and its report from them.

import type { Evaluation, MemoryUse, SampleEvent, StepEvent, StepMetrics, TrainReport } from '../report.js'
import type { TrainSettings } from '../settings.js'
import { BestEvaluation } from './best.js'
import { hasSignal } from './doubts.js'
import type { RunState } from './run-folder.js'

const RECENT_STEPS = 100

export type RunReport = Omit<
  TrainReport,
  'task' | 'truncatedRecords' | 'skippedRecords' | 'newHead' | 'labels' | 'trainableParams' | 'totalParams' | 'seconds'
>

export class History {
  readonly metrics: StepMetrics[] = []
  readonly evaluations: Evaluation[] = []
  readonly samples: SampleEvent[] = []
  readonly best: BestEvaluation
  /** The steps of this process: milliseconds of each, and sums over all. */
  readonly #times: number[] = []
  #seconds = 0
  #tokens = 0
  #examples = 0
  #memory: MemoryUse | null = null

  constructor(
    private readonly settings: TrainSettings,
    lowerIsBetter: readonly string[] | undefined,
    private readonly totalSteps: number,
  ) {
    this.best = new BestEvaluation(settings.bestMetric, lowerIsBetter)
  }

  get steps(): number {
    return this.metrics.length
  }

  /** All steps are taken, or evaluations have not become better for too long. */
  get isOver(): boolean {
    return this.steps >= this.totalSteps || this.best.isStale(this.settings.earlyStopping)
  }

  get keepsBest(): boolean {
    return this.settings.keep === 'best'
  }

  /** The latest evaluation; undefined if it is the one before the first step. */
  get latest(): Evaluation | undefined {
    const last = this.evaluations.at(-1)
    return last?.step === 0 ? undefined : last
  }

  restore(metrics: readonly StepMetrics[], { best, evaluations, samples }: RunState): void {
    for (const step of metrics) this.metrics.push(step)
    this.best.state = best
    for (const evaluation of evaluations) this.evaluations.push(evaluation)
    this.best.start = evaluations.find(({ step }) => step === 0)
    for (const sample of samples) this.samples.push(sample)
  }

  state(fingerprint: Record<string, string>): RunState {
    const { steps: step, evaluations, samples } = this
    return { step, fingerprint, evaluations, samples, best: this.best.state }
  }

  /** Counts a step that is over. `examples`: how many it had. */
  measure({ tokens, elapsedMs }: StepMetrics, examples: number, memory: MemoryUse | undefined): void {
    this.#times.push(elapsedMs)
    this.#seconds += elapsedMs / 1000
    this.#tokens += tokens
    this.#examples += examples
    if (memory === undefined) return
    const { anonymous, mapped } = this.#memory ?? memory
    this.#memory = { anonymous: Math.max(anonymous, memory.anonymous), mapped: Math.max(mapped, memory.mapped) }
  }

  eventOf(metrics: StepMetrics): StepEvent {
    // The last ones alone: sorting all of them at each step would take longer and longer.
    const stepMillis = steadyMedian(this.#times.slice(-RECENT_STEPS)) ?? metrics.elapsedMs
    return {
      ...metrics,
      totalSteps: this.totalSteps,
      tokensPerSecond: this.#tokens / this.#seconds,
      examplesPerSecond: this.#examples / this.#seconds,
      secondsLeft: ((this.totalSteps - metrics.step) * stepMillis) / 1000,
    }
  }

  /** A run whose weights are not better than before it says so. */
  get withoutGain(): string[] {
    const { best, latest } = this
    const after = this.keepsBest ? best.state?.best : latest
    if (best.start === undefined || after === undefined || best.isGain(after)) return []
    const end = this.keepsBest
      ? 'so the adapter is as it was before it'
      : "`keep: 'best'` would keep the adapter as it was"
    return [`the run made nothing better (${best.changeTo(after)}), ${end}`]
  }

  report(isDone: boolean, runtime: string): Omit<RunReport, 'warnings'> {
    const { metrics, steps, evaluations, samples } = this
    const kept = this.keepsBest ? this.best.kept : undefined
    const before = evaluations[0]?.loss
    const after = isDone ? (kept ?? this.latest) : undefined
    const rewards = metrics.flatMap(({ rewards }) => rewards?.reward ?? [])
    return {
      ...{ steps, tokens: metrics.reduce((sum, { tokens }) => sum + tokens, 0) },
      trainLoss: metrics.map(({ loss }) => loss),
      ...(rewards.length > 0 && { rewards, stepsWithoutSignal: metrics.filter((step) => !hasSignal(step)).length }),
      keptStep: kept?.step ?? steps,
      strength: kept?.strength ?? 1,
      stoppedEarly: isDone && steps < this.totalSteps,
      evalLoss: before === undefined || after === undefined ? null : { before, after: after.loss },
      evalMetrics: after === undefined ? null : { ...after.metrics },
      ...{ evaluations, samples, stepMillis: steadyMedian(this.#times), peakRssBytes: peakRssBytes() },
      ...{ memory: this.#memory, interrupted: !isDone, runtime },
    }
  }
}

/** Median of the values after the first two; null if there is none. */
export function steadyMedian(values: readonly number[]): number | null {
  const sorted = values.slice(2).sort((a, b) => a - b)
  if (sorted.length === 0) return null
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}

function peakRssBytes(): number | null {
  const { process } = globalThis as { process?: { resourceUsage?(): { maxRSS: number } } }
  const usage = process?.resourceUsage?.()
  return usage === undefined ? null : usage.maxRSS * 1024
}
