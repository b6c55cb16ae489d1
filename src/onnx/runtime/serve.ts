// Runs an engine inside a worker.

import { StateError } from '../../core/base/errors.js'
import { loadRuntime } from './load.js'
import { callMethod, expose, type Port } from './rpc.js'
import type { Runtime } from './runtime.js'

/** Serves an engine. A worker entry calls this with the port to its owner, which called `openEngine`. */
export function serveEngine<T extends object>(port: Port, create: (runtime: Runtime) => T): void {
  let engine: Promise<T> | undefined
  const control = {
    loadRuntime(specifier: string, wasm?: string, threads?: number): void {
      engine = loadRuntime(specifier, wasm, threads, true).then(create)
      engine.catch(() => {})
    },
  }
  expose(
    port,
    new Proxy(control, {
      get: (target, method) => {
        if (method === 'loadRuntime') return target.loadRuntime
        return async (...args: unknown[]) => {
          if (engine === undefined) throw new StateError({ where: 'worker', what: 'a call before loadRuntime' })
          return callMethod(await engine, method, args)
        }
      },
    }),
  )
}
