// Some graphs read tokens in chunks: those with linear attention lowered for training, and PyTorch's exports.

import type { Graph } from '../view/graph.js'

/** The number of tokens of a chunk. */
export const CHUNK = 64

const CHUNKED = ['LinearAttention', 'GatedDeltaNet']

/** Tokens of a chunk; undefined without chunks. Graphs pad the last one by T mod this number: there it is found. */
export function chunkOf(graph: Graph): number | undefined {
  if (graph.nodes.some(({ opType }) => CHUNKED.includes(opType))) return CHUNK
  const remainders = graph.nodes.filter(({ opType }) => opType === 'Mod')
  const sizes = remainders.flatMap(({ input }) => graph.integers(input[1])?.[0] ?? []).filter((size) => size > 1)
  return sizes.length === 0 ? undefined : Math.max(...sizes)
}
