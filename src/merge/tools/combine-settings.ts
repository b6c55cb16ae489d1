// The ways to combine adapters, and the settings that each of them takes.

import { ConfigError } from '../../core/base/errors.js'
import type { ToolRun } from '../../core/base/progress.js'
import type { RankChoice } from './rank.js'

/**
 * - `exact`: Σ weight·ΔW, or the closest change of the given rank
 * - `linear`: sums of the factors A and B themselves, which adds products of one adapter's B and another's A
 */
const COMBINATION_TYPES = ['exact', 'linear'] as const

/** A way to combine adapters: one of {@link COMBINATION_TYPES}. */
export type CombinationType = (typeof COMBINATION_TYPES)[number]

/** How {@link combineAdapters} combines. */
export interface CombineSettings extends RankChoice, ToolRun {
  /**
   * `exact`: the weighted sum of the changes. `linear` adds the factors A and B themselves, as in PEFT's
   * add_weighted_adapter.
   * @default exact
   */
  combinationType?: CombinationType | undefined
}

export interface CombineWay {
  readonly type: CombinationType
  readonly choice: RankChoice
}

export function combineWay({
  combinationType: type = 'exact',
  ...choice
}: Omit<CombineSettings, keyof ToolRun>): CombineWay {
  const rule = Object.entries(choice).find(([, value]) => value !== undefined)
  if (type !== 'exact' && rule !== undefined) {
    throw new ConfigError({ where: rule[0], what: `${type} has no choice of a rank`, expected: 'exact' })
  }
  return { type, choice }
}
