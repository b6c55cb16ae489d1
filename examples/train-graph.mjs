// Trains a network that PyTorch exported: lowrank adds gradients to the graph, and plain ONNX Runtime runs them. The
// network learns which of two spirals a point belongs to.

import { fileURLToPath } from 'node:url'
import { gradients } from 'lowrank/onnx'
import * as ort from 'onnxruntime-node'

const floats = (data, dims) => new ort.Tensor('float32', Float32Array.from(data), dims)
const labelsOf = (data) => new ort.Tensor('int64', BigInt64Array.from(data, BigInt), [data.length])

const layers = ['hidden', 'between', 'out']
const training = await gradients(fileURLToPath(new URL('spirals.onnx', import.meta.url)), {
  of: 'loss',
  by: layers.flatMap((layer) => [`${layer}.weight`, `${layer}.bias`]),
  // Two sizes of batches tell which lengths of the graph vary.
  feeds: (size) => ({ points: floats(Array(2 * size).fill(0), [size, 2]), labels: labelsOf(Array(size).fill(0)) }),
})
const session = await ort.InferenceSession.create(training.graph)

const points = []
const labels = []
for (let i = 0; i < 100; i++) {
  for (const label of [0, 1]) {
    const angle = 0.4 + i * 0.05 + label * Math.PI
    const radius = 0.3 + i * 0.015
    points.push(radius * Math.cos(angle), radius * Math.sin(angle))
    labels.push(label)
  }
}
const batch = { points: floats(points, [labels.length, 2]), labels: labelsOf(labels) }

// Adam, with the weights that became inputs of the graph
const moments = {}
let right = 0
for (let step = 1; step <= 600; step++) {
  const weights = {}
  for (const [name, { data, dims }] of Object.entries(training.weights)) weights[name] = floats(data, dims)
  const results = await session.run({ ...batch, ...weights })
  for (const [name, { data }] of Object.entries(training.weights)) {
    const gradient = results[training.gradients[name]].data
    moments[name] ??= { mean: new Float64Array(data.length), square: new Float64Array(data.length) }
    const { mean, square } = moments[name]
    for (let i = 0; i < data.length; i++) {
      mean[i] += 0.1 * (gradient[i] - mean[i])
      square[i] += 0.001 * (gradient[i] ** 2 - square[i])
      data[i] -= (0.02 * (mean[i] / (1 - 0.9 ** step))) / (Math.sqrt(square[i] / (1 - 0.999 ** step)) + 1e-8)
    }
  }
  const { data: logits } = results.logits
  right = labels.filter((label, i) => logits[2 * i + label] > logits[2 * i + 1 - label]).length
  if (step % 200 === 1 || step === 600) {
    console.log(`step ${step}: loss ${results.loss.data[0].toFixed(3)}, ${right} of ${labels.length} points right`)
  }
}
if (right < 195) throw new Error('not learnt')
