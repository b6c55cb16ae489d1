// The best evaluation so far, and how many after it were not better. They decide what is kept, and when a run ends. The
// evaluation before the first step competes for what is kept, but patience does not count it.

import { ConfigError, didYouMean } from '../../core/base/errors.js'
import type { Evaluation } from '../report.js'

export interface BestState {
  readonly best: Evaluation
  readonly stale: number
}

export class BestEvaluation {
  readonly #metrics: readonly string[]
  readonly #lowerIsBetter: readonly string[]
  state: BestState | undefined
  /** The evaluation before the first step. */
  start: Evaluation | undefined

  /**
   * @param metrics names with commas; each decides if those before it are equal
   * @param lowerIsBetter metrics of the task whose lower value is better, beside the loss
   */
  constructor(metrics: string, lowerIsBetter: readonly string[] = []) {
    this.#metrics = metrics.split(',')
    this.#lowerIsBetter = ['loss', ...lowerIsBetter]
  }

  isStale(patience: number | undefined): boolean {
    return patience !== undefined && this.state !== undefined && this.state.stale >= patience
  }

  /** Returns true for the best so far: of equal ones, the first. */
  add(evaluation: Evaluation): boolean {
    const before = this.state
    const isBest = before === undefined || this.#isBetter(evaluation, before.best)
    this.state = isBest ? { best: evaluation, stale: 0 } : { best: before.best, stale: before.stale + 1 }
    return isBest
  }

  /** Takes the evaluation of a part of the best weights if it is better, and tells so. */
  addPart(evaluation: Evaluation): boolean {
    const { best, stale } = this.state!
    if (!this.#isBetter(evaluation, best)) return false
    this.state = { best: evaluation, stale }
    return true
  }

  /** The evaluation whose weights are kept: of equal ones, the earliest. */
  get kept(): Evaluation | undefined {
    return this.state !== undefined && this.isGain(this.state.best) ? this.state.best : (this.start ?? this.state?.best)
  }

  /** True if an evaluation is better than the one before the first step. */
  isGain(evaluation: Evaluation): boolean {
    return this.start === undefined || this.#isBetter(evaluation, this.start)
  }

  /** Tells an evaluation that is not better than the one before the first step: `loss 2.1 before, 2.3 after`. */
  changeTo(evaluation: Evaluation): string {
    const [before, after] = [this.values(this.start!), this.values(evaluation)]
    const shown = (values: readonly number[], i: number) => Number(values[i].toPrecision(4))
    const changes = this.#metrics.map((name, i) => `${name} ${shown(before, i)} before, ${shown(after, i)} after`)
    return changes.join('; ')
  }

  values({ loss, metrics }: Pick<Evaluation, 'loss' | 'metrics'>): number[] {
    return this.#metrics.map((name) => {
      if (name === 'loss') return loss
      if (Object.hasOwn(metrics, name)) return metrics[name]
      const names = ['loss', ...Object.keys(metrics)]
      throw new ConfigError({
        where: 'bestMetric',
        what: 'the task has no such metric',
        expected: names.join(', '),
        got: name,
        hint: didYouMean(name, names),
      })
    })
  }

  /** A metric that is not a number, such as a correlation of equal values, is worse than any. */
  #isBetter(evaluation: Evaluation, than: Evaluation): boolean {
    const [values, before] = [this.values(evaluation), this.values(than)]
    const first = values.findIndex((value, i) => !Object.is(value, before[i]))
    if (first === -1 || Number.isNaN(values[first])) return false
    if (Number.isNaN(before[first])) return true
    const isLower = values[first] < before[first]
    return isLower === this.#lowerIsBetter.includes(this.#metrics[first])
  }
}
