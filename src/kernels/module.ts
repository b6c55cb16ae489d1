// The kernels' WebAssembly: finds the build that the host can run, and compiles it once in a process. There is none if
// a content security policy forbids WebAssembly, or if a browser compiles only smaller modules synchronously.

/**
 * The builds of the module: with fused multiply-add, or with two roundings. `relaxed cut` is for compilers that need
 * shorter basic blocks: IS_CUT in kernels-asm/tile.ts.
 */
export type BuildName = 'relaxed' | 'plain' | 'relaxed cut'

/** (module (func (result v128) i32.const 0 i8x16.splat)): the fixed-width SIMD of 2021. */
const PLAIN_PROBE = [
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11,
]
/** A module that uses f32x4.relaxed_madd, to test for relaxed SIMD, which Node has from version 22 on. */
const RELAXED_PROBE = [
  ...[0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 19, 1, 17, 0],
  ...[65, 0, 253, 15, 65, 0, 253, 15, 65, 0, 253, 15, 253, 133, 2, 11],
]

/** (module (table i64 1 funcref)): V8 has it from 13.3 on, and from then on its compiler can handle the larger tile. */
const TABLE64_PROBE = [0, 97, 115, 109, 1, 0, 0, 0, 4, 4, 1, 112, 4, 1]

export function supports(build: BuildName): boolean {
  return isValid(build === 'plain' ? PLAIN_PROBE : RELAXED_PROBE)
}

export function fastestBuilds(): BuildName[] {
  return [fusedBuild(), 'plain']
}

export function fusedBuild(): BuildName {
  return isValid(TABLE64_PROBE) ? 'relaxed' : 'relaxed cut'
}

function isValid(probe: readonly number[]): boolean {
  return typeof WebAssembly !== 'undefined' && WebAssembly.validate(Uint8Array.from(probe))
}

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
