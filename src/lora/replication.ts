// PEFT's layer_replication (tuners_utils.replicate_layers): the adapted model's layers are ranges of the base's layers.
// An adapter names layers of that model, so several of its layers can share a weight of the base.

import { MismatchError } from '../base/errors.js'

/** Ranges [start, end) of the base's layers. */
export type LayerRanges = readonly (readonly [start: number, end: number])[]

/** More layers than any model has. Larger numbers would only cost memory. */
export const MAX_REPLICATED_LAYERS = 65536

/** The names under which PEFT looks for layers: those of Llama and similar models, of BERT and of Falcon. */
const LAYER = /^((?:model\.)*layers|(?:model\.)*(?:bert\.)?encoder\.layer|(?:model\.)*h)\.(\d+)(?=\.|$)/

export function isLayerRanges(value: unknown): value is LayerRanges {
  if (!Array.isArray(value) || value.length === 0) return false
  let count = 0
  for (const range of value) {
    if (!Array.isArray(range) || range.length !== 2) return false
    const [start, end] = range
    if (!Number.isSafeInteger(start) || !Number.isSafeInteger(end) || start < 0 || end <= start) return false
    count += end - start
    if (count > MAX_REPLICATED_LAYERS) return false
  }
  return true
}

/**
 * Returns the base's name of a module. A module outside of the layers keeps its name. Throws MismatchError for a layer
 * that the ranges do not contain.
 */
export function baseModuleName(name: string, ranges: LayerRanges | undefined, where = name): string {
  const match = ranges === undefined ? null : LAYER.exec(name)
  if (ranges === undefined || match === null) return name
  const [prefix, layers, index] = match
  let before = 0
  for (const [start, end] of ranges) {
    const at = Number(index) - before
    if (at < end - start) return `${layers}.${start + at}${name.slice(prefix.length)}`
    before += end - start
  }
  throw new MismatchError({
    where,
    what: 'layer_replication makes no such layer',
    expected: `below ${before}`,
    got: index,
  })
}
