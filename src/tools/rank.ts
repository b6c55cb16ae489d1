// Chooses ranks. By Eckart and Young (1936), the first r singular values and vectors give the closest change of rank r.

import { ConfigError } from '../base/errors.js'
import type { Svd } from '../linalg/svd.js'

/**
 * The rank of each layer. If `rank` and another rule are given, the smaller rank counts. Each layer keeps at least
 * rank 1.
 */
export interface RankChoice {
  /**
   * Rank of the result; with `energy`, `error` or `ratio`: the highest rank that a layer can get. No layer gets a
   * higher rank than the rank of its s·B·A.
   * @range an integer of at least 1
   */
  rank?: number | undefined
  /**
   * Takes the lowest rank that keeps this share of each layer's energy Σσ², the sum of its squared singular values.
   * @range a number in (0, 1]
   */
  energy?: number | undefined
  /**
   * Takes the lowest rank that loses at most this share of each layer's change, ‖ΔW − ΔW'‖/‖ΔW‖ (Frobenius).
   * @range a number in [0, 1)
   */
  error?: number | undefined
  /**
   * Keeps the singular values that are at least this share of the largest one.
   * @range a number in (0, 1]
   */
  ratio?: number | undefined
}

/** Singular values below this share of the first are rounding errors of f32 factors. */
const ROUNDING = 1e-9

export function checkRankChoice(choice: RankChoice): void {
  const rule = requireOneRule(choice)
  if (rule !== undefined || choice.rank !== undefined) return
  throw new ConfigError({ where: 'rank', what: 'missing', expected: 'at least one of rank, energy, error and ratio' })
}

/** Returns the rule that is given besides `rank`, and throws if there is more than one. */
export function requireOneRule(choice: RankChoice): string | undefined {
  const [first, second] = (['energy', 'error', 'ratio'] as const).filter((name) => choice[name] !== undefined)
  if (second === undefined) return first
  throw new ConfigError({ where: second, what: `not together with ${first}`, expected: 'only one of them' })
}

export function chosenRank(s: ArrayLike<number>, choice: RankChoice, total = energyOf(s, 0)): number {
  const { rank = s.length, ratio } = choice
  const most = Math.max(1, Math.min(rank, s.length))
  const significant = countWhile(s, (value) => value > ROUNDING * s[0])
  const share = energyShare(choice)
  const wanted = () => {
    if (share !== undefined) return Math.min(rankOfEnergy(s, share, total), significant)
    return ratio === undefined ? significant : countWhile(s, (value) => value > 0 && value >= ratio * s[0])
  }
  return Math.max(1, Math.min(wanted(), most))
}

export function energyShare({ energy, error }: RankChoice): number | undefined {
  return energy ?? (error === undefined ? undefined : 1 - error ** 2)
}

function countWhile(s: ArrayLike<number>, accepts: (value: number) => boolean): number {
  let count = 0
  while (count < s.length && accepts(s[count])) count++
  return count
}

function rankOfEnergy(s: ArrayLike<number>, share: number, total: number): number {
  if (total === 0) return 0
  // The lost energy is summed from the smallest value, because a sum from the largest would round it away.
  let rest = Math.max(0, total - energyOf(s, 0))
  let count = s.length
  while (count > 0 && rest + s[count - 1] ** 2 <= (1 - share) * total) {
    rest += s[count - 1] ** 2
    count--
  }
  return count
}

export function energyOf(s: ArrayLike<number>, first: number): number {
  let sum = 0
  for (let i = s.length - 1; i >= first; i--) sum += s[i] ** 2
  return sum
}

export interface Decomposable {
  readonly shape: readonly [number, number]
  /** The sum of the squares of all elements. */
  readonly energy: number
  /** Computes the first `rank` singular values and vectors; `rank` is at most the smaller side. */
  decompose(rank: number): Svd | Promise<Svd>
}

/** The leading part of an SVD, and facts about the whole matrix. */
export interface LeadingSvd {
  readonly svd: Svd
  /** The rank by the rule. `svd` may hold more. */
  readonly rank: number
  /** ‖matrix‖, the Frobenius norm. */
  readonly norm: number
  /** The share that the first `rank` parts leave out: ‖matrix − parts‖ / ‖matrix‖. */
  readonly error: number
}

/** The first rank to try if a rule other than `rank` decides. */
const FIRST_RANK = 32

/** Finds the leading singular values and vectors of a full matrix. The rank is doubled until the rule is satisfied. */
export async function leadingSvd({ shape, energy, decompose }: Decomposable, choice: RankChoice): Promise<LeadingSvd> {
  const side = Math.min(...shape)
  const most = Math.min(choice.rank ?? side, side)
  const share = energyShare(choice)
  let count = share === undefined && choice.ratio === undefined ? most : Math.min(FIRST_RANK, most)
  for (; ; count = Math.min(2 * count, most)) {
    const svd = await decompose(count)
    const { s } = svd
    const isEnough =
      count === most ||
      (share === undefined ? s[count - 1] < (choice.ratio ?? 0) * s[0] : energyOf(s, 0) >= share * energy)
    if (!isEnough) continue
    const rank = chosenRank(s, choice, energy)
    const lost = Math.max(0, energy - energyOf(s.subarray(0, rank), 0))
    return { svd, rank, norm: Math.sqrt(energy), error: energy === 0 ? 0 : Math.sqrt(lost / energy) }
  }
}
