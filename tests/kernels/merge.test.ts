import { describe, expect, test } from 'vitest'
import { fusedBuild, supports } from '../../src/kernels/module.js'
import { referenceMergeKernel } from '../../src/kernels/reference-merge.js'
import { createMergeKernel, createWasmMergeKernel } from '../../src/kernels/wasm-merge.js'
import { mergeKernelSuite } from './merge-suite.js'

mergeKernelSuite(referenceMergeKernel)

test('this host runs the merge on WebAssembly', () => {
  expect(createWasmMergeKernel(1024, 'plain')?.name).toBe('wasm plain')
  expect(createMergeKernel(1024, true).name).toBe('wasm plain')
  expect(createMergeKernel(1024, false).name).toBe(supports('relaxed') ? `wasm ${fusedBuild()}` : 'wasm plain')
})

describe('on WebAssembly', () => {
  mergeKernelSuite((byteLength) => createWasmMergeKernel(byteLength, 'plain')!)
})

for (const build of ['relaxed', 'relaxed cut'] as const) {
  if (!supports(build)) continue
  describe(`on WebAssembly with fused multiply-adds, ${build}`, () => {
    mergeKernelSuite((byteLength) => createWasmMergeKernel(byteLength, build)!, true)
  })
}
