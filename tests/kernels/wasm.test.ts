import { execFileSync } from 'node:child_process'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, describe, expect, test } from 'vitest'
import { StateError } from '../../src/base/errors.js'
import { disposeKernels } from '../../src/kernels/index.js'
import { createMergeKernel } from '../../src/kernels/merge.js'
import { referenceKernels } from '../../src/kernels/reference.js'
import { createWasmKernels, type WasmKernels } from '../../src/kernels/wasm.js'
import { LoraLayer } from '../../src/lora/layer.js'
import { kernelSuite } from './suite.js'

const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..')

/** Products that are cut: in depth, in rows, in columns, and into slabs of a left operand. */
function cutSuite(kernels: WasmKernels): void {
  const wave = (length: number, isDouble: boolean) => {
    const values = isDouble ? new Float64Array(length) : new Float32Array(length)
    return values.map((_, i) => Math.sin(i * 1.7 + (i % 13)))
  }
  test.each([
    [5, 9, 9000],
    [1300, 3, 4200],
    [14, 1500, 300],
    [130, 600, 300],
  ])(`${kernels.name}: %i × %i × %i, in all forms`, (m, n, k) => {
    for (const isDouble of [false, true]) {
      const [a, b, c] = [wave(m * k, isDouble), wave(k * n, isDouble), wave(m * n, isDouble)]
      for (const [transposeA, transposeB] of [
        [false, true],
        [false, false],
        [true, false],
      ]) {
        const product = { m, n, k, a, b, transposeA, transposeB, alpha: 0.7, beta: -0.5 }
        const [out, expected] = [c.slice(), c.slice()]
        kernels.gemm({ ...product, out })
        referenceKernels.gemm({ ...product, out: expected })
        let worst = 0
        for (let i = 0; i < out.length; i++) worst = Math.max(worst, Math.abs(out[i] - expected[i]))
        expect(worst).toBeLessThan(32 * k * (isDouble ? 2 ** -52 : 2 ** -23))
      }
    }
  })
}

for (const build of ['plain', 'relaxed', 'relaxed cut'] as const) {
  for (const threads of [1, 2]) {
    const kernels = createWasmKernels({ build, threads })
    // Node 20 has no relaxed SIMD.
    if (kernels === undefined) continue
    describe(`${threads} threads`, () => {
      kernelSuite(kernels)
      cutSuite(kernels)
      afterAll(() => kernels.dispose())
    })
  }
}

test('this host runs the plain build at least', () => {
  expect(createWasmKernels({ build: 'plain' })?.name).toBe('wasm plain')
})

test('after dispose a product is refused', () => {
  const kernels = createWasmKernels({ threads: 1 })!
  kernels.dispose()
  const a = new Float32Array(1)
  expect(() => kernels.gemm({ m: 1, n: 1, k: 1, a, b: a, out: new Float32Array(1) })).toThrow(StateError)
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
  const kernel = createMergeKernel(4096, true)
  for (const rank of [8, 64, 1024]) kernel.begin(rank, 4096, 'f32')
  const large = new LoraLayer(wave(700, 600))
  large.weightB = wave(700, 8)
  large.forward(wave(300, 600))
  disposeKernels()
  for (const [i, { data }] of held.entries()) {
    expect(data).toEqual(before[i])
    // WebAssembly's memory cannot be handed over: the buffer would be as long as before, or there would be an error.
    const buffer = data.buffer as ArrayBuffer
    structuredClone(buffer, { transfer: [buffer] })
    expect(buffer.byteLength).toBe(0)
  }
})

test('the embedded modules are what the sources give', () => {
  execFileSync(process.execPath, [join(root, 'scripts', 'build-wasm.mjs'), '--check'], { stdio: 'pipe' })
})
