// The kernels' WebAssembly, which is compiled once in a process. There is none if the host has no SIMD, if a content
// security policy forbids WebAssembly, or if a browser compiles only smaller modules synchronously.

const compiled = new Map<string, WebAssembly.Module>()

/** The types need the DOM library, which projects for Node alone lack. @internal */
export function compile(hex: string) {
  let module = compiled.get(hex)
  if (module === undefined) {
    const bytes = Uint8Array.from({ length: hex.length / 2 }, (_, i) =>
      Number.parseInt(hex.slice(2 * i, 2 * i + 2), 16),
    )
    try {
      module = new WebAssembly.Module(bytes)
    } catch {
      return undefined
    }
    compiled.set(hex, module)
  }
  return module
}
