// The best evaluation so far, and how many after it were not better. They decide what is kept, and when a run ends. The
// evaluation before the first step competes for what is kept, but patience does not count it.

import { ConfigError, didYouMean } from '../../core/base/errors.js'
import type { Evaluation } from '../report.js'

export interface BestState {
  readonly best: Evaluation
  readonly stale: number
}

export class BestEvaluation {
  readonly #metric: string
  readonly #isLowerBetter: boolean
  state: BestState | undefined
  /** The evaluation before the first step. */
  start: Evaluation | undefined

  /** `lowerIsBetter`: metrics of the task whose lower value is better, beside the loss. */
  constructor(metric: string, lowerIsBetter: readonly string[] = []) {
    this.#metric = metric
    this.#isLowerBetter = metric === 'loss' || lowerIsBetter.includes(metric)
  }

  isStale(patience: number | undefined): boolean {
    return patience !== undefined && this.state !== undefined && this.state.stale >= patience
  }

  /** Returns true for the best so far: of equal ones, the first. */
  add(evaluation: Evaluation): boolean {
    const value = this.value(evaluation)
    const before = this.state
    const isBest = before === undefined || this.#isBetter(value, this.value(before.best))
    this.state = isBest ? { best: evaluation, stale: 0 } : { best: before.best, stale: before.stale + 1 }
    return isBest
  }

  /** The evaluation whose weights are kept: of equal ones, the earliest. */
  get kept(): Evaluation | undefined {
    return this.state !== undefined && this.isGain(this.state.best) ? this.state.best : (this.start ?? this.state?.best)
  }

  /** True if an evaluation is better than the one before the first step. */
  isGain(evaluation: Evaluation): boolean {
    return this.start === undefined || this.#isBetter(this.value(evaluation), this.value(this.start))
  }

  /** Tells an evaluation that is not better than the one before the first step: `loss 2.1 before, 2.3 after`. */
  changeTo(evaluation: Evaluation): string {
    const shown = (of: Evaluation) => Number(this.value(of).toPrecision(4))
    return `${this.#metric} ${shown(this.start!)} before, ${shown(evaluation)} after`
  }

  value({ loss, metrics }: Pick<Evaluation, 'loss' | 'metrics'>): number {
    if (this.#metric === 'loss') return loss
    const value = Object.hasOwn(metrics, this.#metric) ? metrics[this.#metric] : undefined
    if (value !== undefined) return value
    const names = ['loss', ...Object.keys(metrics)]
    throw new ConfigError({
      where: 'bestMetric',
      what: 'the task has no such metric',
      expected: names.join(', '),
      got: this.#metric,
      hint: didYouMean(this.#metric, names),
    })
  }

  /** A metric that is not a number, such as a correlation of equal values, is worse than any. */
  #isBetter(value: number, before: number): boolean {
    if (Number.isNaN(before)) return !Number.isNaN(value)
    return this.#isLowerBetter ? value < before : value > before
  }
}
