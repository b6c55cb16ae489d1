// Chooses how a product is computed: by WebAssembly if the host has it and the product is large enough, otherwise by
// the reference loops.

import { type GemmOptions, referenceKernels } from './reference.js'
import { createWasmKernels, type WasmKernels } from './wasm.js'

/** Below this many multiplications the copies into WebAssembly's memory cost more than the loops. */
const MIN_WASM_PRODUCT = 4096

/** Made by the first product that is large enough; null if the host has no WebAssembly. */
let wasm: WasmKernels | null | undefined

export function gemm(product: GemmOptions): void {
  const fast = isWorthCopying(product) ? wasmKernels() : null
  if (fast === null) referenceKernels.gemm(product)
  else fast.gemm(product)
}

export function kernelName(): string {
  return wasmKernels()?.name ?? referenceKernels.name
}

/**
 * Frees the memory of matrix products. The next large product takes it again.
 *
 * @example
 * disposeKernels()
 */
export function disposeKernels(): void {
  wasm = undefined
}

function wasmKernels(): WasmKernels | null {
  if (wasm === undefined) wasm = createWasmKernels() ?? null
  return wasm
}

/** A single row times a matrix reads each element once, so the plain loops win: they need no packing. */
function isWorthCopying({ m, n, k, a, b, out, transposeB = false }: GemmOptions): boolean {
  if (m * n * k < MIN_WASM_PRODUCT || (m === 1 && !transposeB)) return false
  const size = out.BYTES_PER_ELEMENT
  return a.BYTES_PER_ELEMENT === size && b.BYTES_PER_ELEMENT === size
}
