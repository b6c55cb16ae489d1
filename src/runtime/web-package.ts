// Imports the onnxruntime-web that a page's bundler finds. It is apart from load.ts, because bundlers copy 27 MB of
// WebAssembly for this import, which pages that name a URL do not need.

/** Imports onnxruntime-web as the page's bundler or import map resolves it. Returns undefined if that fails. */
export async function importWebRuntime(): Promise<unknown> {
  try {
    return await import('onnxruntime-web/webgpu')
  } catch {
    return undefined
  }
}
