// The Jacobian of a network: how each output changes with each input. A seed chooses the output, and the rows agree
// with small steps of the inputs.

import { fileURLToPath } from 'node:url'
import { gradients } from 'lowrank/onnx'
import * as ort from 'onnxruntime-node'

const floats = (data, dims) => new ort.Tensor('float32', Float32Array.from(data), dims)
const labels = (size) => new ort.Tensor('int64', new BigInt64Array(size), [size])

const result = await gradients(fileURLToPath(new URL('spirals.onnx', import.meta.url)), {
  of: 'logits',
  by: ['points'],
  seed: 'direction',
  feeds: (size) => ({ points: floats(Array(2 * size).fill(0), [size, 2]), labels: labels(size) }),
})
const session = await ort.InferenceSession.create(result.graph)
const run = (point, direction) =>
  session.run({ points: floats(point, [1, 2]), labels: labels(1), direction: floats(direction, [1, 2]) })

const point = [0.5, -0.25]
const directions = [
  [1, 0],
  [0, 1],
]
const step = 1e-2
for (const [output, direction] of directions.entries()) {
  const row = (await run(point, direction))[result.gradients.points].data
  console.log(`d logit ${output} / d point = ${Array.from(row, (slope) => slope.toFixed(4)).join(', ')}`)
  for (const [input, along] of directions.entries()) {
    const at = async (sign) => {
      const moved = point.map((value, i) => value + sign * step * along[i])
      return (await run(moved, direction)).logits.data[output]
    }
    const slope = ((await at(1)) - (await at(-1))) / (2 * step)
    if (Math.abs(slope - row[input]) > 1e-3) throw new Error(`small steps say ${slope}`)
  }
}
