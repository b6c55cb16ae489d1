// Which examples run together. A step's examples depend on batchSize · accumulation only, so that both can be traded.

import { Random } from '../../base/random.js'
import type { Examples } from '../../tasks/task.js'
import { roundUp } from '../../tasks/token-batch.js'

export interface MicroBatch {
  readonly examples: readonly number[]
  readonly sequence: number
}

export type StepPlan = readonly MicroBatch[]

export interface PlanOptions {
  batchSize: number
  accumulation: number
  limit: number
  /** Batches keep the order of the data. Default false. */
  inOrder?: boolean
}

/** Enough for batches of like lengths, few enough that what follows what stays random. */
const WINDOW_STEPS = 16

/** Depends on (seed, epoch) alone, so that a resumed run finds the same order. `lengths`: tokens of each example. */
export function planEpoch(lengths: readonly number[], seed: number, epoch: number, options: PlanOptions): StepPlan[] {
  const random = new Random(seed, `shuffle/${epoch}`)
  const all = Array.from(lengths, (_, index) => index)
  const stepSize = options.batchSize * options.accumulation
  if (options.inOrder) return chunks(all, stepSize).map((examples) => microBatches(examples, lengths, options))
  const order = random.shuffle(all)
  const steps: StepPlan[] = []
  for (const window of chunks(order, stepSize * WINDOW_STEPS)) {
    window.sort((a, b) => lengths[a] - lengths[b])
    const inWindow = chunks(window, stepSize)
    steps.push(...random.shuffle(inWindow).map((examples) => microBatches(examples, lengths, options)))
  }
  return steps
}

export function planEvaluation(
  lengths: readonly number[],
  options: Pick<PlanOptions, 'batchSize' | 'limit' | 'inOrder'>,
): MicroBatch[] {
  const order = Array.from(lengths, (_, index) => index)
  if (!options.inOrder) order.sort((a, b) => lengths[b] - lengths[a])
  return microBatches(order, lengths, options)
}

export function stepsPerEpoch(examples: number, options: Pick<PlanOptions, 'batchSize' | 'accumulation'>): number {
  return Math.ceil(examples / (options.batchSize * options.accumulation))
}

function microBatches(
  examples: readonly number[],
  lengths: readonly number[],
  { batchSize, limit }: Pick<PlanOptions, 'batchSize' | 'limit'>,
): MicroBatch[] {
  return chunks(examples, batchSize).map((batch) => {
    const longest = batch.reduce((most, index) => Math.max(most, lengths[index]), 0)
    return { examples: batch, sequence: Math.min(roundUp(longest), limit) }
  })
}

export function examplesOf<Example>(examples: Examples<Example>, plans: readonly MicroBatch[]): Example[] {
  return plans.flatMap((plan) => plan.examples.map((index) => examples.at(index) as Example))
}

export function costOf(costs: readonly number[], plans: readonly MicroBatch[]): number {
  return sum(plans, (plan) => sum(plan.examples, (index) => costs[index]))
}

function sum<T>(items: readonly T[], value: (item: T) => number): number {
  return items.reduce((total, item) => total + value(item), 0)
}

function chunks<T>(items: readonly T[], size: number): T[][] {
  return Array.from({ length: Math.ceil(items.length / size) }, (_, i) => items.slice(i * size, (i + 1) * size))
}
