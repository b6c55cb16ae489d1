// Where sessions run in browsers: a Web Worker that imports ONNX Runtime by URL.

import type { EngineKind, RuntimeHost } from '../runtime/host.js'
import { webWorkerPort } from '../runtime/web-worker.js'

/**
 * A host whose sessions live in Web Workers, so that a run leaves the page responsive.
 *
 * @param url of an onnxruntime-web bundle, absolute or relative to the page: the worker imports it, where no bundler
 *   resolves bare names. Vite: `import url from 'onnxruntime-web/wasm?url'`
 */
export function webRuntime(url: string): RuntimeHost {
  return { specifier: new URL(url, globalThis.location?.href).href, spawn: (kind) => webWorkerPort(startWorker(kind)) }
}

/** Written out for each kind: bundlers look for exactly this expression. */
function startWorker(kind: EngineKind): Worker {
  return kind === 'train'
    ? new Worker(new URL('../train/worker.js', import.meta.url), { type: 'module' })
    : new Worker(new URL('../infer/worker.js', import.meta.url), { type: 'module' })
}
