// Entry of the threads of a merge. They share the chunks of each file.

import { ownerPort } from '../../onnx/runtime/node/worker.js'
import { expose } from '../../onnx/runtime/rpc.js'
import { mergeChunks } from '../chunk-loop.js'
import { ChangeSums } from '../merge-report.js'
import type { Segment } from '../plan/layout.js'
import { ChunkMerger } from '../weight.js'
import { type OpenFile, type Readable, readerOf, writeFully } from './open-files.js'

/** Gets plain data and shared memory. */
export class MergeThread {
  #merger: ChunkMerger | undefined

  open(sources: readonly Readable[]): void {
    this.#merger = new ChunkMerger(sources.map(readerOf))
  }

  async merge(segments: readonly Segment[], output: OpenFile, counter: Int32Array): Promise<ChangeSums['byName']> {
    const sums = new ChangeSums()
    await mergeChunks(segments, this.#merger!, counter, (bytes, offset, changes) => {
      writeFully(output, bytes, offset)
      for (const change of changes) sums.add(change)
    })
    return sums.byName
  }
}

expose(ownerPort(), new MergeThread())
