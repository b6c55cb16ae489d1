import { describe, expect, it } from 'vitest'
import { NodeDirectory } from '../../src/files/io/node/files.js'
import { findLinears } from '../../src/model/match/linears.js'
import { type ModelProto, ModelProtoSchema } from '../../src/onnx/format/gen/onnx_pb.js'
import { loadOnnx, serializeModel } from '../../src/onnx/format/model.js'
import { fromBinary } from '../../src/onnx/format/protobuf.js'
import { loadNodeRuntime } from '../../src/onnx/runtime/node/runtime.js'
import type { SessionOpener } from '../../src/onnx/runtime/runtime.js'
import { isStatic, probeShapes } from '../../src/onnx/shapes/shapes.js'
import { Builder } from '../../src/onnx/view/builder.js'
import { readGraph } from '../../src/onnx/view/graph.js'
import { buildTrainingGraph } from '../../src/train/graph/training-graph.js'
import { causalOf } from '../model/golden.js'
import { addInput, addOutput, DataType, emptyGraph, floats, floatTensor } from './toolkit.js'

const runtime = await loadNodeRuntime()

describe('shapes by running', () => {
  const graph = emptyGraph(17)
  const g = new Builder(graph, 'test')
  addInput(graph, 'x', DataType.FLOAT)
  graph.addInitializer(floatTensor('w', DataType.FLOAT, Array(12).fill(1), [3, 4]))
  const y = g.matmul('x', 'w')
  const shape = g.shape(y)
  const width = g.op('Gather', [shape, g.int([2])])
  addOutput(graph, y, DataType.FLOAT)
  const zeros = (dims: number[]) => ({ x: floats(DataType.FLOAT, Array(dims[0] * dims[1] * 3).fill(0), dims) })
  const shapes = probeShapes(graph, (model) => runtime.createSession({ graph: serializeModel(model) }), [
    zeros([2, 3, 3]),
    zeros([5, 7, 3]),
  ])

  it('tell static dimensions from others', async () => {
    const result = await shapes
    expect(result.get('x')).toEqual({ dims: [2, 3, 3], second: [5, 7, 3] })
    expect(result.get(y)).toEqual({ dims: [2, 3, 4], second: [5, 7, 4] })
    expect(result.get('w')).toEqual({ dims: [3, 4], second: [3, 4] })
    expect(isStatic(result.get(y)!, -1)).toBe(true)
    expect(isStatic(result.get(y)!, 0)).toBe(false)
  })

  it('read small integer tensors', async () => {
    const result = await shapes
    expect(result.contents.get(shape)).toEqual({ value: [2, 3, 4], second: [5, 7, 4] })
    expect(result.contents.get(width)).toEqual({ value: [4], second: [4] })
    expect(result.contents.has(y)).toBe(false)
  })

  it('leave the graph as it was', async () => {
    await shapes
    expect(graph.outputs.map(({ name }) => name)).toEqual([y])
    expect(graph.nodes.map(({ opType }) => opType)).toEqual(['MatMul', 'Shape', 'Gather'])
  })

  it('run the whole graph where a shape depends on what weights compute', async () => {
    const hidden = g.mul(y, y)
    const places = g.op('NonZero', [hidden])
    graph.outputs = []
    addOutput(graph, places, DataType.INT64)
    const ones = (dims: number[]) => ({ x: floats(DataType.FLOAT, Array(dims[0] * dims[1] * 3).fill(1), dims) })
    const open = (model: ModelProto) => runtime.createSession({ graph: serializeModel(model) })
    const result = await probeShapes(graph, open, [ones([2, 3, 3]), ones([5, 7, 3])], new Set([hidden, places]))
    expect(result.get(hidden)).toEqual({ dims: [2, 3, 4], second: [5, 7, 4] })
    expect(result.get(places)).toEqual({ dims: [3, 24], second: [3, 140] })
  })
})

it.each([
  ['a matrix', [2, 3, 40], [40, 30]],
  ['experts', [1, 3, 40], [5, 40, 30]],
  ['all rows and each expert', [2, 1, 3, 40], [5, 40, 30]],
  ['more axes', [5, 3, 40], [2, 1, 40, 30]],
  ['as many axes', [2, 5, 3, 40], [2, 5, 40, 30]],
])('products with large weights have the shapes that a run gives them: %s', async (_, left, right) => {
  const graph = emptyGraph(17)
  addInput(graph, 'x', DataType.FLOAT)
  const count = right.reduce((product, dim) => product * dim, 1)
  graph.addInitializer(floatTensor('w', DataType.FLOAT, Array(count).fill(1), right))
  const y = new Builder(graph, 'test').matmul('x', 'w')
  addOutput(graph, y, DataType.FLOAT)
  const points = [left, left.with(-2, 7)].map((dims) => {
    return { x: floats(DataType.FLOAT, Array(dims.reduce((product, dim) => product * dim, 1)).fill(0), dims) }
  })
  const opened: ModelProto[] = []
  const open = (model: ModelProto) => {
    opened.push(model)
    return runtime.createSession({ graph: serializeModel(model) })
  }
  const shapes = await probeShapes(graph, open, [points[0], points[1]])
  expect(opened).toEqual([])
  const session = await open(graph.toModel())
  for (const [i, axis] of (['dims', 'second'] as const).entries()) {
    expect(shapes.get(y)?.[axis]).toEqual((await session.run(points[i]))[y].dims)
  }
  await session.dispose()
})

it('follow the branch of an If that short texts take, without a run of the whole model', async () => {
  const onnx = await loadOnnx(new NodeDirectory('tests/golden/long-rope'), 'onnx/model.onnx')
  const layers = findLinears(readGraph(onnx)).map(({ name, d, k }) => ({ name, d, k, rank: 2, scaling: 1 }))
  const sizes: (number | undefined)[] = []
  const opener: SessionOpener = {
    createSession(model, options) {
      sizes.push(fromBinary(ModelProtoSchema, model.graph).graph?.node.length)
      return runtime.createSession(model, options)
    },
  }
  const { proto } = await buildTrainingGraph(onnx, opener, causalOf(onnx), { layers })
  expect(proto.graph?.node.map(({ opType }) => opType)).toContain('If')
  expect(new Set(sizes)).toEqual(new Set([1]))
  await onnx.close()
})
