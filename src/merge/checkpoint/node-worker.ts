// Entry of the worker threads that merge chunks, in Node.

import { parentPort, workerData } from 'node:worker_threads'
import { serializeError } from '../../base/errors.js'
import { type ChunkJob, ChunkLoop, stopAll } from './node-chunks.js'

/** What a worker tells its owner. */
export type WorkerMessage =
  | { kind: 'shard'; shard: number }
  | { kind: 'error'; error: ReturnType<typeof serializeError> }

const { job, thread } = workerData as { job: ChunkJob; thread: number }
const tell = (message: WorkerMessage) => parentPort?.postMessage(message)
try {
  const loop = new ChunkLoop(job, thread)
  while (loop.step((shard) => tell({ kind: 'shard', shard }))) {}
} catch (error) {
  stopAll(job.shared)
  tell({ kind: 'error', error: serializeError(error) })
}
