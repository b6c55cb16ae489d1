// Ports over node:worker_threads.

import { parentPort, Worker } from 'node:worker_threads'
import { StateError } from '../base/errors.js'
import type { Port } from './rpc.js'

/** Starts a worker thread from a module URL. It does not keep the process alive unless held. */
export function spawnNodeWorker(entry: URL): Port {
  // Workers take over Node's options, and refuse this one of `node --input-type=module -e …`. The rest cannot be handed over instead:
  // given a list, a worker refuses options of the process and of V8, such as --max-old-space-size.
  const isOfText = process.execArgv.some((option) => option.startsWith('--input-type'))
  const worker = new Worker(entry, isOfText ? { execArgv: [] } : {})
  return {
    post: (message, transfer) => worker.postMessage(message, transfer as ArrayBuffer[]),
    listen: (receive) => void worker.on('message', receive),
    onClose(closed) {
      worker.on('error', closed)
      worker.on('exit', (code) => closed(new Error(`exit code ${code}`)))
    },
    hold: (isHeld) => (isHeld ? worker.ref() : worker.unref()),
    close: async () => void (await worker.terminate()),
  }
}

/** Inside a worker thread: the port to its owner. */
export function ownerPort(): Port {
  const port = parentPort
  if (port === null) throw new StateError({ where: 'worker', what: 'this module runs in a worker thread only' })
  return {
    post: (message, transfer) => port.postMessage(message, transfer as ArrayBuffer[]),
    listen: (receive) => void port.on('message', receive),
    close: async () => port.close(),
  }
}
