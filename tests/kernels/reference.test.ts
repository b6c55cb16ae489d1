import { expect, test } from 'vitest'
import { referenceKernels } from '../../src/kernels/reference.js'
import { kernelSuite } from './suite.js'

kernelSuite(referenceKernels)

test('sums in f64 and rounds once', () => {
  // Added up in f32 the ones would be lost beside 2²⁴.
  const a = Float32Array.of(2 ** 24, 1, 1, -(2 ** 24))
  const out = new Float32Array(1)
  referenceKernels.gemm({ m: 1, n: 1, k: 4, a, b: new Float32Array(4).fill(1), out })
  expect(out[0]).toBe(2)
})
