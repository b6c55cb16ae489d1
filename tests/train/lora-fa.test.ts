// LoRA-FA: the steps of PEFT's optimizer, an A that stays, and a backward pass that reads no inputs of layers.

import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { MemoryDirectory } from '../../src/base/bytes.js'
import { ConfigError } from '../../src/base/errors.js'
import type { Model } from '../../src/graph/model-folder.js'
import { NodeDirectory } from '../../src/io/node/files.js'
import { product } from '../../src/linalg/product.js'
import { LoraAdapter } from '../../src/lora/adapter.js'
import { loadAdapter } from '../../src/peft/adapter-folder.js'
import { AdamW } from '../../src/train/optimizer.js'
import type { TrainInput } from '../../src/train/options.js'
import { gradientFactors } from '../../src/train/parameters.js'
import { train } from '../../src/train/train.js'
import { deviation, tensorsIn, tensorsOf } from '../golden.js'
import { openModel } from '../infer/models.js'
import { abortAt, WEIGHTS } from './tiny.js'

const encoder = 'tests/golden/text-classification/encoder'
const golden = 'tests/golden/lora-fa'
const { learningRate, losses } = JSON.parse(readFileSync(`${golden}/golden.json`, 'utf8'))
const { rows, maxLength } = JSON.parse(readFileSync(`${encoder}/golden/golden.json`, 'utf8'))

let model: Model
beforeAll(async () => {
  model = await openModel(encoder)
})
afterAll(() => model.close())

const start = () => loadAdapter(new NodeDirectory(`${encoder}/golden/adapter-init`))

const steps = (options: Partial<TrainInput> = {}) =>
  train({
    model,
    task: 'text-classification',
    data: rows,
    batchSize: rows.length,
    maxSteps: losses.exact.length,
    maxLength,
    learningRate,
    schedule: 'constant',
    warmupRatio: 0,
    maxGradNorm: 0,
    threads: 1,
    loraFa: true,
    ...options,
  })

it('takes the steps of PEFT, and its A stays', async () => {
  const out = new MemoryDirectory()
  const { report } = await steps({ adapter: await start(), out })
  expect(deviation(report.trainLoss, losses.exact)).toBeLessThan(1e-5)
  // With the epsilon that PEFT has by default.
  expect(deviation(report.trainLoss, losses.steps)).toBeLessThan(3e-4)
  const saved = await tensorsIn(out, WEIGHTS)
  const first = await tensorsOf(`${encoder}/golden/adapter-init/${WEIGHTS}`)
  const wanted = await tensorsOf(`${golden}/after.safetensors`)
  expect([...wanted.keys(), ...[...first.keys()].filter((key) => key.includes('lora_A'))].sort()).toEqual(
    [...saved.keys()].sort(),
  )
  for (const [key, { data }] of saved) {
    if (key.includes('lora_A')) expect(data, key).toEqual(first.get(key)!.data)
    else expect(deviation(data, wanted.get(key)!.data), key).toBeLessThan(1e-4)
  }
  expect(report.trainableParams).toBe([...wanted.values()].reduce((sum, { data }) => sum + data.length, 0))
})

it('multiplies gradients by (A·Aᵀ)⁻¹/s²', () => {
  const adapter = new LoraAdapter({ rank: 2, alpha: 6 })
  const weightA = { data: Float64Array.of(1, 2, 0, 1, -1, 3), shape: [2, 3] as const }
  adapter.addFactors('q', weightA, { data: new Float64Array(8), shape: [4, 2] })
  const [none, factor] = gradientFactors(adapter, ['classifier.weight', 'q.B'])
  expect(none).toBeUndefined()
  const square = product(weightA, weightA, { transposeB: true, scale: 9 })
  const identity = product({ data: factor!, shape: [2, 2] }, square)
  expect(deviation(identity.data, [1, 0, 0, 1])).toBeLessThan(1e-6)
  // Directions that A does not have get no gradient.
  adapter.addFactors('k', { data: Float64Array.of(1, 0, 0, 0, 0, 0), shape: [2, 3] }, adapter.layer('q').weightB)
  const [alone] = gradientFactors(adapter, ['k.B'])
  expect(deviation(alone!, [1 / 9, 0, 0, 0])).toBeLessThan(1e-6)
})

it('gives AdamW the product from the left', () => {
  const parameter = new Float32Array(6)
  const factors = [Float64Array.of(0, 2, -1, 0)]
  new AdamW([parameter], { factors }).step([Float32Array.of(1, 1, 1, -1, 1, -1)], 0.5)
  expect(Array.from(parameter, Math.sign)).toEqual([1, -1, 1, 1, 1, 1])
})

it('resumes to the same bytes, with dropout and accumulation', async () => {
  const [whole, broken] = [new MemoryDirectory(), new MemoryDirectory()]
  const options = { config: { rank: 2, dropout: 0.2 }, maxSteps: 4, batchSize: 3, gradientAccumulation: 2 }
  const { report } = await steps({ ...options, out: whole })
  expect(report.trainLoss[3]).toBeLessThan(report.trainLoss[0])
  await steps({ ...options, out: broken, ...abortAt(2) })
  await expect(steps({ ...options, out: broken, resume: true, loraFa: false })).rejects.toThrow(/another loraFa/)
  await steps({ ...options, out: broken, resume: true })
  expect(broken.files.get(WEIGHTS)).toEqual(whole.files.get(WEIGHTS))
})

it('is refused together with DoRA', async () => {
  await expect(steps({ config: { useDora: true } })).rejects.toThrow(ConfigError)
  await expect(steps({ config: { useDora: true } })).rejects.toThrow('loraFa: not together with DoRA')
})
