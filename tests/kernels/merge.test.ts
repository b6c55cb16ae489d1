import { describe, expect, test } from 'vitest'
import { referenceMergeKernel } from '../../src/kernels/reference-merge.js'
import { createWasmMergeKernel } from '../../src/kernels/wasm-merge.js'
import { mergeKernelSuite } from './merge-suite.js'

mergeKernelSuite(referenceMergeKernel)

test('this host runs the merge on WebAssembly', () => {
  expect(createWasmMergeKernel(1024)?.name).toBe('wasm plain')
})

describe('on WebAssembly', () => {
  mergeKernelSuite((byteLength) => createWasmMergeKernel(byteLength)!)
})
