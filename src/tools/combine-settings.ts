// The ways to combine adapters, and the settings that each of them takes.

import { ConfigError } from '../base/errors.js'
import type { ToolRun } from '../base/progress.js'
import { type RankChoice, requireOneRule } from './rank.js'
import type { SparseSum } from './sparse.js'

/**
 * - `exact`: Σ weight·ΔW, or the closest change of the given rank
 * - `svd`: the same, at the largest rank of the adapters unless another is given
 * - `cat`: Σ weight·ΔW, with the factors side by side
 * - `linear`: sums of the factors A and B themselves, which adds products of one adapter's B and another's A
 * - `ties`: TIES (Yadav et al. 2023, arXiv 2306.01708) of the factors
 * - `dare_linear`, `dare_ties`: `linear` and `ties` of random values of the factors (DARE, Yu et al. 2024, arXiv
 *   2311.03099)
 * - `magnitude_prune`: `linear` of the largest values of the factors
 * - `ties_svd`, `dare_linear_svd`, `dare_ties_svd`, `magnitude_prune_svd`: the same for the ΔW instead of the factors,
 * and
 *   then the closest change of the rank
 */
export const COMBINATION_TYPES = [
  'exact',
  'svd',
  'cat',
  'linear',
  'ties',
  'ties_svd',
  'dare_linear',
  'dare_linear_svd',
  'dare_ties',
  'dare_ties_svd',
  'magnitude_prune',
  'magnitude_prune_svd',
] as const

/** One of {@link COMBINATION_TYPES}. */
export type CombinationType = (typeof COMBINATION_TYPES)[number]

/** How {@link combineAdapters} combines. */
export interface CombineSettings extends RankChoice, ToolRun {
  /**
   * `exact`: the weighted sum. `svd`: the sum, at the largest rank of the adapters. `cat`: the sum, with the factors
   * beside each other. The others are those of PEFT's add_weighted_adapter. Default `exact`; with `peftCompatible`,
   * `svd` as in PEFT.
   */
  combinationType?: CombinationType | undefined
  /**
   * For `ties`, `dare` and `magnitude_prune`: the share of each adapter's values that is kept.
   * @range a number in (0, 1]
   */
  density?: number | undefined
  /**
   * For `ties` and `dare_ties`: how the sign of a value is chosen. `total`: the sign of the sum. `frequency`: the sign
   * that most adapters have. Default `total`.
   */
  majoritySignMethod?: 'total' | 'frequency' | undefined
  /**
   * For `dare`: which values are kept. The same seed and adapters give the same result.
   * @range a safe integer
   * @default 0
   */
  seed?: number | undefined
  /**
   * Gives exactly the result of PEFT's add_weighted_adapter, even if it is wrong: with rsLoRA its results are √r times
   * too large. Only the random values of `dare` differ. Default false.
   */
  peftCompatible?: boolean | undefined
}

export const FULL_RANK_TYPES = COMBINATION_TYPES.filter((type) => type === 'exact' || type.endsWith('svd'))

export interface CombineWay {
  readonly type: CombinationType
  /** How factors or changes are added, for the types that drop values first. */
  readonly sum: SparseSum
  readonly seed: number
  readonly choice: RankChoice
  readonly isPeft: boolean
}

export function combineWay({
  combinationType,
  density,
  majoritySignMethod,
  seed,
  peftCompatible = false,
  ...others
}: CombineSettings): CombineWay {
  const type = combinationType ?? (peftCompatible ? 'svd' : 'exact')
  const { rank, energy, error, ratio } = others
  if (peftCompatible && type === 'exact') {
    throw new ConfigError({
      where: 'combinationType',
      what: 'PEFT has no method exact',
      expected: COMBINATION_TYPES.filter((type) => type !== 'exact').join(', '),
    })
  }
  const isTies = type.includes('ties')
  const isRandom = type.startsWith('dare')
  const isSparse = isTies || isRandom || type.startsWith('magnitude_prune')
  if (isSparse && density === undefined) {
    throw new ConfigError({ where: 'density', what: `missing: ${type} needs it`, expected: 'a number in (0, 1]' })
  }
  const users = { density: isSparse, majoritySignMethod: isTies, seed: isRandom }
  const unused = Object.entries({ density, majoritySignMethod, seed }).find(([name, value]) => {
    return value !== undefined && !users[name as keyof typeof users]
  })
  if (unused !== undefined) {
    const kinds = { density: 'ties, dare or magnitude_prune', majoritySignMethod: 'ties or dare_ties', seed: 'dare' }
    const expected = `a type of ${kinds[unused[0] as keyof typeof kinds]}`
    throw new ConfigError({ where: unused[0], what: `${type} does not use it`, expected })
  }
  const rule = Object.entries({ rank, energy, error, ratio }).find(([, value]) => value !== undefined)
  const keepsRank = !FULL_RANK_TYPES.includes(type)
  if (keepsRank && rule !== undefined) {
    throw new ConfigError({
      where: rule[0],
      what: `${type} has no choice of a rank`,
      expected: FULL_RANK_TYPES.filter((type) => !peftCompatible || type !== 'exact').join(', '),
    })
  }
  requireOneRule(others)
  return {
    type,
    sum: {
      keep: isRandom ? 'random' : isSparse ? 'largest' : 'all',
      density: density ?? 1,
      sign: isTies ? (majoritySignMethod ?? 'total') : undefined,
    },
    seed: seed ?? 0,
    choice: { rank, energy, error, ratio },
    isPeft: peftCompatible,
  }
}
