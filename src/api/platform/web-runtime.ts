// Runs sessions in browsers: a Web Worker imports ONNX Runtime by URL.

import { ConfigError } from '../../core/base/errors.js'
import { checkArgument, NAME } from '../../core/base/options.js'
import type { EngineKind, RuntimeHost } from '../../onnx/runtime/host.js'
import { startNoted, webWorkerPort } from '../../onnx/runtime/web-worker.js'

/**
 * Makes a host whose sessions run in Web Workers, so that a run leaves the page responsive.
 *
 * @param url URL of an onnxruntime-web bundle, absolute or relative to the page. It cannot be a bare package name,
 *   because the worker imports it at run time. Vite: `import url from 'onnxruntime-web/wasm?url'`
 * @param wasm URL of its .wasm file. Needed if the .wasm file is in another folder or has another name, as after a Vite
 *   build: `import wasm from 'onnxruntime-web/ort-wasm-simd-threaded.wasm?url'`
 * @throws ConfigError when `url` or `wasm` is not a URL
 *
 * @example
 * const runtime = webRuntime('https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/ort.wasm.min.mjs')
 */
export function webRuntime(url: string, wasm?: string): RuntimeHost {
  return {
    specifier: absolute('url', url),
    wasm: wasm === undefined ? undefined : absolute('wasm', wasm),
    spawn: (kind) => webWorkerPort(...startNoted(() => startWorker(kind))),
  }
}

function absolute(where: string, url: string): string {
  checkArgument(url, NAME, where)
  const page = globalThis.location?.href
  if (URL.canParse(url, page)) return new URL(url, page).href
  const expected = 'a URL, absolute or relative to the page'
  throw new ConfigError({ where, what: 'not the address of a file', expected, got: JSON.stringify(url) })
}

/** The expression is written out for each kind of worker, because bundlers look for exactly this form. */
function startWorker(kind: EngineKind): Worker {
  return kind === 'train'
    ? new Worker(new URL('../../train/engine/worker.js', import.meta.url), { type: 'module' })
    : new Worker(new URL('../../run/worker.js', import.meta.url), { type: 'module' })
}
