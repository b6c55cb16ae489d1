import { describe, expect, it } from 'vitest'
import { serializeModel } from '../../src/onnx/format/model.js'
import { loadNodeRuntime } from '../../src/onnx/runtime/node/runtime.js'
import { declareShapes, plainShapes } from '../../src/onnx/shapes/plain-shapes.js'
import { probeShapes } from '../../src/onnx/shapes/shapes.js'
import { Builder } from '../../src/onnx/view/builder.js'
import type { Graph } from '../../src/onnx/view/graph.js'
import { addInput, addOutput, DataType, emptyGraph, floats, openGraph, valuesOf } from './toolkit.js'

const runtime = await loadNodeRuntime()

const feedsOf = (batch: number, sequence: number) => {
  const dims = [batch, sequence, 6]
  return {
    x: floats(
      DataType.FLOAT,
      Array.from({ length: batch * sequence * 6 }, (_, i) => i),
      dims,
    ),
  }
}

/** Computes a dimension of x as a vector, in the way of exporters. */
function lengthOf(g: Builder, axis: number): string {
  return g.unsqueeze(g.op('Gather', [g.shape('x'), g.int(axis)]), [0])
}

async function plain(graph: Graph, lengths = [0, 1].map((axis) => ({ input: 'x', axis }))) {
  const points = [feedsOf(2, 3), feedsOf(5, 7)] as const
  const shapes = await probeShapes(graph, (model) => runtime.createSession({ graph: serializeModel(model) }), [
    ...points,
  ])
  const run = async () => {
    const session = await openGraph(graph)
    const results = await session.run(feedsOf(4, 3))
    await session.dispose()
    return graph.outputs.map(({ name }) => ({ dims: results[name].dims, values: valuesOf(results[name]) }))
  }
  const before = await run()
  plainShapes(new Builder(graph, 'plain'), shapes, lengths)
  graph.prune()
  expect(await run()).toEqual(before)
  return { shapes, ops: graph.nodes.map(({ opType }) => opType) }
}

function start(build: (g: Builder) => string[]): Graph {
  const graph = emptyGraph(17)
  addInput(graph, 'x', DataType.FLOAT, ['b', 's', 6])
  for (const output of build(new Builder(graph, 'test'))) addOutput(graph, output, DataType.FLOAT)
  return graph
}

describe('targets', () => {
  it.each<[string, (g: Builder) => string[], string[]]>([
    [
      'with one length that differs are constants',
      (g) => [
        g.reshape('x', g.concat([lengthOf(g, 0), g.int([-1])], 0)),
        g.reshape('x', g.concat([g.op('Mul', [lengthOf(g, 0), lengthOf(g, 1)]), g.int([6])], 0)),
      ],
      ['Shape', 'Gather', 'Concat', 'Reshape', 'Reshape'],
    ],
    [
      'with two lengths share them',
      (g) => [
        g.reshape('x', g.concat([lengthOf(g, 0), lengthOf(g, 1), g.int([2]), g.int([3])], 0)),
        g.reshape('x', g.concat([lengthOf(g, 1), lengthOf(g, 0), g.int([6])], 0)),
      ],
      ['Shape', 'Gather', 'Shape', 'Gather', 'Concat', 'Reshape', 'Concat', 'Reshape'],
    ],
    [
      'of Expand say 1 where nothing changes',
      (g) => [g.expand(g.unsqueeze('x', [2]), g.concat([lengthOf(g, 0), lengthOf(g, 1), g.int([3]), g.int([6])], 0))],
      ['Unsqueeze', 'Expand'],
    ],
    [
      'like the shape of another value',
      (g) => [g.reshape(g.reshape('x', g.int([-1])), g.shape(g.neg('x')))],
      ['Reshape', 'Shape', 'Gather', 'Shape', 'Gather', 'Concat', 'Reshape'],
    ],
    ['that keep dimensions stay', (g) => [g.reshape('x', g.int([0, 0, 2, 3]))], ['Reshape']],
  ])('%s', async (_, build, ops) => {
    expect((await plain(start(build))).ops).toEqual(ops)
  })

  it('of lengths that nothing explains stay', async () => {
    const graph = start((g) => [g.reshape('x', g.concat([lengthOf(g, 0), lengthOf(g, 1), g.int([2]), g.int([3])], 0))])
    const before = graph.nodes.length
    expect((await plain(graph, [])).ops).toHaveLength(before)
  })
})

it('declares what is known, with names for what differs', async () => {
  const graph = start((g) => [g.reshape(g.neg('x'), g.concat([lengthOf(g, 0), lengthOf(g, 1), g.int([2, 3])], 0))])
  const { shapes } = await plain(graph)
  const values = graph.nodes
    .filter(({ opType }) => opType === 'Neg' || opType === 'Reshape')
    .map(({ output }) => output[0])
  declareShapes(graph, shapes, values, (dim) => (dim === 2 ? 'batch' : undefined))
  expect(graph.valueInfo).toEqual([])
  declareShapes(graph, shapes, values, (dim) => (dim === 2 ? 'batch' : 'sequence'))
  const dims = [...graph.valueInfo, graph.inputs[0]].map(({ type }) => {
    const value = type?.value
    return value?.case === 'tensorType' ? value.value.shape?.dim.map((dim) => dim.value.value) : undefined
  })
  expect(dims).toEqual([
    ['batch', 'sequence', 6n],
    ['batch', 'sequence', 2n, 3n],
    ['batch', 'sequence', 6n],
  ])
})
