// The one place from which merges get their kernel; apart from index.ts, so that who only uses layers does not load it.

import type { MergeKernel } from './merge-kernel.js'
import { fastestBuilds } from './module.js'
import { referenceMergeKernel } from './reference-merge.js'
import { createWasmMergeKernel } from './wasm-merge.js'

/**
 * The fastest merge kernel that the host has, with a memory of its own: one a thread.
 *
 * @param byteLength size of the largest chunk
 * @param isReproducible leaves fused multiply-adds out: all other kernels give the same bytes
 */
export function createMergeKernel(byteLength: number, isReproducible: boolean): MergeKernel {
  for (const build of isReproducible ? (['plain'] as const) : fastestBuilds()) {
    const kernel = createWasmMergeKernel(byteLength, build)
    if (kernel !== undefined) return kernel
  }
  return referenceMergeKernel(byteLength)
}
