// Ranks: by Eckart and Young (1936) the first r singular values and vectors give the closest change of rank r.

import { ConfigError } from '../base/errors.js'
import type { Svd } from '../linalg/svd.js'

/**
 * Which rank each layer gets. With `rank` and another rule, the rank is the smaller one. Each layer keeps rank 1 at
 * least.
 */
export interface RankChoice {
  /**
   * Rank of the result; with `energy`, `error` or `ratio`: the highest rank that a layer can get. No layer gets a
   * higher rank than the rank of its s·B·A.
   * @range an integer of at least 1
   */
  rank?: number | undefined
  /**
   * Keeps this share of the energy Σσ², the sum of the squared singular values, of each layer, at the lowest rank that
   * does.
   * @range a number in (0, 1]
   */
  energy?: number | undefined
  /**
   * Loses at most this share of the change of each layer, ‖ΔW − ΔW'‖/‖ΔW‖ (Frobenius), at the lowest rank that does.
   * @range a number in [0, 1)
   */
  error?: number | undefined
  /**
   * Keeps the singular values that are at least this share of the largest one.
   * @range a number in (0, 1]
   */
  ratio?: number | undefined
}

/** Singular values below this share of the first are rounding of f32 factors, and carry nothing. */
const ROUNDING = 1e-9

export function checkRankChoice(choice: RankChoice): void {
  const rule = requireOneRule(choice)
  if (rule !== undefined || choice.rank !== undefined) return
  throw new ConfigError({ where: 'rank', what: 'missing', expected: 'at least one of rank, energy, error and ratio' })
}

/** Gives the rule beside the rank, of which there may be one. */
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
  // The rest is added from its small end: near a share of 1 the sum from the large end would hide it.
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
  /** Σ of all squares. */
  readonly energy: number
  /** The first `rank` singular values and vectors; `rank` is at most the smaller side. */
  decompose(rank: number): Svd | Promise<Svd>
}

/** A part of an SVD, and what the whole has. */
export interface LeadingSvd {
  readonly svd: Svd
  /** As the rule says; `svd` can hold more. */
  readonly rank: number
  /** ‖matrix‖, Frobenius. */
  readonly norm: number
  /** The share of the matrix that its first `rank` parts leave out: ‖matrix − parts‖ / ‖matrix‖. */
  readonly error: number
}

/** The first search, where a rule other than a rank decides. */
const FIRST_RANK = 32

/** The leading singular values and vectors of a full matrix: the search doubles until a rule has enough. */
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
