// Entry of the threads of a merge. Each message is a file, whose chunks all threads share.

import { parentPort } from 'node:worker_threads'
import { type SerializedError, serializeError } from '../../base/errors.js'
import { mergeChunks } from '../chunk-loop.js'
import { ChangeSums } from '../merge-report.js'
import type { Segment } from '../plan/layout.js'
import { ChunkMerger } from '../weight.js'
import { type OpenFile, type Readable, readerOf, writeFully } from './open-files.js'

/** Plain data and shared memory. The sources are those of the first task. */
export interface WorkerTask {
  readonly sources: readonly Readable[]
  readonly isReproducible: boolean
  readonly segments: readonly Segment[]
  readonly output: OpenFile
  readonly counter: Int32Array
}

export interface WorkerAnswer {
  readonly changes?: ChangeSums['byName']
  readonly error?: SerializedError
}

let merger: ChunkMerger | undefined

parentPort?.on('message', async ({ sources, isReproducible, segments, output, counter }: WorkerTask) => {
  const answer = (message: WorkerAnswer) => parentPort?.postMessage(message)
  try {
    const sums = new ChangeSums()
    merger ??= new ChunkMerger(sources.map(readerOf), isReproducible)
    await mergeChunks(segments, merger, counter, (bytes, offset, changes) => {
      writeFully(output, bytes, offset)
      for (const change of changes) sums.add(change)
    })
    answer({ changes: sums.byName })
  } catch (error) {
    answer({ error: serializeError(error) })
  }
})
