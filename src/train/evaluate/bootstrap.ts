// Computes intervals of metrics by the bootstrap (Efron and Tibshirani 1993, percentile intervals): records are drawn
// with replacement many times, and each draw gives a value of the metric. All models get the same draws, so the
// difference between two models varies less than the metrics themselves.

import { Random } from '../../core/base/random.js'

/** A number with the interval that contains 95 % of the draws; null if the draws give no interval. */
export interface Interval {
  readonly value: number
  readonly low: number | null
  readonly high: number | null
}

/** Computes metrics over records. `records` holds their indices, which may occur several times. */
export type Statistic = (records: ArrayLike<number>) => Readonly<Record<string, number>>

/** The means of measures over records. Records without a measure, NaN, do not count for it. */
export function meansOf(measures: readonly Readonly<Record<string, number>>[]): Statistic {
  const names = Object.keys(measures[0] ?? {})
  const columns = names.map((name) => Float64Array.from(measures, (values) => values[name]))
  const kept = names.map((name, i) => [name, columns[i]] as const).filter(([, column]) => !column.every(Number.isNaN))
  return (records) => {
    const meanOf = (column: Float64Array) => {
      let [sum, count] = [0, 0]
      for (let i = 0; i < records.length; i++) {
        const value = column[records[i]]
        if (Number.isNaN(value)) continue
        sum += value
        count++
      }
      return sum / count
    }
    return Object.fromEntries(kept.map(([name, column]) => [name, meanOf(column)]))
  }
}

export function bootstrap(
  models: readonly Statistic[],
  count: number,
  { resamples, seed }: { readonly resamples: number; readonly seed: number },
) {
  const random = new Random(seed, 'bootstrap')
  const whole = models.map((statistic) => statistic(Array.from({ length: count }, (_, i) => i)))
  const draws: Readonly<Record<string, number>>[][] = []
  const records = new Int32Array(count)
  // A single record says nothing about the spread.
  for (let draw = 0; count > 1 && draw < resamples; draw++) {
    for (let i = 0; i < count; i++) records[i] = random.below(count)
    draws.push(models.map((statistic) => statistic(records)))
  }
  const interval = (value: number, of: (values: readonly Readonly<Record<string, number>>[]) => number): Interval => {
    const drawn = draws.map(of).filter(Number.isFinite)
    if (drawn.length < draws.length / 2 || drawn.length === 0) return { value, low: null, high: null }
    drawn.sort((a, b) => a - b)
    return { value, low: quantile(drawn, 0.025), high: quantile(drawn, 0.975) }
  }
  return models.map((_, model) => {
    const names = Object.keys(whole[model])
    const metrics = names.map((name) => [name, interval(whole[model][name], (values) => values[model][name])] as const)
    const shared = names.filter((name) => name in whole[0])
    const differences = shared.map((name) => {
      const value = whole[model][name] - whole[0][name]
      return [name, interval(value, (values) => values[model][name] - values[0][name])] as const
    })
    return { metrics: Object.fromEntries(metrics), differences: model === 0 ? null : Object.fromEntries(differences) }
  })
}

function quantile(sorted: readonly number[], share: number): number {
  const at = share * (sorted.length - 1)
  const below = Math.floor(at)
  const above = Math.min(below + 1, sorted.length - 1)
  return sorted[below] + (at - below) * (sorted[above] - sorted[below])
}
