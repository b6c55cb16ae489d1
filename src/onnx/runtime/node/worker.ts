// Makes ports for node:worker_threads.

import { parentPort, Worker } from 'node:worker_threads'
import { StateError } from '../../../core/base/errors.js'
import type { Port } from '../rpc.js'

/**
 * Returns a worker's options. By default, a worker inherits all of Node's command line options, and refuses
 * `--input-type=module`, which a program given with -e needs. The list without that option cannot be given instead,
 * because workers refuse V8 options such as --max-old-space-size in a list.
 */
export function workerOptions(): { execArgv?: []; resourceLimits?: { stackSizeMb: number } } {
  const { execArgv, argv } = process
  const characters = [...execArgv, ...argv].reduce((sum, { length }) => sum + length, 0)
  return {
    ...(execArgv.some((option) => option.startsWith('--input-type')) && { execArgv: [] as [] }),
    ...(characters > SHORT_COMMAND && { resourceLimits: { stackSizeMb: 4 + characters * STACK_MB } }),
  }
}

/**
 * ONNX Runtime reads the command line of the process with std::regex, which needs about 300 bytes of stack for each
 * character. A worker has a stack of 4 MB, so without a larger stack, a prompt of 16 kB on the command line would crash
 * the process.
 */
const SHORT_COMMAND = 4000
const STACK_MB = 0.001

const stuck = new Set<Worker>()

/** Says whether a worker was given up that has not ended. Node would wait for it at exit and then abort. */
export function hasStuckWorker(): boolean {
  return stuck.size > 0
}

/** Starts a worker thread from a module URL. It does not keep the process alive unless held. */
export function spawnNodeWorker(entry: URL): Port {
  const worker = new Worker(entry, workerOptions())
  return {
    post: (message, transfer) => worker.postMessage(message, transfer as ArrayBuffer[]),
    listen: (receive) => void worker.on('message', receive),
    onClose(closed) {
      worker.on('error', closed)
      worker.on('exit', (code) => closed(new Error(`exit code ${code}`)))
    },
    hold: (isHeld) => (isHeld ? worker.ref() : worker.unref()),
    close: async () => void (await worker.terminate()),
    abandon() {
      stuck.add(worker)
      worker.once('exit', () => stuck.delete(worker))
      worker.unref()
    },
  }
}

export function ownerPort(): Port {
  const port = parentPort
  if (port === null) throw new StateError({ where: 'worker', what: 'this module runs in a worker thread only' })
  return {
    post: (message, transfer) => port.postMessage(message, transfer as ArrayBuffer[]),
    listen: (receive) => void port.on('message', receive),
    close: async () => port.close(),
  }
}
