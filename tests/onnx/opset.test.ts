import { describe, expect, it } from 'vitest'
import { UnsupportedError } from '../../src/api/node.js'
import { AttributeProto_AttributeType as AttributeType, NodeProtoSchema } from '../../src/onnx/format/gen/onnx_pb.js'
import { create } from '../../src/onnx/format/protobuf.js'
import { type Attributes, makeAttribute } from '../../src/onnx/view/attributes.js'
import { Builder } from '../../src/onnx/view/builder.js'
import type { Graph } from '../../src/onnx/view/graph.js'
import { raiseOpset, TRAINING_OPSET } from '../../src/onnx/view/opset.js'
import { addInput, addOutput, DataType, emptyGraph, floats, openGraph, valuesOf } from './toolkit.js'

const x = floats(
  DataType.FLOAT,
  Array.from({ length: 24 }, (_, i) => Math.sin(i)),
  [2, 3, 4],
)

function single(opset: number, opType: string, attributes: Attributes, outputs = 1): Graph {
  const graph = emptyGraph(opset)
  addInput(graph, 'x', DataType.FLOAT)
  const { output } = new Builder(graph, 'old').node(opType, ['x'], attributes, outputs)
  for (const name of output) addOutput(graph, name, DataType.FLOAT)
  return graph
}

async function run(graph: Graph): Promise<{ dims: readonly number[]; values: number[] }[]> {
  const session = await openGraph(graph)
  const results = await session.run({ x })
  await session.dispose()
  return session.outputNames.map((name) => ({ dims: results[name].dims, values: valuesOf(results[name]) }))
}

describe('operators of set 11 mean the same in set 17', () => {
  it.each<[string, Attributes, number?]>([
    ['Unsqueeze', { axes: [0, 2] }],
    ['ReduceSum', { axes: [1], keepdims: 0 }],
    ['ReduceSum', {}],
    ['ReduceMean', { axes: [-1] }],
    ['Split', { axis: 2, split: [1, 3] }, 2],
    ['Split', { axis: 0 }, 2],
    ['Softmax', {}],
    ['Softmax', { axis: -1 }],
    ['Softmax', { axis: 2 }],
    ['LogSoftmax', { axis: 1 }],
    ['Dropout', { ratio: { float: 0.5 } }],
  ])('%s %j', async (opType, attributes, outputs) => {
    const graph = single(11, opType, attributes, outputs)
    const before = await run(graph)
    raiseOpset(graph)
    expect(graph.opset()).toBe(TRAINING_OPSET)
    expect(await run(graph)).toEqual(before)
  })

  it('Squeeze', async () => {
    const graph = emptyGraph(11)
    addInput(graph, 'x', DataType.FLOAT)
    const g = new Builder(graph, 'old')
    addOutput(graph, g.op('Squeeze', [g.op('Unsqueeze', ['x'], { axes: [1] })], { axes: [1] }), DataType.FLOAT)
    const before = await run(graph)
    raiseOpset(graph)
    expect(await run(graph)).toEqual(before)
  })
})

describe('a graph', () => {
  it.each([17, 22])('of set %d stays as it is', (opset) => {
    const graph = single(opset, 'Softmax', {})
    raiseOpset(graph)
    expect(graph.opset()).toBe(opset)
    expect(graph.nodes[0].attribute).toEqual([])
  })

  it('that is older is refused', () => {
    expect(() => raiseOpset(single(9, 'Relu', {}))).toThrow(UnsupportedError)
    expect(() => raiseOpset(single(9, 'Relu', {}))).toThrow(/expected 11 or newer, got 9/)
  })

  it('with old operators inside of others is refused', () => {
    const graph = emptyGraph(12)
    const g = { node: [{ opType: 'Squeeze', input: ['x'], attribute: [makeAttribute('axes', [0])] }] }
    graph.add(
      create(NodeProtoSchema, {
        name: 'choice',
        opType: 'If',
        attribute: [{ name: 'then_branch', type: AttributeType.GRAPH, g }],
      }),
    )
    expect(() => raiseOpset(graph)).toThrow(/node choice \(If\): Squeeze of an old operator set inside of it/)
  })
})
