// LoRA+ takes the same steps as PEFT's optimizer.

import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { loadAdapter, type Model, train as trainByOptions } from '../../src/api/node.js'
import { loraPlusRates } from '../../src/train/engine/parameters.js'
import { train } from '../../src/train/train.js'
import { openModel } from '../run/models.js'

const encoder = 'tests/golden/text-classification/encoder'
const { learningRate, ratio, losses } = JSON.parse(readFileSync('tests/golden/lora-plus/golden.json', 'utf8'))
const { rows, maxLength } = JSON.parse(readFileSync(`${encoder}/golden/golden.json`, 'utf8'))

let model: Model
beforeAll(async () => {
  model = await openModel(encoder)
})
afterAll(() => model.close())

it.each([1, ratio])('takes the steps of PEFT: ratio %s', async (loraPlusRatio) => {
  const { report } = await train({
    model,
    task: 'text-classification',
    data: rows,
    adapter: await loadAdapter(`${encoder}/golden/adapter-init`),
    batchSize: rows.length,
    maxSteps: losses[1].length,
    epochs: 1,
    maxLength,
    learningRate,
    loraPlusRatio,
    schedule: 'constant',
    warmupRatio: 0,
    maxGradNorm: 0,
    threads: 1,
  })
  report.trainLoss.forEach((loss, i) => void expect(loss).toBeCloseTo(losses[loraPlusRatio][i], 4))
})

it('is for B and for vectors', async () => {
  const parameters = [
    { name: 'q.A', shape: [2, 4] },
    { name: 'q.B', shape: [2, 4] },
    { name: 'classifier.weight', shape: [3, 4] },
    { name: 'classifier.bias', shape: [3] },
  ]
  expect(loraPlusRates(parameters, 16)).toEqual([1, 16, 1, 16])
  expect(loraPlusRates(parameters)).toEqual([1, 1, 1, 1])
  const data = [{ text: 'a', label: 'b' }]
  const wrong = trainByOptions({ model, task: 'text-classification', data, loraPlusRatio: 0.5 })
  await expect(wrong).rejects.toThrow(/loraPlusRatio.*in \[1, 1000\]/)
})
