import { execFileSync } from 'node:child_process'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, describe, expect, test } from 'vitest'
import { StateError } from '../../src/base/errors.js'
import { referenceKernels } from '../../src/kernels/reference.js'
import { createWasmKernels, type WasmKernels } from '../../src/kernels/wasm.js'
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

test('the embedded modules are what the sources give', () => {
  execFileSync(process.execPath, [join(root, 'scripts', 'build-wasm.mjs'), '--check'], { stdio: 'pipe' })
})
