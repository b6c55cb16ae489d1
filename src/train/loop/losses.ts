// Losses as functions of the tokens' log-probabilities: each returns the loss and its derivatives, which the trainer
// feeds back through the model. Clipping follows TRL 1.16 (trl/trainer/grpo_trainer.py).

import { ConfigError, NumericError, ShapeError } from '../../core/base/errors.js'

/** An example as a loss sees it. Arrays have one value for each of its t targets, in the order of the tokens. */
export interface LossRow {
  /** The targets: token ids. */
  readonly tokens: Int32Array
  /** ln(probability) of each target with the factors as they are. */
  readonly logprobs: Float32Array
  /** Entropy of each target's distribution, in nats, if the trainer was opened with `entropy`. */
  readonly entropies: Float32Array | undefined
  readonly weights: Float32Array
  /** The example's own `logprobs`: those of the model that sampled it. */
  readonly oldLogprobs: Float32Array | undefined
  readonly reference: Float32Array | undefined
  readonly advantages: Float32Array | undefined
}

/** The result of a loss function for its rows. */
export interface LossResult {
  readonly loss: number
  /** Derivatives of the loss by each row's `logprobs`, (t) each. */
  readonly gradients: readonly Float32Array[]
  /** Derivatives by `entropies`, (t) each. Default: none. */
  readonly entropyGradients?: readonly Float32Array[] | undefined
  readonly metrics?: Readonly<Record<string, number>> | undefined
}

/** A loss of your own, over all rows of a call. */
export type LossFunction = (rows: readonly LossRow[]) => LossResult | Promise<LossResult>

/** Settings of the losses that have a name. */
export interface LossOptions {
  /**
   * `ppo`: ratios are clipped to 1 − epsilon and 1 + epsilonHigh.
   * @range a finite number of at least 0
   * @default 0.2
   */
  readonly epsilon?: number | undefined
  /**
   * Default: as epsilon. For `cispo`, the largest ratio itself.
   * @range a finite number of at least 0
   */
  readonly epsilonHigh?: number | undefined
  /**
   * `dpo`: how strongly the model is held near the reference.
   * @range a finite number above 0
   * @default 0.1
   */
  readonly beta?: number | undefined
  /**
   * What token losses are divided by. Default: the sum of the weights' sizes in this call.
   * @range a finite number above 0
   */
  readonly normalizer?: number | undefined
}

export const LOSS_NAMES = ['cross-entropy', 'importance-sampling', 'ppo', 'cispo', 'dpo'] as const

/** A loss that has a name. */
export type LossName = (typeof LOSS_NAMES)[number]

type Term = readonly [loss: number, slope: number]

export function namedLoss(name: LossName, options: LossOptions): LossFunction {
  const { epsilon = 0.2, epsilonHigh = epsilon, beta = 0.1, normalizer } = options
  const ofTokens = (term: (row: LossRow, i: number) => Term): LossFunction => {
    return (rows) => {
      const total = normalizer ?? rows.reduce((sum, { weights }) => sum + sizeOf(weights), 0)
      return sumOf(rows, (row, i) => scaled(term(row, i), row.weights[i] / total))
    }
  }
  const policy = (clip: Clip) => {
    return ofTokens((row, i) =>
      policyTerm(clip, row.logprobs[i], given(row, 'oldLogprobs', i), given(row, 'advantages', i)),
    )
  }
  switch (name) {
    case 'cross-entropy':
      return ofTokens(({ logprobs }, i) => [-logprobs[i], -1])
    case 'importance-sampling':
      return policy({ epsilon: Number.POSITIVE_INFINITY, epsilonHigh: Number.POSITIVE_INFINITY })
    case 'ppo':
      return policy({ epsilon, epsilonHigh })
    case 'cispo':
      return policy({ isCispo: true, epsilon, epsilonHigh })
    case 'dpo':
      return (rows) => dpoLoss(rows, beta)
  }
}

export interface Clip {
  readonly epsilon: number
  readonly epsilonHigh: number
  readonly isCispo?: boolean
}

/** Loss and slope of one token. cispo (arXiv 2506.13585) clips the ratio and treats it as a constant. */
export function policyTerm(
  { epsilon, epsilonHigh, isCispo }: Clip,
  logprob: number,
  old: number,
  advantage: number,
): Term {
  const ratio = Math.exp(logprob - old)
  if (isCispo) {
    const constant = -Math.min(ratio, epsilonHigh) * advantage
    return [constant * logprob, constant]
  }
  const clipped = Math.min(Math.max(ratio, 1 - epsilon), 1 + epsilonHigh)
  const isClipped = ratio * advantage > clipped * advantage
  return isClipped ? [-clipped * advantage, 0] : [-ratio * advantage, -ratio * advantage]
}

/** exp(r − l) − (r − l) − 1: never negative, and on average the KL divergence (Schulman 2020). */
export function klTerm(logprob: number, reference: number): Term {
  const ratio = Math.exp(reference - logprob)
  return [ratio - (reference - logprob) - 1, 1 - ratio]
}

