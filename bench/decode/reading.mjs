// The lower bound in run.mjs: the least time that a token can take. One product in ONNX Runtime multiplies a row by a
// weight with as many bytes as all weights of the model, and so reads each byte once. Embeddings do not count, because
// a token reads a single row of them.

import * as ort from 'onnxruntime-node'
import { loadModel } from '../../dist/api/node.js'
import { ModelProtoSchema, TensorProto_DataType } from '../../dist/onnx/format/gen/onnx_pb.js'
import { create, toBinary } from '../../dist/onnx/format/protobuf.js'
import { readGraph } from '../../dist/onnx/view/graph.js'
import { measured } from './shared.mjs'

const [, , folder, dtype, tokens, threads] = process.argv
const model = await loadModel(folder, { dtype })
const parts = readGraph(model.onnx)
const SIZES = { [TensorProto_DataType.FLOAT]: 4, [TensorProto_DataType.FLOAT16]: 2 }
let total = 0
for (const [name, { dims, dataType }] of parts.initializers) {
  const isLookedUp = parts.consumers(name).every(({ opType }) => opType === 'Gather')
  if (dims.length > 1 && !isLookedUp) total += dims.reduce((all, size) => all * Number(size), SIZES[dataType] ?? 1)
}
await model.close?.()

/** The number of columns of the product, enough to keep every thread busy. */
const COLUMNS = 4096
const rows = Math.max(1, Math.round(total / 4 / COLUMNS))
const tensor = (name, dims) => ({
  name,
  type: {
    value: {
      case: 'tensorType',
      value: {
        elemType: TensorProto_DataType.FLOAT,
        shape: { dim: dims.map((size) => ({ value: { case: 'dimValue', value: BigInt(size) } })) },
      },
    },
  },
})
const graph = create(ModelProtoSchema, {
  irVersion: 8n,
  opsetImport: [{ domain: '', version: 17n }],
  graph: {
    name: 'reading',
    node: [{ opType: 'MatMul', input: ['x', 'weights'], output: ['y'] }],
    input: [tensor('x', [1, rows]), tensor('weights', [rows, COLUMNS])],
    output: [tensor('y', [1, COLUMNS])],
  },
})
const session = await ort.InferenceSession.create(toBinary(ModelProtoSchema, graph), {
  intraOpNumThreads: Number(threads),
  interOpNumThreads: 1,
})
const feeds = {
  x: new ort.Tensor('float32', new Float32Array(rows).fill(1), [1, rows]),
  weights: new ort.Tensor('float32', new Float32Array(rows * COLUMNS).fill(1e-3), [rows, COLUMNS]),
}

process.send('ready')
process.on('message', async () => {
  const steps = Number(tokens)
  const times = await measured(async () => {
    for (let i = 0; i < steps; i++) await session.run(feeds)
  })
  const { result: _, ...rest } = times
  process.send({ tokens: steps, steps, ...rest, inside: rest.seconds, text: '', bytes: 4 * rows * COLUMNS })
})
