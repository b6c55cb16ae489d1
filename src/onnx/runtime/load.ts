// Imports the user's ONNX Runtime by specifier or URL, in the thread or worker where its sessions will run.

import { messageOf, RuntimeError } from '../../core/base/errors.js'
import { checkProviders, type OrtModule, runtimeOf, setWebThreads } from './onnxruntime.js'
import type { Runtime } from './runtime.js'

export async function loadRuntime(
  specifier: string,
  wasm?: string,
  threads?: number,
  ownsThread?: boolean,
): Promise<Runtime> {
  const ort = await importOrt(specifier)
  // Failures are thrown, so onnxruntime-node need not print them too.
  if (ort.env !== undefined && ort.listSupportedBackends !== undefined) ort.env.logLevel = 'fatal'
  if (wasm !== undefined && ort.env?.wasm !== undefined) ort.env.wasm.wasmPaths = { wasm }
  setWebThreads(ort, threads)
  return runtimeOf(ort, undefined, ownsThread)
}

/** Throws UnsupportedError for a provider that the runtime does not have on this system, as opening a session does. */
export async function requireProviders(specifier: string, providers: readonly string[]): Promise<void> {
  checkProviders(await importOrt(specifier), providers)
}

async function importOrt(specifier: string): Promise<OrtModule> {
  let loaded: Partial<OrtModule> & { default?: Partial<OrtModule> }
  try {
    loaded = await import(/* @vite-ignore */ /* webpackIgnore: true */ specifier)
  } catch (cause) {
    throw new RuntimeError({ where: 'ONNX Runtime', what: `cannot import ${specifier}: ${messageOf(cause)}`, cause })
  }
  const ort = loaded.InferenceSession === undefined ? loaded.default : loaded
  if (ort?.InferenceSession === undefined || ort.Tensor === undefined) {
    throw new RuntimeError({
      where: specifier,
      what: 'this module is not ONNX Runtime',
      expected: 'exports InferenceSession and Tensor',
    })
  }
  return ort as OrtModule
}
