// What only a process of its own can show: that it ends, what it holds, and how layers compute where WebAssembly is
// forbidden.

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
 * Runs a script with the bundle's exports in scope, and `product(n)`, which gives an n × n × n product of fixed
 * matrices.
 */
function run(script: string): unknown {
  const source = `
    import { configureKernels, defaultKernels, disposeKernels, LoraLayer } from '${pathToFileURL(join(folder, 'child.mjs'))}'
    function product(n, out = new Float32Array(n * n)) {
      const a = Float32Array.from({ length: n * n }, (_, i) => Math.sin(i))
      defaultKernels().gemm({ m: n, n, k: n, a, b: a, transposeB: true, out })
      return out
    }
    ${script}`
  const options = { input: source, encoding: 'utf8', timeout: 250_000 } as const
  return JSON.parse(execFileSync(process.execPath, ['--input-type=module'], options))
}

test('idle threads do not keep a process alive, and kernels that were disposed of start again', () => {
  const script = `
    configureKernels({ threads: 3 })
    const first = product(300)[7]
    await new Promise((resolve) => setTimeout(resolve, 200))
    disposeKernels()
    const second = product(300)[7]
    console.log(JSON.stringify(first === second))`
  expect(run(script)).toBe(true)
})

test('any number of threads gives the same bytes', () => {
  const script = `
    const results = []
    for (const threads of [1, 2, 4]) {
      configureKernels({ threads })
      results.push(product(500))
      // The workers help from the moment they are there.
      await new Promise((resolve) => setTimeout(resolve, 300))
      for (let i = 0; i < 3; i++) results.push(product(500))
    }
    console.log(JSON.stringify(results.map((out) => Buffer.compare(Buffer.from(out.buffer), Buffer.from(results[0].buffer)))))`
  expect(run(script)).toEqual(Array(12).fill(0))
})

test('large products use threads, small ones and those of one thread do not', () => {
  const script = `
    const module = process.getBuiltinModule('worker_threads')
    const { Worker } = module
    let started = 0
    const counted = class extends Worker {
      constructor(...args) {
        super(...args)
        started++
      }
    }
    // How many blocks the calling thread computes.
    let own = 0
    const { Instance } = WebAssembly
    WebAssembly.Instance = function (...args) {
      const { exports } = new Instance(...args)
      return { exports: { ...exports, multiply: (job) => (own++, exports.multiply(job)) } }
    }
    const blocks = () => {
      own = 0
      product(500)
      return own
    }
    const startedFor = (threads, n) => {
      configureKernels({ threads })
      started = 0
      product(n)
      return started
    }
    // Workers that never come leave all blocks to the caller.
    module.Worker = class {
      unref() {}
      async terminate() {}
    }
    configureKernels({ threads: 2 })
    const all = blocks()
    module.Worker = counted
    const workers = Math.min(2, process.getBuiltinModule('os').availableParallelism()) - 1
    const result = { workers, one: startedFor(1, 500), small: startedFor(2, 100), large: startedFor(2, 500) }
    let isShared = false
    for (let i = 0; workers > 0 && !isShared && i < 300; i++) {
      isShared = blocks() < all
      await new Promise((resolve) => setTimeout(resolve, 1))
    }
    console.log(JSON.stringify({ ...result, isShared }))`
  const { workers, ...result } = run(script) as { workers: number }
  expect(result).toEqual({ one: 0, small: 0, large: workers, isShared: workers > 0 })
})

test('where WebAssembly is forbidden, products are computed by the reference loops', () => {
  const script = `
    const { Module } = WebAssembly
    WebAssembly.Module = class {
      constructor() {
        throw new WebAssembly.CompileError('blocked by Content Security Policy')
      }
    }
    const name = defaultKernels().name
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
