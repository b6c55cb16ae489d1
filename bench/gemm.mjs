// GFLOP/s of matrix products with the kernels, with plain loops and with tfjs-wasm, also as a share of the speed of a
// loop that only multiplies and adds registers. Contestants take turns, and the best turn of each counts. A turn has
// several calls if a call takes only a few milliseconds.
//
//     npm run build && node bench/gemm.mjs [--tfjs FOLDER]
//
// --tfjs: a folder with node_modules/@tensorflow/{tfjs-core,tfjs-backend-wasm}.
import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { cpus } from 'node:os'
import { join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import asc from 'assemblyscript/asc'
import { referenceKernels } from '../dist/core/kernels/reference.js'
import { createWasmKernels } from '../dist/core/kernels/wasm.js'

const { values: options } = parseArgs({
  options: { tfjs: { type: 'string' }, turns: { type: 'string', default: '9' } },
})
const TURNS = Number(options.turns)
/**
 * How many independent sums to try: enough to hide the latency of a multiply-add, and few enough for 16 registers.
 */
const CHAINS = [8, 10, 12, 13]
const SHAPES = [
  { m: 512, n: 512, k: 512, bits: 32 },
  { m: 1024, n: 4096, k: 4096, bits: 32 },
  { m: 1024, n: 16, k: 4096, bits: 32 },
  { m: 512, n: 2048, k: 2048, bits: 32 },
  { m: 512, n: 2048, k: 2048, bits: 32, transposeB: false },
  { m: 512, n: 1024, k: 4096, bits: 64 },
]

/**
 * AssemblyScript source of loops that only compute sum·u + v. u and v are arguments, because V8 would build constants
 * again in each turn.
 */
function peakSource() {
  let source = `function madd<T>(a: v128, b: v128, c: v128): v128 {
    return v128.add<T>(v128.mul<T>(a, b), c)
  }\n`
  for (const type of ['f32', 'f64']) {
    for (const chains of CHAINS) {
      const sums = Array.from({ length: chains }, (_, i) => `s${i}`)
      source += `export function ${type}x${chains}(turns: i32, u: ${type}, v: ${type}): ${type} {
        const x = v128.splat<${type}>(u)
        const y = v128.splat<${type}>(v)
        ${sums.map((sum, i) => `let ${sum} = v128.splat<${type}>(${i})`).join('\n')}
        do {
          ${sums.map((sum) => `${sum} = madd<${type}>(${sum}, x, y)`).join('\n')}
        } while (--turns)
        return v128.extract_lane<${type}>(${sums.reduce((all, sum) => `v128.add<${type}>(${all}, ${sum})`)}, 0)
      }\n`
    }
  }
  return source
}

async function peakLoops() {
  let bytes
  const { error } = await asc.main(['peak.ts', '-O3', '--runtime', 'stub', '--enable', 'simd', '-o', 'peak.wasm'], {
    readFile: (name) => (name === 'peak.ts' ? peakSource() : null),
    writeFile: (_, contents) => {
      bytes = contents
    },
    listFiles: () => [],
  })
  if (error) throw error
  return new WebAssembly.Instance(new WebAssembly.Module(bytes)).exports
}

async function tfjsProduct(folder) {
  if (folder === undefined) return undefined
  const require = createRequire(join(resolve(folder), 'index.js'))
  const tf = require('@tensorflow/tfjs-core')
  const wasm = require('@tensorflow/tfjs-backend-wasm')
  const files = join(resolve(folder), 'node_modules/@tensorflow/tfjs-backend-wasm/dist/')
  if (!existsSync(files)) throw new Error(`${files} is not there`)
  wasm.setWasmPaths(files)
  wasm.setThreadsCount(1)
  await tf.setBackend('wasm')
  await tf.ready()
  // tfjs's best case: operands are in its memory and not transposed, since it has no fast kernel for transposes.
  return ({ m, n, k, a, b }) => {
    const x = tf.tensor2d(a, [m, k])
    const y = tf.tensor2d(b, [k, n])
    return () => tf.tidy(() => void tf.matMul(x, y))
  }
}

function random(length, bits) {
  const values = bits === 64 ? new Float64Array(length) : new Float32Array(length)
  for (let i = 0; i < length; i++) values[i] = Math.random() - 0.5
  return values
}

/** A turn repeats short calls until it has this much work, so that the first calls with cold caches hardly count. */
const FLOPS_PER_TURN = 4e9

/** Lets contestants take turns, and returns the best GFLOP/s of each. */
async function race(contestants, turns) {
  const best = new Map()
  for (let turn = 0; turn < turns + 2; turn++) {
    for (const { name, flops, run, slow } of contestants) {
      if (slow && turn > 2) continue
      const calls = slow ? 1 : Math.ceil(FLOPS_PER_TURN / flops)
      const start = performance.now()
      for (let call = 0; call < calls; call++) run()
      const rate = (calls * flops) / (performance.now() - start) / 1e6
      if (turn >= 2 || slow) best.set(name, Math.max(best.get(name) ?? 0, rate))
      // Lets the engine put optimized code in place.
      await new Promise((done) => setTimeout(done, turn < 2 ? 50 : 0))
    }
  }
  return best
}

const cores = cpus()
console.log(`${cores[0].model}, ${cores.length} cores, Node ${process.version}`)
const tfjs = await tfjsProduct(options.tfjs)
const kernels = createWasmKernels()
const loops = await peakLoops()
const peaks = Object.entries(loops).flatMap(([name, loop]) => {
  if (typeof loop !== 'function') return []
  const [type, chains] = name.split('x')
  const turns = 200_000
  const flops = (type === 'f32' ? 8 : 4) * Number(chains) * turns
  for (let i = 0; i < 2000; i++) loop(100, 0.999, 0.001)
  return [{ name, flops, run: () => loop(turns, 0.999, 0.001) }]
})
console.log(`SIMD, GFLOP/s (share of the loop's)`)
for (const shape of SHAPES) {
  const { m, n, k, bits, transposeB = true } = shape
  const product = { m, n, k, transposeB, a: random(m * k, bits), b: random(k * n, bits), out: random(m * n, bits) }
  const flops = 2 * m * n * k
  const contestants = [
    ...peaks.filter(({ name }) => name.startsWith(`f${bits}`)),
    { name: 'one', flops, run: () => kernels.gemm(product) },
    { name: 'loops', flops, run: () => referenceKernels.gemm(product), slow: true },
  ]
  if (tfjs !== undefined && bits === 32) contestants.push({ name: 'tfjs', flops, run: tfjs(product) })
  if (flops > 1e10)
    contestants.splice(
      contestants.findIndex(({ name }) => name === 'loops'),
      1,
    )
  const best = await race(contestants, flops > 1e10 ? Math.ceil(TURNS / 3) : TURNS)
  const peak = Math.max(...CHAINS.map((chains) => best.get(`f${bits}x${chains}`)))
  const share = (name) => `${best.get(name).toFixed(1)} (${Math.round((best.get(name) / peak) * 100)} %)`
  const others = ['tfjs', 'loops'].filter((name) => best.has(name))
  const beside = others.map(
    (name) => `${name} ${best.get(name).toFixed(1)} (${(best.get('one') / best.get(name)).toFixed(1)} ×)`,
  )
  console.log(
    `f${bits} ${m}×${n}×${k} x·W${transposeB ? 'ᵀ' : ' '}: loop ${peak.toFixed(1)}, kernel ${share('one')}` +
      `${beside.length > 0 ? `, ${beside.join(', ')}` : ''}`,
  )
}
