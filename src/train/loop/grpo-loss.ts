// GRPO (Shao et al. 2024, arXiv 2402.03300) as TRL 1.16 computes it: advantages of rewards within their groups, and the
// loss types, which differ in what the tokens' losses are divided by.

import { klTerm, type LossFunction, policyTerm, sumOf } from './losses.js'

export const REWARD_SCALES = ['group', 'batch', 'none'] as const

/** Settings of `train` with the task `grpo`, with the names and defaults of TRL's GRPOConfig. */
export interface GrpoOptions {
  /**
   * Texts for each prompt: a group.
   * @range an integer of at least 2
   * @default 8
   */
  readonly numGenerations?: number | undefined
  /**
   * How strongly the model is held near its state before training.
   * @range a finite number of at least 0
   * @default 0
   */
  readonly beta?: number | undefined
  /**
   * Ratios of probabilities are clipped to 1 − epsilon and 1 + epsilonHigh.
   * @range a number in [0, 1]
   * @default 0.2
   */
  readonly epsilon?: number | undefined
  /**
   * Default: as epsilon. For `cispo`, the largest ratio itself.
   * @range a finite number of at least 0
   */
  readonly epsilonHigh?: number | undefined
  /**
   * What the loss of a token is divided by: the length of its text (`grpo`), the number of all tokens (`bnpo`, `dapo`,
   * `cispo`), or `maxCompletionLength` (`dr_grpo`). `cispo` clips the ratio and treats it as a constant.
   * @default dapo
   */
  readonly lossType?: 'grpo' | 'bnpo' | 'dr_grpo' | 'dapo' | 'cispo' | undefined
  /**
   * What a reward's distance from the mean of its group is divided by: the standard deviation of the group or of the
   * batch, or nothing.
   * @default group
   */
  readonly scaleRewards?: (typeof REWARD_SCALES)[number] | undefined
  /**
   * Steps of the optimizer with the same texts.
   * @range an integer of at least 1
   * @default 1
   */
  readonly numIterations?: number | undefined
  /** Texts that are cut at `maxCompletionLength` have no loss. Default false. */
  readonly maskTruncatedCompletions?: boolean | undefined
  /**
   * Most tokens of a text.
   * @range an integer of at least 1
   * @default 512
   */
  readonly maxCompletionLength?: number | undefined
  /**
   * Temperature of sampling, and of the log-probabilities that are trained.
   * @range a finite number above 0
   * @default 1
   */
  readonly temperature?: number | undefined
  /**
   * Samples from the fewest likely tokens whose probabilities sum to this.
   * @range a number in (0, 1]
   * @default 1
   */
  readonly topP?: number | undefined
  /** Factors of the rewards, by the names of their functions. Default: 1 for each. */
  readonly rewardWeights?: Readonly<Record<string, number>> | undefined
  /**
   * The seconds that a reward may take. A promise is given up after them; a function that never returns cannot be.
   * @range a finite number above 0
   * @default 60
   */
  readonly rewardSeconds?: number | undefined
}

/** TRL adds this to a standard deviation before it divides by it. */
const LEAST_DEVIATION = 1e-4

/** `groups` has the rewards of each prompt's texts, with NaN for a text that no function has judged. */
export function advantagesOf(
  groups: readonly (readonly number[])[],
  scale: NonNullable<GrpoOptions['scaleRewards']>,
): number[][] {
  const all = deviationOf(groups.flat())
  return groups.map((rewards) => {
    const mean = meanOf(rewards)
    const deviation = scale === 'none' ? 1 : (scale === 'batch' ? all : deviationOf(rewards)) + LEAST_DEVIATION
    return rewards.map((reward) => (Number.isNaN(reward) ? 0 : (reward - mean) / deviation))
  })
}

export function meanOf(values: readonly number[]): number {
  const known = values.filter((value) => !Number.isNaN(value))
  return known.reduce((sum, value) => sum + value, 0) / known.length
}

/** The standard deviation of a sample, with n − 1 in the divisor. Returns 0 for a single value. */
export function deviationOf(values: readonly number[]): number {
  const known = values.filter((value) => !Number.isNaN(value))
  if (known.length < 2) return 0
  const mean = meanOf(known)
  return Math.sqrt(known.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (known.length - 1))
}

/** The loss of texts. Each row needs `advantages`, `oldLogprobs`, and `reference` if beta is not 0. */
export function grpoLoss(options: GrpoOptions): LossFunction {
  const { beta = 0, epsilon = 0.2, epsilonHigh = epsilon, lossType = 'dapo', maxCompletionLength = 512 } = options
  const clip = { epsilon, epsilonHigh, isCispo: lossType === 'cispo' }
  return (rows) => {
    const tokens = Math.max(
      1,
      rows.reduce((sum, { logprobs }) => sum + logprobs.length, 0),
    )
    const divisors = {
      grpo: (length: number) => rows.length * length,
      bnpo: () => tokens,
      dr_grpo: () => rows.length * maxCompletionLength,
      dapo: () => tokens,
      cispo: () => tokens,
    }
    let [kl, clipped] = [0, 0]
    const result = sumOf(rows, ({ logprobs, oldLogprobs, advantages, reference }, i) => {
      const [logprob, old, advantage] = [logprobs[i], oldLogprobs![i], advantages![i]]
      const divisor = divisors[lossType](logprobs.length)
      const [policy, slope] = policyTerm(clip, logprob, old, advantage)
      const ratio = Math.exp(logprob - old)
      const isOutside = clip.isCispo
        ? ratio > epsilonHigh && advantage > 0
        : (ratio < 1 - epsilon && advantage < 0) || (ratio > 1 + epsilonHigh && advantage > 0)
      if (isOutside) clipped++
      if (beta === 0) return [policy / divisor, slope / divisor]
      // Weighted by the ratio, because an earlier state of the model sampled the texts (TRL's use_bias_correction_kl).
      const [distance, change] = klTerm(logprob, reference![i])
      kl += distance * ratio
      return [(policy + beta * distance * ratio) / divisor, (slope + beta * ratio * (change + distance)) / divisor]
    })
    return { ...result, metrics: { clipped: clipped / tokens, ...(beta !== 0 && { kl: kl / tokens }) } }
  }
}
