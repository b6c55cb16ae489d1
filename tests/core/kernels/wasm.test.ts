import { describe, expect, test } from 'vitest'
import { disposeKernels, LoraLayer } from '../../../src/api/node.js'
import { createMergeKernel } from '../../../src/core/kernels/merge-kernel.js'
import { referenceKernels } from '../../../src/core/kernels/reference.js'
import { createWasmKernels } from '../../../src/core/kernels/wasm.js'
import { kernelSuite } from './suite.js'

kernelSuite(referenceKernels)

test('the reference sums in f64 and rounds once', () => {
  // In f32, the ones would be lost beside 2²⁴.
  const a = Float32Array.of(2 ** 24, 1, 1, -(2 ** 24))
  const out = new Float32Array(1)
  referenceKernels.gemm({ m: 1, n: 1, k: 4, a, b: new Float32Array(4).fill(1), out })
  expect(out[0]).toBe(2)
})

/** Products that are split in depth, rows, columns, and slabs of the left operand, with the reference results. */
const CUT = [
  [5, 9, 9000],
  [1300, 3, 4200],
  [14, 1500, 300],
  [130, 600, 300],
].map(([m, n, k]) => {
  const products = [false, true].flatMap((isDouble) => {
    const wave = (length: number) => {
      const values = isDouble ? new Float64Array(length) : new Float32Array(length)
      return values.map((_, i) => Math.sin(i * 1.7 + (i % 13)))
    }
    const [a, b, c] = [wave(m * k), wave(k * n), wave(m * n)]
    return [
      [false, true],
      [false, false],
      [true, false],
    ].map(([transposeA, transposeB]) => {
      const product = { m, n, k, a, b, transposeA, transposeB, alpha: 0.7, accumulates: true }
      const expected = c.slice()
      referenceKernels.gemm({ ...product, out: expected })
      return { product, c, expected, tolerance: 32 * k * (isDouble ? 2 ** -52 : 2 ** -23) }
    })
  })
  return { name: `${m} × ${n} × ${k}`, products }
})

describe('on WebAssembly', () => {
  const kernels = createWasmKernels()!
  kernelSuite(kernels)
  test.each(CUT)('$name, in all forms', ({ products }) => {
    for (const { product, c, expected, tolerance } of products) {
      const out = c.slice()
      kernels.gemm({ ...product, out })
      let worst = 0
      for (let i = 0; i < out.length; i++) worst = Math.max(worst, Math.abs(out[i] - expected[i]))
      expect(worst).toBeLessThan(tolerance)
    }
  })
})

test('arrays that callers hold stay as they are when the kernels’ memory grows or goes', () => {
  const wave = (rows: number, columns: number) => {
    return {
      data: Float32Array.from({ length: rows * columns }, (_, i) => Math.sin(i)),
      shape: [rows, columns] as const,
    }
  }
  const layer = new LoraLayer(wave(64, 48), { rank: 8 })
  layer.weightB = wave(64, 8)
  const input = wave(32, 48)
  const output = layer.forward(input)
  const held = [input, output, layer.weightA, layer.weightB, layer.baseWeight!, layer.effectiveWeight(), layer.delta()]
  const before = held.map(({ data }) => data.slice())
  const kernel = createMergeKernel(4096)
  for (const rank of [8, 64, 1024]) kernel.begin(rank, 4096, 'fp32')
  const large = new LoraLayer(wave(700, 600))
  large.weightB = wave(700, 8)
  large.forward(wave(300, 600))
  disposeKernels()
  for (const [i, { data }] of held.entries()) {
    expect(data).toEqual(before[i])
    // WebAssembly's memory cannot be transferred. A transferred buffer has length 0.
    const buffer = data.buffer as ArrayBuffer
    structuredClone(buffer, { transfer: [buffer] })
    expect(buffer.byteLength).toBe(0)
  }
})
