// Reasons to doubt that a finished run has learned: they end its report.

import type { LoraAdapter } from '../../lora/adapter.js'
import type { StepMetrics } from '../report.js'

const NO_SIGNAL = 'no text was better than another: nothing was learned'

/** A loss that ends above this many times its start has diverged. */
const RISE = 3

/** Shorter runs have no first and last tenth to compare. */
const LEAST_STEPS = 3

/** Nats a token away from the model before training: more is another language. */
const MOST_KL = 1

export function hasSignal({ rewards }: StepMetrics): boolean {
  return rewards === undefined || rewards.withoutSignal < 1
}

/** What is known of a run at its end. `withoutGain` has a sentence if no evaluation was better than the first. */
interface Judged {
  readonly metrics: readonly StepMetrics[]
  readonly keepsBest: boolean
  readonly withoutGain: readonly string[]
}

export function doubtsOf({ metrics: steps, keepsBest, withoutGain }: Judged, adapter: LoraAdapter): string[] {
  if (steps.every(({ learningRate }) => learningRate === 0)) {
    return ['no step had a learning rate above 0: nothing was learned']
  }
  if (!steps.some(hasSignal)) return [NO_SIGNAL]
  // These weights are the start's.
  if (keepsBest && withoutGain.length > 0) return [...withoutGain]
  const layers = adapter.parts('linear')
  if (layers.length > 0 && layers.every(({ weightB }) => weightB.data.every((value) => value === 0))) {
    return ['every B is still all zeros: the layers learned nothing']
  }
  // The best evaluation may have come before the loss rose.
  return keepsBest ? [] : [...divergence(steps), ...withoutGain]
}

function divergence(steps: readonly StepMetrics[]): string[] {
  if (steps.length < LEAST_STEPS) return []
  const tenth = Math.ceil(steps.length / 10)
  const ends = (value: (step: StepMetrics) => number) =>
    [steps.slice(0, tenth), steps.slice(-tenth)].map((part) => median(part.map(value)))
  if (steps[0].rewards === undefined) {
    const [first, last] = ends(({ loss }) => loss)
    if (!(first > 0 && last > RISE * first)) return []
    return [
      `the loss rose from ${first.toPrecision(3)} to ${last.toPrecision(3)}: lower \`learningRate\`, or end with the weights of the best evaluation by \`keep: 'best'\``,
    ]
  }
  const lower = 'lower `learningRate`, or raise `beta`'
  const [first, last] = ends(({ rewards }) => rewards!.reward)
  const [spread] = ends(({ rewards }) => rewards!.deviation)
  const [, kl] = ends(({ rewards }) => rewards!.kl ?? 0)
  return [
    ...(last < first - spread
      ? [`the reward fell from ${first.toPrecision(3)} to ${last.toPrecision(3)}: ${lower}`]
      : []),
    ...(kl > MOST_KL
      ? [`the texts are ${kl.toPrecision(3)} nats a token away from the model before training: ${lower}`]
      : []),
  ]
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}
