// Ports over Web Workers.

import type { Port } from './rpc.js'

/** The port to a Web Worker that was just created: `new Worker(new URL('…', import.meta.url), { type: 'module' })`. */
export function webWorkerPort(worker: Worker): Port {
  return {
    post: (message, transfer) => worker.postMessage(message, transfer as ArrayBuffer[]),
    listen: (receive) => {
      worker.onmessage = (event) => receive(event.data)
    },
    onClose: (closed) => {
      worker.onerror = (event) => closed(new Error(event.message))
    },
    close: async () => worker.terminate(),
    abandon: () => worker.terminate(),
  }
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
