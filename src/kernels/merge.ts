// The one place from which merges get their kernel; apart from index.ts, so that who only uses layers does not load it.

import type { MergeKernel } from './merge-kernel.js'
import { referenceMergeKernel } from './reference-merge.js'
import { createWasmMergeKernel } from './wasm-merge.js'

/**
 * The fastest merge kernel that the host has, with a memory of its own: one a thread. All give the same bytes.
 *
 * @param byteLength size of the largest chunk
 */
export function createMergeKernel(byteLength: number): MergeKernel {
  return createWasmMergeKernel(byteLength) ?? referenceMergeKernel(byteLength)
}
