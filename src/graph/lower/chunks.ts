// Graphs that read tokens in chunks: lowrank writes linear attention out so for training, and PyTorch's exporter does.

import type { Graph } from '../view/graph.js'

/** Tokens of a chunk. */
export const CHUNK = 64

const CHUNKED = ['LinearAttention', 'GatedDeltaNet']

/** The tokens of a chunk; undefined without chunks. An exporter fills the last one up: by T mod its size. */
export function chunkOf(graph: Graph): number | undefined {
  if (graph.nodes.some(({ opType }) => CHUNKED.includes(opType))) return CHUNK
  const remainders = graph.nodes.filter(({ opType }) => opType === 'Mod')
  const sizes = remainders.flatMap(({ input }) => graph.integers(input[1])?.[0] ?? []).filter((size) => size > 1)
  return sizes.length === 0 ? undefined : Math.max(...sizes)
}
