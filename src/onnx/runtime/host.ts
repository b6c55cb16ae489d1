// Opens engines in a worker (the default) or in the caller's thread. Both are called in the same way.

import { RuntimeError } from '../../core/base/errors.js'
import type { OrtModule } from './onnxruntime.js'
import { callMethod, connect, type Port, type Remote, untransferred } from './rpc.js'
import type { Runtime } from './runtime.js'

/** The engines. Each has a separate worker entry. */
export type EngineKind = 'train' | 'infer'

/**
 * Where a model's sessions run. With `module` (the imported ONNX Runtime), they run in this thread, and each run blocks
 * it. Otherwise `spawn` starts a worker that imports ONNX Runtime from `specifier`. `wasm` is the URL of the .wasm file
 * of onnxruntime-web, if it is not next to the specifier.
 */
export type RuntimeHost =
  | { readonly module: OrtModule }
  | { readonly specifier: string; readonly wasm?: string | undefined; spawn(kind: EngineKind): Port }

export interface Engine<T> {
  readonly remote: Remote<T>
  /**
   * Closes the engine. If a run does not end in time, gives up the worker and throws RuntimeError.
   *
   * @param limitMs how long the run may go on, of which `leftMs` are left
   */
  close(limitMs?: number, leftMs?: number): Promise<void>
  isGivenUp(): boolean
}

export interface Disposable {
  dispose(): Promise<void>
}

/** How long a run may go on after it was asked to stop. */
export const STOP_MS = 4500
/** And for each GB of the weights: 2,048 tokens in one run take as long with float32 weights on a slow machine. */
const STOP_MS_PER_GB = 20_000

/** How long to wait for the current run of a graph, which nothing can interrupt. */
export function stopMs(weightBytes: number): number {
  return STOP_MS + (STOP_MS_PER_GB * weightBytes) / 1e9
}

export async function settlesWithin(promise: Promise<unknown>, ms: number): Promise<boolean> {
  let timer: ReturnType<typeof setTimeout> | undefined
  const late = new Promise<boolean>((resolve) => {
    timer = setTimeout(() => resolve(false), ms)
  })
  const settled = Promise.allSettled([promise]).then(() => true)
  return Promise.race([settled, late]).finally(() => clearTimeout(timer))
}

interface WorkerControl {
  loadRuntime(specifier: string, wasm?: string, threads?: number): void
}

/**
 * Opens an engine. If it runs in a worker, its code is not loaded in this thread.
 *
 * @param threads number of threads of ONNX Runtime; by default it chooses
 */
export async function openEngine<T extends Disposable>(
  host: RuntimeHost,
  kind: EngineKind,
  load: () => Promise<new (runtime: Runtime) => T>,
  threads?: number,
): Promise<Engine<T>> {
  if ('module' in host) {
    const [EngineClass, { runtimeOf, setWebThreads }] = await Promise.all([load(), import('./onnxruntime.js')])
    setWebThreads(host.module, threads)
    const engine = new EngineClass(runtimeOf(host.module))
    return { remote: inThread(engine), close: () => engine.dispose().catch(() => {}), isGivenUp: () => false }
  }
  const connection = connect<T & WorkerControl>(host.spawn(kind))
  const control = connection.remote as Remote<WorkerControl>
  // If this fails, the first call of the engine reports it, because it waits for the runtime.
  control.loadRuntime(host.specifier, host.wasm, threads).catch(() => {})
  return {
    remote: connection.remote as unknown as Remote<T>,
    async close(limitMs = STOP_MS, leftMs = limitMs) {
      // If the worker has failed, this call rejects. That is fine: the worker is closed next anyway.
      const disposal = (connection.remote as Remote<Disposable>).dispose()
      if (await settlesWithin(disposal, leftMs)) return connection.close()
      const error = new RuntimeError({
        where: 'ONNX Runtime',
        what: `a run did not end within ${Math.ceil(limitMs / 1000)} seconds after it was to stop, and cannot be interrupted`,
        hint: 'Nothing more can be done with it. In Node its thread ends with the run, or with the process',
      })
      connection.abandon(error)
      throw error
    },
    isGivenUp: () => connection.isAbandoned(),
  }
}

function inThread<T extends object>(engine: T): Remote<T> {
  return new Proxy({} as Remote<T>, {
    get: (_, method) =>
      method === 'then'
        ? undefined
        : async (...args: unknown[]) => untransferred(await callMethod(engine, method, args.map(untransferred))),
  })
}
