import { execFileSync } from 'node:child_process'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, describe, expect, test } from 'vitest'
import { StateError } from '../../src/base/errors.js'
import { createWasmKernels } from '../../src/kernels/wasm.js'
import { kernelSuite } from './suite.js'

const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..')

for (const build of ['plain', 'relaxed'] as const) {
  for (const threads of [1, 2]) {
    const kernels = createWasmKernels({ build, threads })
    // Node 20 has no relaxed SIMD.
    if (kernels === undefined) continue
    describe(`${threads} threads`, () => {
      kernelSuite(kernels)
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
