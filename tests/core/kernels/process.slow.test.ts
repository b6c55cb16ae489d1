// Tests that need a separate process: that it ends, how much memory it holds, and layers without WebAssembly.

import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { build } from 'vite'
import { afterAll, beforeAll, expect, test } from 'vitest'

const folder = mkdtempSync(join(tmpdir(), 'lowrank-kernels-'))
afterAll(() => rmSync(folder, { recursive: true }))

beforeAll(async () => {
  const entry = join(dirname(fileURLToPath(import.meta.url)), 'child.ts')
  const output = { entryFileNames: 'child.mjs' }
  const options = { ssr: entry, outDir: folder, emptyOutDir: false, rollupOptions: { output } }
  await build({ configFile: false, logLevel: 'silent', build: options })
})

/**
 * Runs a script with the bundle's exports in scope, and `product(n)`, which computes an n × n × n product of fixed
 * matrices.
 */
function run(script: string): unknown {
  const source = `
    import { disposeKernels, gemm, kernelName, LoraLayer } from '${pathToFileURL(join(folder, 'child.mjs'))}'
    function product(n, out = new Float32Array(n * n)) {
      const a = Float32Array.from({ length: n * n }, (_, i) => Math.sin(i))
      gemm({ m: n, n, k: n, a, b: a, transposeB: true, out })
      return out
    }
    ${script}`
  const options = { input: source, encoding: 'utf8', timeout: 250_000 } as const
  return JSON.parse(execFileSync(process.execPath, ['--input-type=module'], options))
}

test('kernels that were disposed of start again', () => {
  const script = `
    const first = product(300)[7]
    disposeKernels()
    console.log(JSON.stringify(first === product(300)[7]))`
  expect(run(script)).toBe(true)
})

test('products of layers are computed by the reference loops if WebAssembly is forbidden', () => {
  const script = `
    const { Module } = WebAssembly
    WebAssembly.Module = class {
      constructor() {
        throw new WebAssembly.CompileError('blocked by Content Security Policy')
      }
    }
    const name = kernelName()
    const slow = product(40)
    WebAssembly.Module = Module
    disposeKernels()
    const fast = product(40)
    console.log(JSON.stringify({ name, error: Math.max(...slow.map((x, i) => Math.abs(x - fast[i]))) }))`
  const result = run(script) as { name: string; error: number }
  expect(result.name).toBe('reference')
  expect(result.error).toBeLessThan(1e-5)
})

test('1 GB of layers, made, used and dropped 20 times, stays under 1.5 GB', () => {
  const script = `
    const size = 2048
    const base = { data: new Float32Array(size * size).fill(0.01), shape: [size, size] }
    const input = { data: new Float32Array(8 * size).fill(1), shape: [8, size] }
    for (let turn = 0; turn < 20; turn++) {
      const layers = []
      for (let i = 0; i < 64; i++) {
        const layer = new LoraLayer(base)
        layer.forward(input)
        layers.push(layer)
      }
    }
    console.log(JSON.stringify(process.resourceUsage().maxRSS / 1024))`
  expect(run(script)).toBeLessThan(1536)
})
