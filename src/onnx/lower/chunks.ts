// Some graphs read tokens in chunks: graphs with linear attention that was lowered for training, and PyTorch's exports.

import type { Graph } from '../view/graph.js'

/** The number of tokens of a chunk. */
export const CHUNK = 64

const CHUNKED = ['LinearAttention', 'GatedDeltaNet']

/**
 * Returns the number of tokens in a chunk, or undefined if the graph has no chunks. Exported graphs compute T modulo
 * this number to pad the last chunk, so it is read from there.
 */
export function chunkOf(graph: Graph): number | undefined {
  if (graph.nodes.some(({ opType }) => CHUNKED.includes(opType))) return CHUNK
  const remainders = graph.nodes.filter(({ opType }) => opType === 'Mod')
  const sizes = remainders.flatMap(({ input }) => graph.integers(input[1])?.[0] ?? []).filter((size) => size > 1)
  return sizes.length === 0 ? undefined : Math.max(...sizes)
}
