// Which examples run together. A step's examples depend on batchSize · accumulation only, so that both can be traded.

import { Random } from '../../core/base/random.js'
import { roundUp } from '../../model/inputs/token-batch.js'
import type { Examples, OpenTask } from '../tasks/task.js'

export interface MicroBatch {
  readonly examples: readonly number[]
  readonly sequence: number
}

/** Examples, and the number of tokens that they are padded to. */
export interface Batch {
  readonly examples: readonly unknown[]
  readonly length: number
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

/**
 * The steps of one pass over the data. They depend on (seed, epoch) alone, so that a resumed run finds the same order.
 * An example takes 4 bytes. `lengths` are the tokens of each example.
 */
export class EpochPlan implements Iterable<StepPlan> {
  readonly length: number
  readonly #lengths: ArrayLike<number>
  readonly #options: PlanOptions
  readonly #order: Uint32Array
  /** The only step that may have fewer examples. */
  #short: number

  constructor(lengths: ArrayLike<number>, seed: number, epoch: number, options: PlanOptions) {
    this.length = stepsPerEpoch(lengths.length, options)
    this.#lengths = lengths
    this.#options = options
    this.#order = Uint32Array.from({ length: lengths.length }, (_, index) => index)
    this.#short = this.length - 1
    if (!options.inOrder) this.#shuffle(new Random(seed, `shuffle/${epoch}`))
  }

  get #size(): number {
    return this.#options.batchSize * this.#options.accumulation
  }

  #shuffle(random: Random): void {
    const order = random.shuffle(this.#order)
    for (let from = 0; from < order.length; from += this.#size * WINDOW_STEPS) {
      const window = order.subarray(from, from + this.#size * WINDOW_STEPS)
      window.sort((a, b) => this.#lengths[a] - this.#lengths[b])
      const steps = random.shuffle(chunks(window.slice(), this.#size))
      const short = steps.findIndex(({ length }) => length < this.#size)
      if (short !== -1) this.#short = from / this.#size + short
      let at = 0
      for (const step of steps) {
        window.set(step, at)
        at += step.length
      }
    }
  }

  at(step: number): StepPlan {
    const missing = this.length * this.#size - this.#order.length
    const begin = step * this.#size - (step > this.#short ? missing : 0)
    const end = begin + this.#size - (step === this.#short ? missing : 0)
    return microBatches([...this.#order.subarray(begin, end)], this.#lengths, this.#options)
  }

  *[Symbol.iterator](): Generator<StepPlan> {
    for (let step = 0; step < this.length; step++) yield this.at(step)
  }
}

/** The plans of steps, by pass and step. The last pass stays planned. */
export function stepPlans(lengths: ArrayLike<number>, seed: number, options: PlanOptions) {
  let [planned, pass] = [-1, undefined as unknown as EpochPlan]
  return (epoch: number, step: number): StepPlan => {
    if (planned !== epoch) pass = new EpochPlan(lengths, seed, epoch, options)
    planned = epoch
    return pass.at(step)
  }
}

export function planEvaluation(
  lengths: ArrayLike<number>,
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
  lengths: ArrayLike<number>,
  { batchSize, limit }: Pick<PlanOptions, 'batchSize' | 'limit'>,
): MicroBatch[] {
  return chunks(examples, batchSize).map((batch) => {
    const longest = batch.reduce((most, index) => Math.max(most, lengths[index]), 0)
    return { examples: batch, sequence: Math.min(roundUp(longest), limit) }
  })
}

export function batchOf(from: Pick<Examples<unknown>, 'at'>, { examples, sequence }: MicroBatch): Batch {
  return { examples: examples.map((index) => from.at(index)), length: sequence }
}

function chunks<T extends { readonly length: number; slice(from: number, to: number): T }>(
  items: T,
  size: number,
): T[] {
  return Array.from({ length: Math.ceil(items.length / size) }, (_, i) => items.slice(i * size, (i + 1) * size))
}

export function costsOf(open: OpenTask, examples: Examples<unknown>): Int32Array {
  if (examples.costs !== undefined) return examples.costs
  const costs = new Int32Array(examples.length)
  let i = 0
  for (const example of examples) costs[i++] = open.cost(example)
  return costs
}

export function longestOf(costs: Iterable<number>): number {
  let longest = 0
  for (const cost of costs) longest = Math.max(longest, cost)
  return longest
}
