// Where sessions live: in a worker (the default), or in the caller's own thread. An engine is an object that is made
// over a Runtime and spoken to by asynchronous calls, the same in both places.

import { StateError } from '../base/errors.js'
import { loadRuntime } from './load.js'
import { type OrtModule, runtimeOf } from './onnxruntime.js'
import { connect, expose, type Port, type Remote, untransferred } from './rpc.js'
import type { Runtime } from './runtime.js'

/** The engines that have a worker entry of their own. */
export type EngineKind = 'train' | 'infer'

/**
 * Where the sessions of a model run. With `module` (the imported ONNX Runtime), they run in this thread, and each run blocks it.
 * Otherwise `spawn` starts a worker that imports ONNX Runtime from `specifier`. `wasm` is the URL of onnxruntime-web's .wasm file,
 * where it does not lie beside that.
 */
export type RuntimeHost =
  | { readonly module: OrtModule }
  | { readonly specifier: string; readonly wasm?: string | undefined; spawn(kind: EngineKind): Port }

export interface Engine<T> {
  readonly remote: Remote<T>
  /** Ends the worker; calls under way are rejected. In-thread: nothing to do. */
  close(): Promise<void>
}

interface WorkerControl {
  loadRuntime(specifier: string, wasm?: string): void
}

/** Opens an engine in the host's worker, or makes it in this thread. */
export function openEngine<T extends object>(
  host: RuntimeHost,
  kind: EngineKind,
  create: (runtime: Runtime) => T,
): Engine<T> {
  if ('module' in host) return { remote: inThread(create(runtimeOf(host.module))), close: async () => {} }
  const connection = connect<T & WorkerControl>(host.spawn(kind))
  const control = connection.remote as Remote<WorkerControl>
  // A failure is reported by the first real call, which waits for the runtime.
  control.loadRuntime(host.specifier, host.wasm).catch(() => {})
  return { remote: connection.remote as unknown as Remote<T>, close: () => connection.close() }
}

/** The worker's side of {@link openEngine}: a worker entry calls this with the port to its owner. */
export function serveEngine<T extends object>(port: Port, create: (runtime: Runtime) => T): void {
  let engine: Promise<T> | undefined
  const control = {
    loadRuntime(specifier: string, wasm?: string): void {
      engine = loadRuntime(specifier, wasm).then(create)
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

function inThread<T extends object>(engine: T): Remote<T> {
  return new Proxy({} as Remote<T>, {
    get: (_, method) =>
      method === 'then'
        ? undefined
        : async (...args: unknown[]) => untransferred(await callMethod(engine, method, args.map(untransferred))),
  })
}

function callMethod(target: object, method: string | symbol, args: unknown[]): unknown {
  return (target as Record<string | symbol, (...args: unknown[]) => unknown>)[method](...args)
}
