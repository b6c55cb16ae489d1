// Tensors that a merge found under other names than the adapters', by patterns: a model has thousands of tensors, but
// few kinds of them.

import type { CheckpointNames } from './choose.js'

/** Tensors that the adapters and the base call differently. */
export interface Renamed {
  /** The adapters' name, with # for numbers. */
  readonly from: string
  /** The base's; several where it has the tensor in parts, with * for the number of an expert. */
  readonly to: readonly string[]
  readonly count: number
}

/** @param tensors as the adapters name them */
export function renamedTensors(tensors: Iterable<string>, names: CheckpointNames): Renamed[] {
  const found = new Map<string, Renamed>()
  for (const tensor of new Set(tensors)) {
    const stored = names.form(tensor)?.tensors
    if (stored === undefined || (stored.length === 1 && stored[0] === tensor)) continue
    const [from, to] = [pattern(tensor), stored.map(pattern)]
    const key = [from, ...to].join('\n')
    found.set(key, { from, to, count: (found.get(key)?.count ?? 0) + 1 })
  }
  return [...found.values()]
}

function pattern(name: string): string {
  return name.replaceAll(/(?<![^.])\d+(?![^.])/g, '#')
}
