// Trains the exports of seq2seq_dynamo.py, and compares them with optimum's exports of the same models.
// Usage: node scripts/golden/seq2seq_dynamo.mjs OUT

import assert from 'node:assert/strict'
import { train } from '../../dist/api/node.js'

const [out] = process.argv.slice(2)
const data = [
  { input: 'And the people said unto him', target: 'the sea was calm' },
  { input: 'In the beginning', target: 'there was the word, and the word was good' },
]
for (const [name, targetModules] of [
  ['t5', ['q', 'v', 'wi_0', 'wo']],
  ['bart', ['q_proj', 'v_proj', 'fc1', 'fc2']],
]) {
  const config = { rank: 2, alpha: 8, init: 'random', seed: 3, targetModules }
  const run = (model) => train({ model, data, config, task: 'seq2seq', maxSteps: 5, batchSize: 2, learningRate: 1e-3 })
  const [dynamo, usual] = [await run(`${out}/${name}`), await run(`tests/golden/graphs/${name}`)]
  assert.deepEqual(
    dynamo.adapter.parts('linear').map((part) => part.name),
    usual.adapter.parts('linear').map((part) => part.name),
  )
  const losses = dynamo.report.trainLoss.map((loss, i) => Math.abs(loss - usual.report.trainLoss[i]))
  const weights = dynamo.adapter.parts('linear').flatMap(({ name, weightA, weightB }) => {
    const expected = usual.adapter.get(name)
    return [
      [weightA, expected.weightA],
      [weightB, expected.weightB],
    ].map(([a, b]) => Math.max(...a.data.map((value, i) => Math.abs(value - b.data[i]))))
  })
  const [loss, weight] = [Math.max(...losses), Math.max(...weights)]
  console.log(`${name}: losses differ by ${loss.toExponential(1)}, weights by ${weight.toExponential(1)}`)
  assert(loss < 1e-4 && weight < 1e-4, name)
}
