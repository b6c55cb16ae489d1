// The ways to combine adapters, and the settings that each of them takes.

import { ConfigError } from '../base/errors.js'
import type { ToolRun } from '../base/progress.js'
import type { RankChoice } from './rank.js'
import type { SparseSum } from './sparse.js'

/**
 * - `exact`: Σ weight·ΔW, or the closest change of the given rank
 * - `linear`: sums of the factors A and B themselves, which adds products of one adapter's B and another's A
 * - `ties`: TIES (Yadav et al. 2023, arXiv 2306.01708) of the factors
 * - `dare_linear`, `dare_ties`: `linear` and `ties` of random values of the factors (DARE, Yu et al. 2024, arXiv
 *   2311.03099)
 */
const COMBINATION_TYPES = ['exact', 'linear', 'ties', 'dare_linear', 'dare_ties'] as const

/** A way to combine adapters: one of {@link COMBINATION_TYPES}. */
export type CombinationType = (typeof COMBINATION_TYPES)[number]

/** How {@link combineAdapters} combines. */
export interface CombineSettings extends RankChoice, ToolRun {
  /**
   * `exact`: the weighted sum of the changes. The others add the factors A and B themselves, as in PEFT's
   * add_weighted_adapter.
   * @default exact
   */
  combinationType?: CombinationType | undefined
  /**
   * For `ties` and `dare`: the share of each adapter's values that is kept.
   * @range a number in (0, 1]
   */
  density?: number | undefined
  /**
   * For `dare`: which values are kept. The same seed and adapters give the same result.
   * @range a safe integer
   * @default 0
   */
  seed?: number | undefined
}

export interface CombineWay {
  readonly type: CombinationType
  /** How factors are added, for the types that drop values first. */
  readonly sum: SparseSum
  readonly seed: number
  readonly choice: RankChoice
}

export function combineWay({
  combinationType: type = 'exact',
  density,
  seed,
  ...choice
}: Omit<CombineSettings, keyof ToolRun>): CombineWay {
  const isTies = type.endsWith('ties')
  const isRandom = type.startsWith('dare')
  if ((isTies || isRandom) && density === undefined) {
    throw new ConfigError({ where: 'density', what: `missing: ${type} needs it`, expected: 'a number in (0, 1]' })
  }
  const refuse = (where: string, expected: string) => {
    throw new ConfigError({ where, what: `${type} does not use it`, expected: `a type of ${expected}` })
  }
  if (density !== undefined && !isTies && !isRandom) refuse('density', 'ties or dare')
  if (seed !== undefined && !isRandom) refuse('seed', 'dare')
  const rule = Object.entries(choice).find(([, value]) => value !== undefined)
  if (type !== 'exact' && rule !== undefined) {
    throw new ConfigError({ where: rule[0], what: `${type} has no choice of a rank`, expected: 'exact' })
  }
  const keep = isRandom ? 'random' : isTies ? 'largest' : 'all'
  return { type, sum: { keep, density: density ?? 1, electsSigns: isTies }, seed: seed ?? 0, choice }
}
