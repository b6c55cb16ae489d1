// Ports over Web Workers.

import { RuntimeError } from '../base/errors.js'
import type { Port } from './rpc.js'

/**
 * The port to a Web Worker that was just created: `new Worker(new URL('…', import.meta.url), { type: 'module' })`.
 *
 * @param url where its script lies beside this module, unless a bundler has moved it
 */
export function webWorkerPort(worker: Worker, url: string): Port {
  return {
    post: (message, transfer) => worker.postMessage(message, transfer as ArrayBuffer[]),
    listen: (receive) => {
      worker.onmessage = (event) => receive(event.data)
    },
    onClose: (closed) => {
      // An error of the script itself has a message; without one it did not load.
      worker.onerror = (event) => closed(event.message ? new Error(event.message) : notLoaded(url))
    },
    close: async () => worker.terminate(),
    abandon: () => worker.terminate(),
  }
}

function notLoaded(url: string): RuntimeError {
  return new RuntimeError({
    where: url,
    what: 'the script of the worker does not load',
    expected: 'a script of the page’s own server',
    hint: 'Pages without a bundler import dist/browser.js of lowrank, which holds its workers. Bundlers copy the script',
  })
}

/** Inside a Web Worker: the port to its owner. */
export function webOwnerPort(): Port {
  const scope = globalThis as unknown as DedicatedWorkerScope
  return {
    post: (message, transfer) => scope.postMessage(message, transfer as ArrayBuffer[]),
    listen: (receive) => {
      scope.onmessage = (event) => receive(event.data)
    },
    close: async () => scope.close(),
  }
}

/** The part of DedicatedWorkerGlobalScope that is used; TypeScript's DOM library declares windows only. */
interface DedicatedWorkerScope {
  postMessage(message: unknown, transfer: ArrayBuffer[]): void
  onmessage: ((event: MessageEvent) => void) | null
  close(): void
}
