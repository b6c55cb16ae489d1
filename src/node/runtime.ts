// Where sessions run in Node: a worker thread with the user's onnxruntime-node.

import type { EngineKind, RuntimeHost } from '../runtime/host.js'
import { resolveNodeRuntime } from '../runtime/node/runtime.js'
import { spawnNodeWorker } from '../runtime/node/worker.js'

const WORKERS: Record<EngineKind, URL> = {
  train: new URL('../train/node/worker.js', import.meta.url),
  infer: new URL('../infer/node/worker.js', import.meta.url),
}

/**
 * A host whose sessions live in worker threads, so that a run leaves this thread free.
 *
 * @param specifier Module specifier or URL of ONNX Runtime. Default: onnxruntime-node as the working directory's project
 *   has it installed, else as this package sees it.
 * @throws RuntimeError when it is not installed
 */
export function nodeRuntime(specifier: string = resolveNodeRuntime()): RuntimeHost {
  return { specifier, spawn: (kind) => spawnNodeWorker(WORKERS[kind]) }
}
