// One LoRA layer, trained by hand: it learns to turn a fixed linear map into another that differs by a rank-1 matrix.

import { LoraLayer } from 'lowrank'

const baseWeight = [
  [1, 0, 0],
  [0, 1, 0],
] // W (d 2, k 3)
const target = [
  [1, 0.5, -0.5],
  [0, 0, 1],
] // W + [0.5; -1] · [0, 1, -1]
const input = [
  [1, 0, 0],
  [0, 1, 0],
  [0, 0, 1],
  [1, 1, 1],
] // (n 4, k 3)
const wanted = input.flatMap((x) => target.map((row) => row.reduce((sum, w, i) => sum + w * x[i], 0))) // (n, d)

const layer = new LoraLayer(baseWeight, { rank: 1, alpha: 1, seed: 1 })
const descend = (weight, gradient) => weight.data.set(weight.data.map((value, i) => value - 0.1 * gradient.data[i]))

for (let step = 0; step <= 300; step++) {
  const output = layer.forward(input) // (n, d)
  const error = { data: output.data.map((value, i) => value - wanted[i]), shape: output.shape }
  const gradients = layer.backward(error) // of half the squared error
  descend(layer.weightA, gradients.weightA)
  descend(layer.weightB, gradients.weightB)
  const loss = error.data.reduce((sum, e) => sum + e * e, 0)
  if (step % 100 === 0) console.log(`step ${step}: squared error ${loss.toExponential(2)}`)
}

layer.merge()
console.log('merged weight:', Array.from(layer.baseWeight.data, (value) => value.toFixed(3)).join(' '))
console.log(`${layer.trainableParams()} trained parameters; the weight has ${baseWeight.flat().length}`)
if (layer.baseWeight.data.some((value, i) => Math.abs(value - target.flat()[i]) > 1e-2)) throw new Error('not learnt')
