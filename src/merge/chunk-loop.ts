// The loop of a merge: it takes the next chunk, computes it, and passes it on. Several threads can share its counter.

import { chunksOf, type Segment } from './plan/layout.js'
import type { ChunkChange, ChunkMerger } from './weight.js'

/** A chunk number that no file reaches. */
const NO_CHUNK = 2 ** 30

/** Ends all loops that share a counter, each after its current chunk. */
export function stopChunks(counter: Int32Array): void {
  Atomics.store(counter, 0, NO_CHUNK)
}

/** @param take gets bytes, which are valid until it returns, and their place in the file */
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
