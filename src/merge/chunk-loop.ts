// The one loop of a merge: it takes chunk after chunk of a file, computes it, and hands it on. Threads that share its
// counter share the chunks.

import { chunksOf, type Segment } from './plan/layout.js'
import type { ChunkChange, ChunkMerger } from './weight.js'

/** Far above the number of chunks of any file. */
const NO_CHUNK = 2 ** 30

/** Ends the loops that share a counter, each after its chunk. */
export function stopChunks(counter: Int32Array): void {
  Atomics.store(counter, 0, NO_CHUNK)
}

/** @param take gets bytes that are valid until it returns, and their place in the file */
export async function mergeChunks(
  segments: readonly Segment[],
  merger: ChunkMerger,
  counter: Int32Array,
  take: (bytes: Uint8Array, offset: number, changes: readonly ChunkChange[]) => void | Promise<void>,
): Promise<void> {
  const chunks = segments.map(chunksOf)
  let [at, first] = [0, 0]
  for (;;) {
    const number = Atomics.add(counter, 0, 1)
    while (at < chunks.length && number >= first + chunks[at].count) first += chunks[at++].count
    if (at === chunks.length) return
    const chunk = chunks[at].at(number - first)
    const { bytes, changes } = await merger.merge(chunk)
    await take(bytes, chunk.offset, changes)
  }
}
