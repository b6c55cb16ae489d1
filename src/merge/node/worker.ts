// Entry of the worker threads that merge chunks, in Node: each takes one job, and ends.

import { parentPort } from 'node:worker_threads'
import { serializeError } from '../../base/errors.js'
import { type ChunkJob, ChunkLoop, stopAll } from './chunks.js'

export interface WorkerTask {
  job: ChunkJob
  thread: number
}

parentPort?.once('message', async ({ job, thread }: WorkerTask) => {
  try {
    const loop = new ChunkLoop(job, thread)
    while (await loop.step()) {}
  } catch (error) {
    stopAll(job.shared)
    parentPort?.postMessage(serializeError(error))
  }
})
