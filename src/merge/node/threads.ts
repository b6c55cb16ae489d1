// The threads of one merge into a path: this one, and workers that start while the merge is planned.

import { availableParallelism } from 'node:os'
import { setImmediate } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import type { ByteSink, ByteSource } from '../../base/bytes.js'
import { deserializeError, RuntimeError } from '../../base/errors.js'
import { codeOf, HINTS } from '../../io/node/errors.js'
import { workerOptions } from '../../runtime/node/worker.js'
import type { MergeThreads } from '../carry-out.js'
import { stopChunks } from '../chunk-loop.js'
import { ChangeSums } from '../merge-report.js'
import type { Segment } from '../plan/layout.js'
import type { ChunkSource } from '../weight.js'
import { type OpenFile, type Readable, readableOf, readerOf, writeFully } from './open-files.js'
import type { WorkerAnswer, WorkerTask } from './worker.js'

const MAX_THREADS = 4
/** This thread's event loop gets a turn after so long. */
const TURN_MS = 20
/** Why a worker does not start where files, memory or threads are short. */
const SCARCE = ['EMFILE', 'ENFILE', 'EAGAIN', 'ENOMEM', 'ERR_WORKER_INIT_FAILED']
const RESOURCE_LIMITS = { maxYoungGenerationSizeMb: 8, maxOldGenerationSizeMb: 512 }

/** Deno's threads do not share the numbers of open files: there it is one. */
export function threadsOf(wish: number | undefined): number {
  return 'Deno' in globalThis ? 1 : (wish ?? Math.min(availableParallelism(), MAX_THREADS))
}

/** Workers that wait for a file keep no process alive. */
export class NodeThreads implements MergeThreads {
  /** What to do with a worker's answer: nothing while it waits. */
  readonly #workers = new Map<Worker, (answer: WorkerAnswer) => void>()
  #readables: readonly Readable[] = []
  #isReproducible = false
  #counter: Int32Array = new Int32Array(1)
  #failure: unknown
  #turnAt = 0

  constructor(threads: number) {
    for (let i = 1; i < threads; i++) this.#start()
  }

  async open(sources: readonly ByteSource[], isReproducible: boolean): Promise<ChunkSource[]> {
    this.#isReproducible = isReproducible
    this.#readables = await Promise.all(sources.map(readableOf))
    return this.#readables.map(readerOf)
  }

  async run(
    segments: readonly Segment[],
    sink: ByteSink,
    loop: (counter: Int32Array) => Promise<void>,
  ): Promise<ChangeSums> {
    const counter = new Int32Array(new SharedArrayBuffer(4))
    this.#counter = counter
    const [sources, isReproducible, output] = [this.#readables, this.#isReproducible, outputOf(sink)]
    const task: WorkerTask = { sources, isReproducible, segments, output, counter }
    const sums = new ChangeSums()
    const others = [...this.#workers.keys()].map((worker) => {
      worker.ref()
      worker.postMessage(task)
      return new Promise<void>((resolve) => {
        this.#workers.set(worker, ({ changes, error }) => {
          if (error !== undefined) this.#fail(deserializeError(error))
          else if (changes !== undefined) sums.addAll(changes)
          worker.unref()
          resolve()
        })
      })
    })
    if (this.#failure !== undefined) this.#fail(this.#failure)
    await Promise.all([loop(counter).catch((error) => this.#fail(error)), ...others])
    if (this.#failure !== undefined) throw this.#failure
    return sums
  }

  async write(sink: ByteSink, bytes: Uint8Array, offset: number): Promise<void> {
    writeFully(outputOf(sink), bytes, offset)
    if (performance.now() < this.#turnAt) return
    await setImmediate()
    this.#turnAt = performance.now() + TURN_MS
  }

  dispose(): void {
    for (const worker of this.#workers.keys()) void worker.terminate()
  }

  #start(): void {
    const url = new URL('./worker.js', import.meta.url)
    const worker = new Worker(url, { resourceLimits: RESOURCE_LIMITS, ...workerOptions() })
    worker.unref()
    this.#workers.set(worker, () => {})
    let isReady = false
    worker.on('online', () => {
      isReady = true
    })
    worker.on('message', (answer: WorkerAnswer) => this.#workers.get(worker)!(answer))
    worker.on('error', (cause: NodeJS.ErrnoException) => {
      // The system has no room for another thread: the other threads do its work.
      if (!isReady && SCARCE.includes(cause.code ?? '')) return
      const hint = HINTS[codeOf(cause) ?? '']
      this.#fail(new RuntimeError({ where: 'merge worker', what: `it failed: ${cause.message}`, hint, cause }))
    })
    worker.on('exit', () => {
      const answer = this.#workers.get(worker)!
      this.#workers.delete(worker)
      answer({})
    })
  }

  #fail(error: unknown): void {
    this.#failure ??= error
    stopChunks(this.#counter)
  }
}

function outputOf({ name, fd }: ByteSink): OpenFile {
  return { name, fd: fd! }
}
