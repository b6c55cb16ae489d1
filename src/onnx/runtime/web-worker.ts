// Makes ports for Web Workers.

import { RuntimeError } from '../../core/base/errors.js'
import type { Port } from './rpc.js'

export function webWorkerPort(worker: Worker, url: string): Port {
  return {
    post: (message, transfer) => worker.postMessage(message, transfer as ArrayBuffer[]),
    listen: (receive) => {
      worker.onmessage = (event) => receive(event.data)
    },
    onClose: (closed) => {
      // An error in the script has a message. Without a message, the script did not load.
      worker.onerror = (event) => closed(event.message ? new Error(event.message) : notLoaded(url))
    },
    close: async () => worker.terminate(),
    abandon: () => worker.terminate(),
  }
}

/**
 * Starts a worker and finds out its URL. Bundlers replace the URL in the code, and no event tells it, so this watches
 * the constructor.
 */
export function startNoted(start: () => Worker): [worker: Worker, url: string] {
  const { Worker: Native } = globalThis
  let url = ''
  globalThis.Worker = new Proxy(Native, {
    construct(target, args, newTarget) {
      url = new URL(String(args[0]), globalThis.location?.href).href
      return Reflect.construct(target, args, newTarget)
    },
  })
  try {
    const worker = start()
    return [worker, url]
  } catch (cause) {
    throw notLoaded(url, cause)
  } finally {
    globalThis.Worker = Native
  }
}

function notLoaded(url: string, cause?: unknown): RuntimeError {
  return new RuntimeError({
    where: url,
    what: 'the script of the worker does not load',
    expected: 'a script of the page’s own server',
    hint: remedy(url),
    cause,
  })
}

function remedy(url: string): string {
  if (url.startsWith('blob:')) return 'The page’s content security policy must allow "worker-src blob:"'
  if (url.includes('/.vite/')) return "In the settings of Vite, set optimizeDeps: { exclude: ['lowrank'] }"
  const [script] = /(train\/engine|run)\/worker\.js$/.exec(url) ?? []
  return script
    ? `Without a bundler, import dist/browser.js of lowrank, which contains its workers. With esbuild, also build lowrank/dist/${script} to this address`
    : 'Publish all files that the bundler wrote. At another address, set base (Vite) or output.publicPath (webpack)'
}

export function webOwnerPort(): Port {
  // TypeScript's DOM library declares only windows.
  const scope = globalThis as unknown as {
    postMessage(message: unknown, transfer: ArrayBuffer[]): void
    onmessage: ((event: MessageEvent) => void) | null
    close(): void
  }
  return {
    post: (message, transfer) => scope.postMessage(message, transfer as ArrayBuffer[]),
    listen: (receive) => {
      scope.onmessage = (event) => receive(event.data)
    },
    close: async () => scope.close(),
  }
}
