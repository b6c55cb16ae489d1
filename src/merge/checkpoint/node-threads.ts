// Runs the chunks of a merge in this thread and in worker threads beside it: a merge of seconds must not wait for theirs to start.

import { Worker } from 'node:worker_threads'
import { deserializeError, RuntimeError } from '../../base/errors.js'
import { type ChunkJob, ChunkLoop, stopAll } from './node-chunks.js'
import type { WorkerMessage } from './node-worker.js'

export interface RunOptions {
  signal?: AbortSignal | undefined
  /** Called several times a second with the bytes written so far. */
  onProgress?: ((writtenBytes: number) => void) | undefined
  /** Called when all chunks of a shard are written, while others are being worked on. */
  onShard(shard: number): Promise<void>
}

const PROGRESS_INTERVAL_MS = 100
/** This thread's event loop gets a turn after so long, for progress, signals and what workers say. */
const TURN_MS = 20
/** A worker holds its chunk outside the JavaScript heap and little inside. */
const RESOURCE_LIMITS = { maxYoungGenerationSizeMb: 8, maxOldGenerationSizeMb: 512 }

/** Resolves when all shards are written and their `onShard` calls are done; rejects with the first error after all have stopped. */
export async function runChunks(job: ChunkJob, options: RunOptions): Promise<void> {
  const { signal, onProgress } = options
  const { shared } = job
  signal?.throwIfAborted()
  const written = () => shared.written.reduce((sum, bytes) => sum + bytes, 0)
  const pending: Promise<void>[] = []
  let failure: unknown
  const fail = (error: unknown) => {
    failure ??= error
    stopAll(shared)
  }
  const finished = (shard: number) => void pending.push(options.onShard(shard).catch(fail))
  const abort = () => fail(signal?.reason)
  signal?.addEventListener('abort', abort)
  const timer = onProgress && setInterval(() => onProgress(written()), PROGRESS_INTERVAL_MS)
  try {
    const workers = Array.from({ length: job.threads - 1 }, (_, i) => runWorker(job, i + 1, finished, fail))
    await Promise.all([runHere(job, finished).catch(fail), ...workers])
    await Promise.all(pending)
    if (failure !== undefined) throw failure
    onProgress?.(written())
  } finally {
    clearInterval(timer)
    signal?.removeEventListener('abort', abort)
  }
}

async function runHere(job: ChunkJob, finished: (shard: number) => void): Promise<void> {
  const loop = new ChunkLoop(job, 0)
  for (let isMore = true; isMore; ) {
    const until = performance.now() + TURN_MS
    while (isMore && performance.now() < until) isMore = loop.step(finished)
    await new Promise((resolve) => setImmediate(resolve))
  }
}

function runWorker(
  job: ChunkJob,
  thread: number,
  finished: (shard: number) => void,
  fail: (error: unknown) => void,
): Promise<void> {
  return new Promise((resolve) => {
    const worker = new Worker(new URL('./node-worker.js', import.meta.url), {
      workerData: { job, thread },
      resourceLimits: RESOURCE_LIMITS,
    })
    worker.on('message', (message: WorkerMessage) => {
      if (message.kind === 'shard') finished(message.shard)
      else fail(deserializeError(message.error))
    })
    worker.on('error', fail)
    worker.on('exit', (code) => {
      if (code !== 0) fail(new RuntimeError({ where: 'merge worker', what: `it ended with code ${code}` }))
      resolve()
    })
  })
}
