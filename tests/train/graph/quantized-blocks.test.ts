import { expect, it } from 'vitest'
import { Random } from '../../../src/core/base/random.js'
import { findProduct } from '../../../src/model/match/forms/forms.js'
import { TensorProtoSchema } from '../../../src/onnx/format/gen/onnx_pb.js'
import { create } from '../../../src/onnx/format/protobuf.js'
import type { GradientContext } from '../../../src/onnx/gradients/context.js'
import { ShapeMap } from '../../../src/onnx/shapes/shapes.js'
import { Builder } from '../../../src/onnx/view/builder.js'
import { quantizedGradient } from '../../../src/train/graph/quantized.js'
import {
  addInput,
  addOutput,
  DataType,
  emptyGraph,
  floats,
  floatTensor,
  normals,
  openGraph,
} from '../../onnx/toolkit.js'

// An output layer that is wider than all golden layers. Its vocabulary takes two blocks, the second of them smaller.
const [n, k, d, BLOCK] = [2, 32, 150_000, 16]
const BLOCKS = k / BLOCK

it.each([
  { opset: 17, hasZeroPoints: false },
  { opset: 21, hasZeroPoints: true },
])('a large weight is made in blocks: $opset, zero points $hasZeroPoints', async ({ opset, hasZeroPoints }) => {
  const random = new Random(1, 'weights')
  const bytes = (count: number) => Uint8Array.from({ length: count }, () => random.uniform() * 256)
  const graph = emptyGraph(opset)
  const packed = (name: string, dims: number[]) => {
    const rawData = bytes(dims.reduce((product, dim) => product * dim, 1))
    graph.addInitializer(create(TensorProtoSchema, { name, dataType: DataType.UINT8, dims: dims.map(BigInt), rawData }))
  }
  packed('weight', [d, BLOCKS, BLOCK / 2])
  packed('zero points', [(d * BLOCKS) / 2])
  const scales = Array.from({ length: d * BLOCKS }, () => 0.5 + random.uniform())
  graph.addInitializer(floatTensor('scales', DataType.FLOAT, scales, [d * BLOCKS]))
  addInput(graph, 'x', DataType.FLOAT, ['n', k])
  addInput(graph, 'dy', DataType.FLOAT, ['m', d])
  const g = new Builder(graph, 'test')
  const inputs = ['x', 'weight', 'scales', ...(hasZeroPoints ? ['zero points'] : [])]
  const node = g.node('com.microsoft:MatMulNBits', inputs, { K: k, N: d, bits: 4, block_size: BLOCK })
  const outputs = node.output
  const shapes = new ShapeMap([
    ['x', { dims: [n, k], second: [n + 1, k] }],
    [outputs[0], { dims: [n, d], second: [n + 1, d] }],
  ])
  const { rule } = quantizedGradient(findProduct(graph, node)!)!
  const context: GradientContext = { g, node, inputs, outputs, dys: ['dy'], dy: 'dy', shapes }
  const dx = rule(context)[0]!()
  addOutput(graph, outputs[0], DataType.FLOAT)
  addOutput(graph, dx, DataType.FLOAT)

  const sizes = graph.nodes
    .filter(({ opType }) => opType === 'DequantizeLinear')
    .map(({ input }) => graph.constant(input[0])!.dims.reduce((product, dim) => product * Number(dim), 1))
  expect(sizes).toHaveLength(2)
  expect(Math.max(...sizes)).toBeLessThanOrEqual(2 ** 22)

  const session = await openGraph(graph)
  const dy = normals(random, [n, d])
  const identity = floats(
    DataType.FLOAT,
    Array.from({ length: k * k }, (_, i) => (i % (k + 1) === 0 ? 1 : 0)),
    [k, k],
  )
  const results = await session.run({ x: identity, dy })
  await session.dispose()
  // ONNX Runtime's own product of the identity by the weight: Wᵀ (k, d).
  const weight = results[outputs[0]].data as Float32Array
  const [got, rows] = [results[dx].data as Float32Array, dy.data as Float32Array]
  const [expected, size] = [new Float64Array(n * k), new Float64Array(n * k)]
  for (let i = 0; i < n * k; i++) {
    for (let row = 0; row < d; row++) {
      const term = rows[Math.floor(i / k) * d + row] * weight[(i % k) * d + row]
      expected[i] += term
      size[i] += term * term
    }
  }
  got.forEach((value, i) => void expect(Math.abs(value - expected[i])).toBeLessThan(1e-4 * Math.sqrt(size[i])))
})
