// The adapters of a merge with their weights, and the rules for weights.

import type { Directory } from '../core/base/bytes.js'
import { ConfigError, UnsupportedError } from '../core/base/errors.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { PartView } from '../lora/part.js'

export type MergeAdapter = LoraAdapter | Directory

export interface WeightedAdapter {
  adapter: MergeAdapter
  weight?: number
}

export type AdapterInput = MergeAdapter | WeightedAdapter

/** Returns an adapter with its weight, by default 1. Throws ConfigError if the weight is 0 or not finite. */
export function weighted(input: AdapterInput, index: number): Required<WeightedAdapter> {
  const { adapter, weight = 1 } = 'adapter' in input ? input : { adapter: input }
  if (Number.isFinite(weight) && weight !== 0) return { adapter, weight }
  throw new ConfigError({
    where: `weight of adapter ${index + 1}`,
    what: 'not valid',
    expected: 'a finite number other than 0',
    got: String(weight),
  })
}

/** Refuses a weight, or unmerging, if parts are not sums: only a sum can be weighted, or undone without the base. */
export function refuseWeighted(parts: readonly Pick<PartView, 'name' | 'tensors'>[], weight: number): void {
  if (weight === 1) return
  for (const { name, tensors } of parts) {
    const isReplacement = 'weight' in tensors
    if (!isReplacement && tensors.magnitude === undefined) continue
    const what = `${isReplacement ? 'what replaces the base’s values' : 'a DoRA layer'} cannot be merged with a weight, or unmerged`
    throw new UnsupportedError({ where: name, what, expected: 'weight 1', got: String(weight) })
  }
}
