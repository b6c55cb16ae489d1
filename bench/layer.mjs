// GFLOP/s of a LoraLayer's forward and backward passes beside plain products of the same size: n = 512, k = d = 2048,
// r = 16, f32. Contestants take turns, and the median of each counts.
//
//     npm run build && node bench/layer.mjs [--turns 15]
import { cpus } from 'node:os'
import { parseArgs } from 'node:util'
import { LoraLayer } from '../dist/api/index.js'
import { disposeKernels, gemm, kernelName } from '../dist/core/kernels/index.js'

const { values } = parseArgs({
  options: { turns: { type: 'string', default: '15' } },
})
const [n, d, k, r] = [512, 2048, 2048, 16]
const random = (rows, columns) => ({
  data: Float32Array.from({ length: rows * columns }, () => Math.random() - 0.5),
  shape: [rows, columns],
})

const layer = new LoraLayer(random(d, k), { rank: r })
layer.weightB = random(d, r)
const [input, gradOutput] = [random(n, k), random(n, d)]
const out = new Float32Array(n * d)
const weight = layer.baseWeight.data
const product = 2 * n * d * k
const branch = 2 * n * r * (d + k)
const contestants = {
  // x·Wᵀ, and dy·W
  product: [product, () => gemm({ m: n, n: d, k, a: input.data, b: weight, transposeB: true, out })],
  'product, W as it lies': [product, () => gemm({ m: n, n: k, k: d, a: gradOutput.data, b: weight, out })],
  forward: [product + branch, () => layer.forward(input)],
  backward: [product + 2 * branch, () => layer.backward(gradOutput)],
}
const times = Object.fromEntries(Object.keys(contestants).map((name) => [name, []]))
for (let turn = -2; turn < Number(values.turns); turn++) {
  for (const [name, [, run]] of Object.entries(contestants)) {
    const start = performance.now()
    run()
    if (turn >= 0) times[name].push(performance.now() - start)
  }
}
const rates = Object.fromEntries(
  Object.entries(contestants).map(([name, [operations]]) => {
    const sorted = times[name].sort((a, b) => a - b)
    return [name, operations / sorted[Math.floor(sorted.length / 2)] / 1e6]
  }),
)
console.log(`${cpus().length} × ${cpus()[0].model}, Node ${process.version}, ${kernelName()}`)
for (const [name, rate] of Object.entries(rates)) {
  const peer = name === 'backward' ? rates['product, W as it lies'] : rates.product
  console.log(`${name.padEnd(22)} ${rate.toFixed(1)} GFLOP/s (${((100 * rate) / peer).toFixed(0)} % of the product's)`)
}
disposeKernels()
