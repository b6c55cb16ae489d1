// Factors of several blocks give the whole product.

import { expect, it } from 'vitest'
import { type LoraConfigInput, MemoryDirectory } from '../../../src/api/node.js'
import { adapter, base, expectedWeight, floats, mergeCheckpoint, readTensors } from '../toolkit.js'

it.each<[string, number, [d: number, k: number], LoraConfigInput]>([
  ['rows of A', 40, [20, 4096], {}],
  ['parts of the rows of A', 2, [3, 150_001], {}],
  ['rows of B, where the weight is stored (k, d)', 40, [4096, 20], { fanInFanOut: true }],
  ['rows of B for a left factor', 40, [4096, 20], {}],
])('%s', async (_, rank, [d, k], config) => {
  const [rows, columns] = config.fanInFanOut ? [k, d] : [d, k]
  const from = await base([['m.weight', 'fp32', [rows, columns]]])
  const adapters = [3, 4].map((seed) => adapter({ m: [d, k] }, { rank, alpha: rank, ...config }, seed))
  const out = new MemoryDirectory({}, 'out')
  await mergeCheckpoint(from, adapters, out)
  const before = (await readTensors(from)).get('m.weight')!
  const exact = floats({
    ...before,
    bytes: expectedWeight(
      before,
      adapters.map((each) => [each, 'm'] as const),
    ),
  })
  const merged = floats((await readTensors(out)).get('m.weight')!)
  const furthest = Array.from(merged).reduce((most, value, i) => Math.max(most, Math.abs(value - exact[i])), 0)
  // Sums of 80 products of about 0.04, in f32.
  expect(furthest).toBeLessThan(1e-5)
})
