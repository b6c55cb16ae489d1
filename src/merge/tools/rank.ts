// Chooses ranks. By Eckart and Young (1936), the first r singular values and vectors give the closest change of rank r.

import { ConfigError } from '../../core/base/errors.js'
import { rankOfEnergy } from '../../lora/spectrum.js'

/**
 * The rank of each layer. If both are given, the smaller rank counts. Each layer keeps at least
 * rank 1.
 */
export interface RankChoice {
  /**
   * Rank of the result; with `energy`: the highest rank that a layer can get. No layer gets a
   * higher rank than the rank of its s·B·A.
   * @range an integer of at least 1
   */
  rank?: number | undefined
  /**
   * Takes the lowest rank that keeps this share of each layer's energy Σσ², the sum of its squared singular values.
   * @range a number in (0, 1]
   */
  energy?: number | undefined
}

/** Singular values below this share of the first are rounding errors of f32 factors. */
const ROUNDING = 1e-9

export function checkRankChoice({ rank, energy }: RankChoice): void {
  if (rank !== undefined || energy !== undefined) return
  throw new ConfigError({ where: 'rank', what: 'missing', expected: 'rank, energy or both' })
}

export function chosenRank(s: ArrayLike<number>, choice: RankChoice, total: number): number {
  const { rank = s.length, energy } = choice
  let wanted = Math.min(rank, s.length)
  while (wanted > 1 && !(s[wanted - 1] > ROUNDING * s[0])) wanted--
  return Math.max(1, energy === undefined ? wanted : Math.min(rankOfEnergy(s, energy, total), wanted))
}
