// Where sessions run in browsers: a Web Worker that imports ONNX Runtime by URL.

import { ConfigError } from '../base/errors.js'
import type { EngineKind, RuntimeHost } from '../runtime/host.js'
import { webWorkerPort } from '../runtime/web-worker.js'

/**
 * A host whose sessions live in Web Workers, so that a run leaves the page responsive.
 *
 * @param url of an onnxruntime-web bundle, absolute or relative to the page: the worker imports it, where no bundler
 *   resolves bare names. Vite: `import url from 'onnxruntime-web/wasm?url'`
 * @throws ConfigError when it is no URL
 */
export function webRuntime(url: string): RuntimeHost {
  return { specifier: absolute(url), spawn: (kind) => webWorkerPort(startWorker(kind)) }
}

function absolute(url: string): string {
  try {
    return new URL(url, globalThis.location?.href).href
  } catch (cause) {
    const expected = 'a URL, absolute or relative to the page'
    throw new ConfigError({ where: 'url', what: 'no address of a module', expected, got: JSON.stringify(url), cause })
  }
}

/** Written out for each kind: bundlers look for exactly this expression. */
function startWorker(kind: EngineKind): Worker {
  return kind === 'train'
    ? new Worker(new URL('../train/worker.js', import.meta.url), { type: 'module' })
    : new Worker(new URL('../infer/worker.js', import.meta.url), { type: 'module' })
}
