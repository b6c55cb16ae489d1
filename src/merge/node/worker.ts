// Entry of the worker threads that merge chunks, in Node: each takes one job, and ends.

import { parentPort } from 'node:worker_threads'
import { serializeError } from '../../base/errors.js'
import { type ChunkJob, ChunkLoop, stopAll } from './chunks.js'

/** Message to a worker. */
export interface WorkerTask {
  job: ChunkJob
  thread: number
}

/** Message of a worker to its owner. */
export type WorkerMessage =
  | { kind: 'ready' }
  | { kind: 'file'; file: number }
  | { kind: 'error'; error: ReturnType<typeof serializeError> }

parentPort?.once('message', ({ job, thread }: WorkerTask) => {
  const tell = (message: WorkerMessage) => parentPort?.postMessage(message)
  tell({ kind: 'ready' })
  try {
    const loop = new ChunkLoop(job, thread)
    while (loop.step((file) => tell({ kind: 'file', file }))) {}
  } catch (error) {
    stopAll(job.shared)
    tell({ kind: 'error', error: serializeError(error) })
  }
})
