// Graphs with If: their branches are opened for reading and editing, and closed again when the graph is written.

import { InferenceSession, Tensor } from 'onnxruntime-node'
import { describe, expect, it } from 'vitest'
import { takeBranchWithoutCache } from '../../src/model/inputs/cache.js'
import { findLinears } from '../../src/model/match/linears.js'
import {
  type AttributeProto,
  AttributeProtoSchema,
  AttributeProto_AttributeType as AttributeType,
  GraphProtoSchema,
  type NodeProto,
  NodeProtoSchema,
  TensorProtoSchema,
} from '../../src/onnx/format/gen/onnx_pb.js'
import { serializeModel } from '../../src/onnx/format/model.js'
import { create } from '../../src/onnx/format/protobuf.js'
import { Builder } from '../../src/onnx/view/builder.js'
import { Graph } from '../../src/onnx/view/graph.js'
import { valueInfo } from '../../src/onnx/view/value-info.js'
import { openModel } from '../model/golden.js'
import { addInput, addOutput, DataType, emptyGraph } from './toolkit.js'

const node = (opType: string, input: string[], output: string[], attribute: AttributeProto[] = []) =>
  create(NodeProtoSchema, { name: output[0], opType, input, output, attribute })

function branch(name: string, nodes: NodeProto[], output: string, constants: Record<string, number> = {}) {
  const initializer = Object.entries(constants).map(([name, value]) =>
    create(TensorProtoSchema, { name, dataType: DataType.FLOAT, floatData: [value] }),
  )
  const g = create(GraphProtoSchema, { name, node: nodes, output: [valueInfo(output, DataType.FLOAT)], initializer })
  return create(AttributeProtoSchema, { name, type: AttributeType.GRAPH, g })
}

/** y = choice ? (deep ? x·2 + 1 : x) : x·3, with the same names in all branches. */
function nested(): Graph {
  const graph = emptyGraph(17)
  addInput(graph, 'x', DataType.FLOAT)
  addInput(graph, 'choice', DataType.BOOL)
  addInput(graph, 'deep', DataType.BOOL)
  const inner = node(
    'If',
    ['deep'],
    ['t'],
    [
      branch('then_branch', [node('Add', ['h', 'c'], ['u'])], 'u', { c: 1 }),
      branch('else_branch', [node('Identity', ['x'], ['u'])], 'u'),
    ],
  )
  const outer = node(
    'If',
    ['choice'],
    ['y'],
    [
      branch('then_branch', [node('Mul', ['x', 'c2'], ['h']), inner], 't', { c2: 2 }),
      branch('else_branch', [node('Mul', ['x', 'c2'], ['h'])], 'h', { c2: 3 }),
    ],
  )
  graph.add(outer)
  addOutput(graph, 'y', DataType.FLOAT)
  return new Graph(graph.toModel())
}

async function run(graph: Graph, x: number, choice: boolean, deep: boolean): Promise<number> {
  const session = await InferenceSession.create(serializeModel(graph.toModel()))
  const feeds: Record<string, Tensor> = { x: new Tensor('float32', [x], []) }
  if (session.inputNames.includes('choice')) feeds.choice = new Tensor('bool', [choice], [])
  if (session.inputNames.includes('deep')) feeds.deep = new Tensor('bool', [deep], [])
  const { y } = await session.run(feeds)
  await session.release()
  return (y.data as Float32Array)[0]
}

const CASES = [
  [true, true, 11],
  [true, false, 5],
  [false, true, 15],
] as const

describe('branches of If', () => {
  it.each(CASES)('choice %s, deep %s: the graph that is written gives %d for 5', async (choice, deep, y) => {
    expect(await run(nested(), 5, choice, deep)).toBe(y)
  })

  it('lie open in the list of nodes, under names that no other has', () => {
    const graph = nested()
    expect(graph.nodes.map(({ opType }) => opType)).toEqual(['Mul', 'Add', 'Identity', 'If', 'Mul', 'If'])
    const outputs = graph.nodes.flatMap(({ output }) => output)
    expect(new Set(outputs).size).toBe(outputs.length)
    expect([...graph.initializers.keys()]).toEqual(['c2', 'c', 'c2/else_branch'])
  })

  it('have their own names when the graph is written, and constants are beside them', () => {
    const { node: nodes, initializer } = nested().toModel().graph!
    expect(nodes.map(({ opType }) => opType)).toEqual(['If'])
    const [then, other] = nodes[0].attribute.map(({ g }) => g!)
    expect([then, other].map((g) => g.node.map(({ output }) => output[0]))).toEqual([['h', 't'], ['h']])
    expect(other.node[0].input).toEqual(['x', 'c2/else_branch'])
    expect(initializer).toHaveLength(3)
  })

  it('get the nodes that read their values, and the graph around them the others', async () => {
    const graph = nested()
    const g = new Builder(graph, 'new')
    for (const mul of graph.nodes.filter(({ opType }) => opType === 'Mul')) {
      const [output] = mul.output
      graph.setOutput(mul, 0, graph.freshName(`${output}/base`))
      graph.setOutput(g.node('Add', [mul.output[0], g.neg(g.neg('x'))]), 0, output)
    }
    const { node: nodes } = graph.toModel().graph!
    expect(nodes.map(({ opType }) => opType).sort()).toEqual(['If', 'Neg', 'Neg', 'Neg', 'Neg'])
    for (const [choice, deep, y] of CASES) expect(await run(graph, 5, choice, deep)).toBe(choice && !deep ? y : y + 5)
  })

  it('one can take the place of its If', async () => {
    const graph = nested()
    const outer = graph.nodes.at(-1)!
    graph.takeBranch(outer, 'then_branch')
    graph.prune({ inputs: true })
    expect(graph.inputs.map(({ name }) => name)).toEqual(['x', 'deep'])
    expect(await run(graph, 5, false, true)).toBe(11)
    expect(await run(graph, 5, false, false)).toBe(5)
  })
})

describe('a merged decoder', () => {
  it('is written as it was read', async () => {
    const model = await openModel('tests/golden/models/merged-if')
    const { node: nodes, initializer } = new Graph(model.proto).toModel().graph!
    const before = model.proto.graph!
    const lists = (all: readonly NodeProto[]) =>
      all.map(({ name, opType, input, output }) => [name, opType, input, output])
    expect(lists(nodes)).toEqual(lists(before.node))
    expect(initializer).toEqual(before.initializer)
    for (const [i, { g }] of nodes[0].attribute.entries()) {
      expect(g!.output).toEqual(before.node[0].attribute[i].g!.output)
      expect(lists(g!.node)).toEqual(lists(before.node[0].attribute[i].g!.node))
    }
    await model.close()
  })

  it('has each linear layer once in each branch, the head too, and once without the cache', async () => {
    const model = await openModel('tests/golden/models/merged-if')
    const graph = new Graph(model.proto)
    const count = (wanted: (linear: { name: string; isHead: boolean }) => boolean) =>
      findLinears(graph).filter(wanted).length
    expect(count(({ name }) => name === 'model.layers.0.self_attn.q_proj')).toBe(2)
    expect(count(({ isHead }) => isHead)).toBe(2)
    takeBranchWithoutCache(graph)
    graph.prune({ inputs: true })
    expect(count(({ name }) => name === 'model.layers.0.self_attn.q_proj')).toBe(1)
    expect(count(({ isHead }) => isHead)).toBe(1)
    expect(graph.inputs.map(({ name }) => name)).not.toContain('use_cache_branch')
    await model.close()
  })
})
