import { describe, expect, test } from 'vitest'
import { referenceMergeKernel } from '../../../src/core/kernels/reference-merge.js'
import { createMergeKernel } from '../../../src/core/kernels/wasm-merge.js'
import { mergeKernelSuite } from './merge-suite.js'

mergeKernelSuite(referenceMergeKernel)

test('this host runs the merge on WebAssembly', () => {
  expect(createMergeKernel(1024).name).toBe('wasm')
})

describe('on WebAssembly', () => {
  mergeKernelSuite(createMergeKernel)
})