export function scaled([loss, slope]: Term, factor: number): Term {
  return [loss * factor, slope * factor]
}

/** The sum of a loss over all tokens, with its derivatives. */
export function sumOf(rows: readonly LossRow[], term: (row: LossRow, i: number) => Term): LossResult {
  let loss = 0
  const gradients = rows.map((row) => {
    return row.logprobs.map((_, i) => {
      const [value, slope] = term(row, i)
      loss += value
      return slope
    })
  })
  return { loss, gradients }
}

/** DPO (arXiv 2305.18290). Rows are pairs, the better answer first. */
function dpoLoss(rows: readonly LossRow[], beta: number): LossResult {
  const pairs = pairsOf(rows)
  const margins = pairs.map(([chosen, rejected]) => beta * (changeOf(chosen) - changeOf(rejected)))
  const slopes = margins.map((margin) => (-beta * sigmoid(-margin)) / pairs.length)
  return {
    loss: margins.reduce((sum, margin) => sum - Math.log(sigmoid(margin)), 0) / pairs.length,
    gradients: rows.map(({ weights }, i) => weights.map((weight) => weight * (i % 2 === 0 ? 1 : -1) * slopes[i >> 1])),
    metrics: {
      'rewards/margins': mean(margins),
      'rewards/accuracies': mean(margins.map((margin) => Number(margin > 0))),
    },
  }
}

function pairsOf(rows: readonly LossRow[]): (readonly [LossRow, LossRow])[] {
  if (rows.length % 2 === 1) {
    throw new ConfigError({ where: 'examples', what: 'this loss takes pairs', expected: 'an even number of examples' })
  }
  return Array.from({ length: rows.length / 2 }, (_, i) => [rows[2 * i], rows[2 * i + 1]] as const)
}

/** ln(probability) of the whole answer, minus that by the reference. */
function changeOf(row: LossRow): number {
  return row.logprobs.reduce((sum, value, i) => sum + row.weights[i] * (value - given(row, 'reference', i)), 0)
}

function given(row: LossRow, name: 'oldLogprobs' | 'advantages' | 'reference', i: number): number {
  const values = row[name]
  if (values !== undefined) return values[i]
  const field = name === 'oldLogprobs' ? 'logprobs' : name
  throw new ConfigError({ where: 'examples', what: `this loss needs \`${field}\` of each example` })
}

function sizeOf(weights: Float32Array): number {
  return weights.reduce((sum, weight) => sum + Math.abs(weight), 0)
}

function sigmoid(x: number): number {
  return 1 / (1 + Math.exp(-x))
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length
}

/** Throws ShapeError or NumericError for a result that the trainer cannot feed back. */
export function checkResult({ gradients, entropyGradients = [] }: LossResult, rows: readonly LossRow[]): void {
  for (const [name, lists] of Object.entries({ gradients, entropyGradients })) {
    if (name === 'entropyGradients' && lists.length === 0) continue
    const lengths = Array.from(rows, ({ logprobs }, i) => [logprobs.length, lists[i]?.length])
    const wrong = lengths.findIndex(([expected, got]) => expected !== got)
    if (wrong !== -1 || lists.length !== rows.length) {
      const [expected, got] = lengths[wrong] ?? [rows.length, lists.length]
      throw new ShapeError({
        where: `${name} of the loss`,
        what: `row ${wrong}`,
        expected: `${expected}`,
        got: `${got}`,
      })
    }
    if (lists.some((values) => !values.every(Number.isFinite))) {
      throw new NumericError({ where: `${name} of the loss`, what: 'values that are not finite' })
    }
  }
}

const CHECKED = 16
const STEP = 1e-2

/** Compares a loss's derivatives with central differences at some tokens of each row. Throws if they differ. */
export async function checkDerivatives(
  loss: LossFunction,
  rows: readonly LossRow[],
  result: LossResult,
): Promise<void> {
  for (const part of ['logprobs', 'entropies'] as const) {
    const gradients = part === 'logprobs' ? result.gradients : (result.entropyGradients ?? [])
    const largest = gradients.reduce(
      (most, values) => values.reduce((m, value) => Math.max(m, Math.abs(value)), most),
      0,
    )
    for (const [r, values] of gradients.entries()) {
      for (let i = 0; i < values.length; i += Math.ceil(values.length / CHECKED)) {
        const at = async (shift: number) => {
          const moved = rows[r][part]!.slice()
          moved[i] += shift
          return { loss: (await loss(rows.with(r, { ...rows[r], [part]: moved }))).loss, value: moved[i] }
        }
        const [above, below] = [await at(STEP), await at(-STEP)]
        const difference = (above.loss - below.loss) / (above.value - below.value)
        if (Math.abs(difference - values[i]) <= 1e-2 * largest + 1e-6) continue
        throw new NumericError({
          where: `row ${r}, token ${i}`,
          what: `the loss's derivative by ${part} is wrong`,
          expected: `${difference} by central differences`,
          got: `${values[i]}`,
          hint: 'A loss that takes parts of itself for constants, such as a clipped ratio, differs on purpose: leave out `check`',
        })
      }
    }
  }
}
