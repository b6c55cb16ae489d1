// Ports over node:worker_threads.

import { parentPort, Worker } from 'node:worker_threads'
import { StateError } from '../../base/errors.js'
import type { Port } from '../rpc.js'

/**
 * The options that a worker takes over from Node's start. By default that is all, and a worker refuses
 * `--input-type=module`, which a program given with -e has. The rest cannot be listed instead: in a list a worker
 * refuses options of V8, such as --max-old-space-size.
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
 * ONNX Runtime reads the command line of the process with std::regex, whose stack grows with each character (about 300
 * bytes). A worker's stack has 4 MB: without a larger one, a prompt of 16 kB on the command line ends the process.
 */
const SHORT_COMMAND = 4000
const STACK_MB = 0.001

const stuck = new Set<Worker>()

/** Node waits for such a thread at its end, and aborts then. Only a signal ends such a process. */
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
