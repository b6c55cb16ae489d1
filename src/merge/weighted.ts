// The adapters of a merge, each with a weight, and the rules for weights.

import type { Directory } from '../base/bytes.js'
import { ConfigError, UnsupportedError } from '../base/errors.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { PartView } from '../lora/part.js'

/** An adapter in memory, or the folder of one. */
export type MergeAdapter = LoraAdapter | Directory

/** How much of an adapter is merged: W + weight · s·B·A. */
export interface WeightedAdapter {
  adapter: MergeAdapter
  /** Default 1. */
  weight?: number
}

/** An adapter to merge, with weight 1 unless it names another. */
export type AdapterInput = MergeAdapter | WeightedAdapter

/**
 * An input with its weight.
 *
 * @param index of the adapter, for messages
 * @throws ConfigError when the weight is 0 or not finite
 */
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

/**
 * Throws UnsupportedError for a weight other than 1 on what is no sum: only sums can be weighted, and unmerged without
 * the base.
 */
export function refuseWeighted(parts: readonly Pick<PartView, 'name' | 'kind'>[], weight: number): void {
  if (weight === 1) return
  const part = parts.find(({ kind }) => kind === 'replacement' || kind === 'token-rows')
  if (part !== undefined) throw weightedError(part.name, 'what replaces the base’s values', weight)
}

/** Throws UnsupportedError for a DoRA layer with another weight than 1, or, where it can be unmerged, than ±1. */
export function requireWeightOne(layer: string, weight: number, canUnmerge = false): void {
  if (weight !== 1 && !(canUnmerge && weight === -1)) throw weightedError(layer, 'a DoRA layer', weight)
}

function weightedError(where: string, what: string, weight: number): UnsupportedError {
  return new UnsupportedError({
    where,
    what: `${what} cannot be merged with a weight, or unmerged`,
    expected: 'weight 1',
    got: String(weight),
  })
}
