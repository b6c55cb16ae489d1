// The threads of one merge into a path: this one, and workers that start while the merge is planned.

import { availableParallelism } from 'node:os'
import { setImmediate } from 'node:timers/promises'
import type { ByteSink, ByteSource } from '../../core/base/bytes.js'
import { codeOf } from '../../files/io/node/errors.js'
import { spawnNodeWorker } from '../../onnx/runtime/node/worker.js'
import { connect } from '../../onnx/runtime/rpc.js'
import type { MergeThreads } from '../carry-out.js'
import { stopChunks } from '../chunk-loop.js'
import { ChangeSums } from '../merge-report.js'
import type { Segment } from '../plan/layout.js'
import type { ChunkSource } from '../weight.js'
import { readableOf, readerOf, writeFully } from './open-files.js'
import type { MergeThread } from './worker.js'

const MAX_THREADS = 4
/** This thread's event loop gets a turn after so long. */
const TURN_MS = 20
/** Codes of the errors with which a worker fails to start if open files, memory or threads run short. */
const SCARCE = ['EMFILE', 'ENFILE', 'EAGAIN', 'ENOMEM', 'ERR_WORKER_INIT_FAILED']

/** Deno's threads do not share the numbers of open files, so it gets a single one. */
export function threadsOf(wish: number | undefined): number {
  return 'Deno' in globalThis ? 1 : (wish ?? Math.min(availableParallelism(), MAX_THREADS))
}

export class NodeThreads implements MergeThreads {
  readonly #workers
  /** For each worker, whether it has started. If the system has no room for a worker, the other threads do its work. */
  #started: readonly Promise<boolean>[] = []
  #turnAt = 0

  constructor(threads: number) {
    const entry = new URL('./worker.js', import.meta.url)
    this.#workers = Array.from({ length: threads - 1 }, () => connect<MergeThread>(spawnNodeWorker(entry)))
  }

  async open(sources: readonly ByteSource[]): Promise<ChunkSource[]> {
    const readables = await Promise.all(sources.map(readableOf))
    this.#started = this.#workers.map(async ({ remote }) => {
      const error = await remote.open(readables).catch((reason) => reason)
      if (error !== undefined && !SCARCE.includes(codeOf(error.cause) ?? '')) throw error
      return error === undefined
    })
    for (const started of this.#started) started.catch(() => {})
    return readables.map(readerOf)
  }

  async run(
    segments: readonly Segment[],
    sink: ByteSink,
    loop: (counter: Int32Array) => Promise<void>,
  ): Promise<ChangeSums> {
    const counter = new Int32Array(new SharedArrayBuffer(4))
    const sums = new ChangeSums()
    const others = this.#workers.map(async ({ remote }, i) => {
      if (await this.#started[i]) sums.addAll(await remote.merge(segments, outputOf(sink), counter))
    })
    const threads = [loop(counter), ...others].map((thread) => {
      return thread.catch((error) => {
        stopChunks(counter)
        throw error
      })
    })
    for (const result of await Promise.allSettled(threads)) if (result.status === 'rejected') throw result.reason
    return sums
  }

  async write(sink: ByteSink, bytes: Uint8Array, offset: number): Promise<void> {
    writeFully(outputOf(sink), bytes, offset)
    if (performance.now() < this.#turnAt) return
    await setImmediate()
    this.#turnAt = performance.now() + TURN_MS
  }

  dispose(): void {
    for (const worker of this.#workers) void worker.close()
  }
}

function outputOf({ name, fd }: ByteSink) {
  return { name, fd: fd! }
}
