// Runs the chunks of a merge in this thread and in worker threads. The workers start while the merge is planned.

import { availableParallelism } from 'node:os'
import { Worker } from 'node:worker_threads'
import { deserializeError, RuntimeError } from '../../base/errors.js'
import { codeOf, HINTS } from '../../io/node/errors.js'
import { workerOptions } from '../../runtime/node/worker.js'
import { areFinished, type ChunkJob, ChunkLoop, stopAll } from './chunks.js'
import type { WorkerTask } from './worker.js'

export interface RunOptions {
  signal?: AbortSignal | undefined
  onProgress(writtenBytes: number): void
  /** Called when all chunks of a file are written, while others are being worked on. */
  onFile(file: number): Promise<void>
}

const MAX_THREADS = 4
const PROGRESS_INTERVAL_MS = 100
/** This thread's event loop gets a turn after so long. */
const TURN_MS = 20
/** Why a worker does not start where files, memory or threads are short. */
const SCARCE = ['EMFILE', 'ENFILE', 'EAGAIN', 'ENOMEM', 'ERR_WORKER_INIT_FAILED']
const RESOURCE_LIMITS = { maxYoungGenerationSizeMb: 8, maxOldGenerationSizeMb: 512 }

/** Deno's threads do not share the descriptors of files: there it is one. */
export function threadsOf(wish: number | undefined): number {
  return 'Deno' in globalThis ? 1 : (wish ?? Math.min(availableParallelism(), MAX_THREADS))
}

/** The threads of one merge. Waiting for a job they keep no process alive. */
export class Crew {
  readonly #workers: readonly Worker[]
  readonly #exits: readonly Promise<void>[]
  #failure: unknown
  #job: ChunkJob | undefined

  constructor(readonly threads: number) {
    this.#workers = Array.from({ length: threads - 1 }, () => {
      const worker = new Worker(new URL('./worker.js', import.meta.url), {
        resourceLimits: RESOURCE_LIMITS,
        ...workerOptions(),
      })
      worker.unref()
      return worker
    })
    this.#exits = this.#workers.map((worker) => this.#follow(worker))
  }

  /** Works on all chunks, once. Rejects with the first error after all threads have stopped. */
  async run(job: ChunkJob, { signal, onProgress, onFile }: RunOptions): Promise<void> {
    signal?.throwIfAborted()
    if (this.#failure !== undefined) throw this.#failure
    this.#job = job
    const pending: Promise<void>[] = []
    const fail = (error: unknown) => this.#fail(error)
    const finished = new Set<number>()
    const tellFinished = () => {
      for (const [file, isFinished] of areFinished(job).entries()) {
        if (!isFinished || finished.has(file)) continue
        finished.add(file)
        pending.push(onFile(file).catch(fail))
      }
    }
    const written = () => job.shared.written.reduce((sum, bytes) => sum + bytes, 0)
    const abort = () => fail(signal?.reason)
    signal?.addEventListener('abort', abort)
    const timer = setInterval(() => onProgress(written()), PROGRESS_INTERVAL_MS)
    try {
      this.#workers.forEach((worker, i) => {
        worker.ref()
        worker.postMessage({ job, thread: i + 1 } satisfies WorkerTask)
      })
      await Promise.all([this.#runHere(job, tellFinished).catch(fail), ...this.#exits])
      tellFinished()
      await Promise.all(pending)
      if (this.#failure !== undefined) throw this.#failure
      onProgress(written())
    } finally {
      clearInterval(timer)
      signal?.removeEventListener('abort', abort)
    }
  }

  dispose(): void {
    for (const worker of this.#workers) void worker.terminate()
  }

  async #runHere(job: ChunkJob, tellFinished: () => void): Promise<void> {
    const loop = new ChunkLoop(job, 0)
    for (let isMore = true; isMore; ) {
      const until = performance.now() + TURN_MS
      while (isMore && performance.now() < until) isMore = await loop.step()
      tellFinished()
      await new Promise((resolve) => setImmediate(resolve))
    }
  }

  #follow(worker: Worker): Promise<void> {
    return new Promise((resolve) => {
      let isReady = false
      let isMissed = false
      const fail = (what: string, cause?: unknown) => {
        const hint = HINTS[codeOf(cause) ?? '']
        if (!isMissed) this.#fail(new RuntimeError({ where: 'merge worker', what, hint, cause }))
      }
      worker.on('online', () => {
        isReady = true
      })
      worker.on('message', (error) => this.#fail(deserializeError(error)))
      worker.on('error', (cause: NodeJS.ErrnoException) => {
        // The system has no room for another thread: the other threads do its work.
        isMissed = !isReady && SCARCE.includes(cause.code ?? '')
        fail(`it failed: ${cause.message}`, cause)
      })
      worker.on('exit', (code) => {
        if (code !== 0) fail(`it ended with code ${code}`)
        resolve()
      })
    })
  }

  #fail(error: unknown): void {
    this.#failure ??= error
    if (this.#job !== undefined) stopAll(this.#job.shared)
  }
}
