// Weights of 2 bits: lowrank cannot read their values, but adapters run beside them.

import { expect, it } from 'vitest'
import { LoraAdapter } from '../../src/api/node.js'
import { abilitiesOf } from '../../src/model/match/forms/forms.js'
import { findLinears } from '../../src/model/match/linears.js'
import { TensorProtoSchema } from '../../src/onnx/format/gen/onnx_pb.js'
import { OnnxModel } from '../../src/onnx/format/model.js'
import { create } from '../../src/onnx/format/protobuf.js'
import { Builder } from '../../src/onnx/view/builder.js'
import { Graph } from '../../src/onnx/view/graph.js'
import { ModelSession } from '../../src/run/model-session.js'
import { addInput, addOutput, DataType, emptyGraph, floatTensor } from '../onnx/toolkit.js'
import { inThread } from './models.js'

it('a session adds an adapter to a product by a weight of 2 bits', async () => {
  const [k, d] = [32, 4]
  const graph = emptyGraph(21)
  graph.requireOpset('com.microsoft', 1)
  addInput(graph, 'x', DataType.FLOAT, ['rows', 2, k])
  const bytes = Uint8Array.from({ length: (d * k) / 4 }, (_, i) => (i * 37) % 256)
  const packed = { name: 'w', dataType: DataType.UINT8, dims: [BigInt(d), 1n, BigInt(k / 4)], rawData: bytes }
  graph.addInitializer(create(TensorProtoSchema, packed))
  graph.addInitializer(floatTensor('scales', DataType.FLOAT, [0.5, 1, 2, 0.25], [d]))
  const g = new Builder(graph, 'model')
  const node = g.node('com.microsoft:MatMulNBits', ['x', 'w', 'scales'], { K: k, N: d, bits: 2, block_size: 32 })
  node.name = '/layer/q_proj/MatMul'
  graph.setOutput(node, 0, 'y')
  addOutput(graph, 'y', DataType.FLOAT)
  const onnx = new OnnxModel('two bits', 'model_q2.onnx', graph.toModel(), new Map())
  const [linear] = findLinears(new Graph(onnx.proto))
  expect(abilitiesOf(linear)).toMatchObject({ run: true, train: false, merge: ['branches'] })

  const own = new LoraAdapter({ rank: 1, alpha: 2 })
  const weightA = Float32Array.from({ length: k }, (_, i) => Math.cos(i))
  own.addFactors(
    'layer.q_proj',
    { data: weightA, shape: [1, k] },
    { data: Float32Array.of(1, -1, 2, 0.5), shape: [d, 1] },
  )
  const session = await ModelSession.open({ onnx, runtime: inThread }, { adapters: { own } })
  const x = Float32Array.from({ length: 2 * k }, (_, i) => Math.sin(i))
  const feeds = { x: { type: 'float32', data: x, dims: [1, 2, k] } as const }
  const [base, adapted] = [await session.run(feeds), await session.run(feeds, { adapter: 'own' })]
  const weight = (row: number, i: number) =>
    [0.5, 1, 2, 0.25][row] * (((bytes[row * (k / 4) + (i >> 2)] >> (2 * (i % 4))) & 3) - 2)
  for (const [token, row] of [0, 1, 2, 3].flatMap((column) => [
    [0, column],
    [1, column],
  ])) {
    const values = x.subarray(token * k, (token + 1) * k)
    const product = values.reduce((sum, value, i) => sum + value * weight(row, i), 0)
    expect(base.y.data[token * d + row]).toBeCloseTo(product, 4)
    const low = values.reduce((sum, value, i) => sum + value * weightA[i], 0)
    expect(Number(adapted.y.data[token * d + row])).toBeCloseTo(product + 2 * low * [1, -1, 2, 0.5][row], 4)
  }
  await session.dispose()
})
