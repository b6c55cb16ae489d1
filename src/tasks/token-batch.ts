// What tasks over texts share: examples of different lengths side by side, filled up on the right, and the two small runs by
// which shapes are measured.

import type { RunLength } from '../graph/shapes/plain-shapes.js'
import type { Length } from '../graph/training/objective-graph.js'
import type { Feeds } from '../runtime/runtime.js'

/** (rows, length) of values that are shorter. */
export function padded(lists: readonly ArrayLike<number>[], length: number, fill: number): Int32Array {
  const result = new Int32Array(lists.length * length).fill(fill)
  lists.forEach((list, row) => void result.set(list, row * length))
  return result
}

/** 1 for tokens, 0 for what fills up. */
export function attentionMask(lists: readonly ArrayLike<number>[], length: number): Int32Array {
  const result = new Int32Array(lists.length * length)
  lists.forEach((list, row) => void result.fill(1, row * length, row * length + list.length))
  return result
}

/** Lengths are rounded up to this, so that the runtime's memory pool sees few sizes. */
const LENGTH_MULTIPLE = 8

/** What a batch is filled up to whose longest example has so many tokens. */
export function roundUp(length: number): number {
  return Math.ceil(length / LENGTH_MULTIPLE) * LENGTH_MULTIPLE
}

/** Sequences, and tokens of each, where shapes are measured: no length comes about in two ways at both points. */
export const PROBE_BATCHES = [
  { batch: 2, sequence: 3 },
  { batch: 5, sequence: 7 },
] as const

/** The input whose axes tell how many tokens there are. */
const IDS = 'input_ids'

/** The lengths of a run over tokens. */
export function tokenLengths(): Length[] {
  const source = (axis: number): RunLength => ({ input: IDS, axis })
  const axis = (number: number) => (feeds: Feeds) => feeds[IDS].dims[number]
  return [
    { name: 'batch', probed: [2, 5], of: axis(0), source: source(0) },
    { name: 'sequence', probed: [3, 7], of: axis(1), source: source(1) },
    { name: 'rows', probed: [6, 35], of: (feeds) => axis(0)(feeds) * axis(1)(feeds) },
  ]
}

/** A length that an objective's own input tells. */
export function ownLength(name: string, probed: readonly [number, number], source: RunLength): Length {
  return { name, probed, of: (feeds) => feeds[source.input].dims[source.axis], source }
}
