// How adapters are combined: the ways, and which settings go with which.

import { ConfigError } from '../base/errors.js'
import type { ToolRun } from '../base/progress.js'
import type { RankChoice } from './rank.js'

/**
 * - `exact`: Σ weight·ΔW, or the closest change of the rank that is asked for
 * - `svd`: the same, at the largest rank of the adapters unless another is given
 * - `cat`: Σ weight·ΔW, with the factors beside each other
 * - `linear`: sums of the factors A and B themselves, which adds products of one adapter's B and another's A
 * - `ties`: TIES (Yadav et al. 2023, arXiv 2306.01708) of the factors
 * - `ties_svd`: TIES of the ΔW, then the closest change of the rank
 */
export type CombinationType = 'exact' | 'svd' | 'cat' | 'linear' | 'ties' | 'ties_svd'

export const COMBINATION_TYPES = [
  'exact',
  'svd',
  'cat',
  'linear',
  'ties',
  'ties_svd',
] as const satisfies CombinationType[]

/** How {@link combineAdapters} combines. */
export interface CombineSettings extends RankChoice, ToolRun {
  /** PEFT's name of the way, or `exact`. Default `exact`; with `peftCompatible`, `svd` as in PEFT. */
  combinationType?: CombinationType | undefined
  /** Of `ties` and `ties_svd`: the share of each adapter's largest values that is kept, in (0, 1]. */
  density?: number | undefined
  /**
   * For `ties` and `ties_svd`: how the sign of a value is chosen. `total`: the sign of the sum. `frequency`: the sign that most
   * adapters have. Default `total`.
   */
  majoritySignMethod?: 'total' | 'frequency' | undefined
  /**
   * Gives exactly the result of PEFT's add_weighted_adapter, even if it is wrong: with rsLoRA its results are √r times too large.
   * Default false.
   */
  peftCompatible?: boolean | undefined
}

/** Combination types that take changes of any rank, as those of DoRA layers are. */
export const FULL_RANK_TYPES: readonly CombinationType[] = ['exact', 'svd', 'ties_svd']

/** A way to combine, complete. */
export interface CombineWay {
  readonly type: CombinationType
  readonly density: number
  readonly sign: 'total' | 'frequency'
  readonly choice: RankChoice
  readonly isPeft: boolean
}

/** @throws ConfigError naming a setting that the combination does not use, or lacks */
export function combineWay({
  combinationType,
  density,
  majoritySignMethod,
  peftCompatible = false,
  ...others
}: CombineSettings): CombineWay {
  const type = combinationType ?? (peftCompatible ? 'svd' : 'exact')
  const { rank, energy, error, ratio } = others
  if (peftCompatible && type === 'exact') {
    throw new ConfigError({
      where: 'combinationType',
      what: 'PEFT has no method exact',
      expected: 'linear, cat, svd, ties or ties_svd',
    })
  }
  const isTies = type === 'ties' || type === 'ties_svd'
  if (isTies && density === undefined) {
    throw new ConfigError({ where: 'density', what: `missing: ${type} needs it`, expected: 'a number in (0, 1]' })
  }
  const unused = Object.entries({ density, majoritySignMethod }).find(([, value]) => !isTies && value !== undefined)
  if (unused !== undefined) {
    throw new ConfigError({ where: unused[0], what: `${type} does not use it`, expected: 'ties or ties_svd' })
  }
  const rule = Object.entries({ rank, energy, error, ratio }).find(([, value]) => value !== undefined)
  const keepsRank = type === 'cat' || type === 'linear' || type === 'ties'
  if (keepsRank && rule !== undefined) {
    throw new ConfigError({
      where: rule[0],
      what: `${type} has no choice of a rank`,
      expected: peftCompatible ? 'svd or ties_svd' : 'exact, svd or ties_svd',
    })
  }
  const share = (['energy', 'error', 'ratio'] as const).filter((name) => others[name] !== undefined)
  if (share.length > 1) {
    throw new ConfigError({ where: share[1], what: `not together with ${share[0]}`, expected: 'only one of them' })
  }
  return {
    type,
    density: density ?? 1,
    sign: majoritySignMethod ?? 'total',
    choice: { rank, energy, error, ratio },
    isPeft: peftCompatible,
  }
}
