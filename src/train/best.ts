// The best evaluation of a run so far, and how many in a row were no better: decides whose weights are kept, and when a
// run ends early.

import { ConfigError, nearMisses } from '../base/errors.js'

/** Result of an evaluation. */
export interface Evaluation {
  /** Optimizer steps done. */
  readonly step: number
  readonly loss: number
  /** Other metrics of the task, by name. */
  readonly metrics: Readonly<Record<string, number>>
}

/** The best evaluation so far, which a resumed run goes on from. */
export interface BestState {
  readonly best: Evaluation
  /** Evaluations after it. */
  readonly stale: number
}

/** Follows the evaluations of a run. */
export class BestEvaluation {
  readonly #metric: string
  readonly #isLowerBetter: boolean
  #state: BestState | undefined

  /**
   * @param metric `loss`, or a metric of the task
   * @param lowerIsBetter metrics of the task whose lower value is better, beside the loss
   */
  constructor(metric: string, lowerIsBetter: readonly string[] = []) {
    this.#metric = metric
    this.#isLowerBetter = metric === 'loss' || lowerIsBetter.includes(metric)
  }

  /** Undefined before the first evaluation. */
  get state(): BestState | undefined {
    return this.#state
  }

  /** Goes on from where a run stopped. */
  resume(state: BestState | undefined): void {
    this.#state = state
  }

  /** True when so many evaluations in a row were no better than one before them. */
  isStale(patience: number | undefined): boolean {
    return patience !== undefined && this.#state !== undefined && this.#state.stale >= patience
  }

  /**
   * Takes an evaluation.
   *
   * @returns whether it is the best so far: of equal ones, the first
   * @throws ConfigError when the task has no such metric
   */
  add(evaluation: Evaluation): boolean {
    const value = this.value(evaluation)
    const before = this.#state
    const isBest = before === undefined || this.#isBetter(value, this.value(before.best))
    this.#state = isBest ? { best: evaluation, stale: 0 } : { best: before.best, stale: before.stale + 1 }
    return isBest
  }

  /**
   * The number that evaluations are compared by.
   *
   * @throws ConfigError when the task has no such metric
   */
  value({ loss, metrics }: Pick<Evaluation, 'loss' | 'metrics'>): number {
    if (this.#metric === 'loss') return loss
    const value = Object.hasOwn(metrics, this.#metric) ? metrics[this.#metric] : undefined
    if (value !== undefined) return value
    const names = ['loss', ...Object.keys(metrics)]
    const near = nearMisses(this.#metric, names)
    throw new ConfigError({
      where: 'bestMetric',
      what: 'the task has no such metric',
      expected: names.join(', '),
      got: this.#metric,
      ...(near.length > 0 && { hint: `Did you mean ${near[0]}?` }),
    })
  }

  /** A metric that is not a number, such as a correlation of equal values, is worse than any. */
  #isBetter(value: number, before: number): boolean {
    if (Number.isNaN(before)) return !Number.isNaN(value)
    return this.#isLowerBetter ? value < before : value > before
  }
}
