// The two small runs with which shapes are measured, and the lengths that differ between them.

import { chunkOf } from '../../onnx/lower/chunks.js'
import type { Feeds } from '../../onnx/runtime/runtime.js'
import type { RunLength } from '../../onnx/shapes/plain-shapes.js'
import type { Graph } from '../../onnx/view/graph.js'
import type { Length } from '../graph/objective-graph.js'

/** Returns the rows of the predictions, which are the only output with two axes. */
export function predictedRows(outputs: Readonly<Feeds>): Float32Array[] {
  const { data, dims } = Object.values(outputs).find((output) => output.dims.length === 2)!
  const [rows, width] = dims
  return Array.from({ length: rows }, (_, row) => (data as Float32Array).slice(row * width, (row + 1) * width))
}

/**
 * The two runs that show how the shapes of a graph depend on batch and sequence. The numbers are chosen so that no
 * length can arise in two ways in both runs.
 */
export const PROBE_BATCHES = [
  { batch: 2, sequence: 3 },
  { batch: 5, sequence: 7 },
] as const

const IDS = 'input_ids'

export function tokenLengths(sequences: readonly [number, number] = [3, 7]): Length[] {
  const [batch, sequence] = [batchLength(IDS), ownLength('sequence', sequences, { input: IDS, axis: 1 })]
  return [batch, sequence, productLength('rows', batch, sequence)]
}

export interface TokenProbe {
  readonly batches: readonly [ProbeBatch, ProbeBatch]
  readonly lengths: readonly Length[]
}

interface ProbeBatch {
  readonly batch: number
  readonly sequence: number
}

/** Returns {@link PROBE_BATCHES}; for a graph that reads tokens in chunks, runs of one and of two chunks. */
export function tokenProbe(graph: Graph): TokenProbe {
  const chunk = chunkOf(graph)
  if (chunk === undefined) return { batches: PROBE_BATCHES, lengths: tokenLengths() }
  const [first, second] = PROBE_BATCHES
  const sequence = second.sequence + chunk - 1
  const of = (feeds: Feeds) => Math.ceil(feeds[IDS].dims[1] / chunk)
  const chunks: Length = { name: 'chunks', probed: [1, 2], of, tokens: chunk }
  return { batches: [first, { ...second, sequence }], lengths: [...tokenLengths([first.sequence, sequence]), chunks] }
}

export function batchLength(input: string): Length {
  return ownLength('batch', [PROBE_BATCHES[0].batch, PROBE_BATCHES[1].batch], { input, axis: 0 })
}

export function ownLength(name: string, probed: readonly [number, number], source: RunLength): Length {
  return { name, probed, of: (feeds) => feeds[source.input].dims[source.axis], source }
}

export function productLength(name: string, first: Length, second: Length): Length {
  const [a, b] = second.probed
  return { name, probed: [first.probed[0] * a, first.probed[1] * b], of: (feeds) => first.of(feeds) * second.of(feeds) }
}
