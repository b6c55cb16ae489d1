// The script of browser.slow.test.ts in the page: products and a merge with the kernels that the page's policies allow,
// compared with the reference loops.

import { LoraLayer } from '../../../src/api/node.js'
import { gemm, kernelName } from '../../../src/core/kernels/index.js'
import { createMergeKernel } from '../../../src/core/kernels/merge-kernel.js'
import { referenceKernels } from '../../../src/core/kernels/reference.js'
import { type Kernel, referenceMergeKernel } from './reference-merge.js'

export interface PageResult {
  kernels: string
  isIsolated: boolean
  /** The number of memories that the kernels made: shared with threads, and not shared. */
  memories: { shared: number; unshared: number }
  workers: number
  /** The largest error of a 170 × 130 × 300 product, relative to its largest element. */
  error: number
  /** Whether the merged bytes equal the reference's, or why there is no merge. */
  merge: string
  /** True if merging and unmerging a layer gave the base back. */
  isUnmergeExact: boolean
}

const memories = { shared: 0, unshared: 0 }
const { Memory } = WebAssembly
WebAssembly.Memory = class extends Memory {
  constructor(limits: WebAssembly.MemoryDescriptor) {
    super(limits)
    memories[limits.shared ? 'shared' : 'unshared']++
  }
}
let workers = 0
const { Worker } = globalThis
globalThis.Worker = class extends Worker {
  constructor(...args: ConstructorParameters<typeof Worker>) {
    super(...args)
    workers++
  }
}

const largest = (values: Float32Array) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 0)
const wave = (length: number) => Float32Array.from({ length }, (_, i) => Math.sin(i * 1.7))

function mergedBytes(kernel: Kernel): Uint8Array {
  kernel.begin(8, 100, 'fp32')
  kernel.putRight({ values: wave(8 * 100), row: 0, column: 0, rows: 8, columns: 100, isTransposed: false })
  kernel.chunk.set(Uint8Array.from({ length: 10 * 100 * 2 }, (_, i) => (i % 2 === 0 ? i * 31 : 0x3c + (i % 3))))
  const terms = [{ rank: 8, scale: 0.3 }]
  kernel.merge({ dtype: 'bf16', rows: 10, column: 0, columns: 100, left: wave(80), terms })
  return kernel.chunk.slice(0, 2000)
}

function mergeResult(reference: Uint8Array): string {
  try {
    const merged = mergedBytes(createMergeKernel(4096))
    return merged.every((byte, i) => byte === reference[i]) ? 'equal' : 'different'
  } catch (error) {
    return String(error)
  }
}

function run(): PageResult {
  const [m, n, k] = [170, 130, 300]
  const product = { m, n, k, a: wave(m * k), b: wave(n * k), transposeB: true }
  const [out, expected] = [new Float32Array(m * n), new Float32Array(m * n)]
  gemm({ ...product, out })
  referenceKernels.gemm({ ...product, out: expected })
  const reference = mergedBytes(referenceMergeKernel(4096))
  const base = { data: wave(64 * 48), shape: [64, 48] as const }
  const layer = new LoraLayer(base)
  layer.weightB = { data: wave(64 * 8), shape: [64, 8] }
  layer.merge()
  layer.unmerge()
  return {
    kernels: kernelName(),
    isIsolated: globalThis.crossOriginIsolated,
    memories,
    workers,
    error: largest(out.map((value, i) => value - expected[i])) / largest(expected),
    merge: mergeResult(reference),
    isUnmergeExact: base.data.every((value, i) => value === layer.baseWeight?.data[i]),
  }
}

let body: string
try {
  body = JSON.stringify(run())
} catch (error) {
  body = JSON.stringify({ failed: String(error) })
}
await fetch('/result', { method: 'POST', body })
