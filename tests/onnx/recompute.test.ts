// The choice of values that a training step keeps, and values that its backward pass computes again.

import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { OnnxModel } from '../../src/api/node.js'
import type { NodeProto } from '../../src/onnx/format/gen/onnx_pb.js'
import { FlowNetwork } from '../../src/onnx/recompute/min-cut.js'
import { loadNodeRuntime } from '../../src/onnx/runtime/node/runtime.js'
import { Graph } from '../../src/onnx/view/graph.js'
import { buildTrainingGraph, type TrainingGraph } from '../../src/train/graph/training-graph.js'
import { causalOf, layersOf, MODELS, openAdapter, openModel } from '../model/golden.js'

describe('the smallest cut', () => {
  const vertices = 6
  const edges = fc.array(fc.record({ from: fc.nat(vertices - 1), to: fc.nat(vertices - 1), capacity: fc.nat(9) }), {
    maxLength: 20,
  })

  it('costs as little as any, and is the nearest to the sink', () => {
    fc.assert(
      fc.property(edges, (all) => {
        const network = new FlowNetwork()
        for (let i = 2; i < vertices; i++) network.vertex()
        for (const { from, to, capacity } of all) network.edge(from, to, capacity)
        const costOf = (side: ReadonlySet<number>) =>
          all.reduce((sum, { from, to, capacity }) => sum + (!side.has(from) && side.has(to) ? capacity : 0), 0)
        const sides = Array.from({ length: 2 ** (vertices - 2) }, (_, bits) => {
          return new Set([
            1,
            ...Array.from({ length: vertices - 2 }, (_, i) => i + 2).filter((i) => bits & (1 << (i - 2))),
          ])
        })
        const least = Math.min(...sides.map(costOf))
        const smallest = Math.min(...sides.filter((side) => costOf(side) === least).map(({ size }) => size))
        const found = network.sinkSide()
        expect([costOf(found), found.size]).toEqual([least, smallest])
      }),
    )
  })
})

describe('the graph of a step', async () => {
  const runtime = await loadNodeRuntime()
  let model: OnnxModel
  let training: TrainingGraph
  let graph: Graph
  let forward: Set<NodeProto>

  beforeAll(async () => {
    model = await openModel(`${MODELS}/llama-optimum`)
    const adapter = await openAdapter(`${MODELS}/llama-optimum/golden/adapter-init`)
    training = await buildTrainingGraph(model, runtime, causalOf(model), { layers: layersOf(adapter) })
    graph = new Graph(training.proto)
    forward = new Set()
    const open = ['loss']
    for (let value = open.pop(); value !== undefined; value = open.pop()) {
      const maker = graph.producer(value)
      if (maker === undefined || forward.has(maker)) continue
      forward.add(maker)
      open.push(...maker.input)
    }
  })

  afterAll(() => model.close())

  /** Lists the operators whose results are kept for the backward pass. */
  const kept = () => {
    const read = new Set(graph.nodes.filter((node) => !forward.has(node)).flatMap(({ input }) => input))
    return [...forward].filter(({ output }) => output.some((value) => read.has(value))).map(({ opType }) => opType)
  }

  it('keeps no activation and no probability of attention', () => {
    const operators = new Set(kept())
    expect(operators.has('Gemm')).toBe(true)
    expect(operators.has('Sigmoid')).toBe(false)
    expect(kept().filter((operator) => operator === 'Softmax')).toHaveLength(1) // That of the loss.
  })

  it('never computes a product with a weight again', () => {
    const again = graph.nodes.filter(({ name }) => name.startsWith('again/'))
    expect(again.length).toBeGreaterThan(10)
    expect(again.map(({ opType }) => opType)).not.toContain('Gemm')
  })

  it('computes layers that give more than they read again in long texts alone', async () => {
    const adapter = await openAdapter(`${MODELS}/llama-optimum/golden/adapter-init`)
    const long = await buildTrainingGraph(model, runtime, causalOf(model), {
      layers: layersOf(adapter),
      attentionRows: 5,
    })
    const again = long.proto.graph?.node.filter(({ name, opType }) => name.startsWith('again/') && opType === 'Gemm')
    const names = again?.map(({ name }) => /\w+_proj/.exec(name)?.[0] ?? '')
    expect(new Set(names)).toEqual(new Set(['gate_proj', 'up_proj', '']))
  })

  it('tells ONNX Runtime to leave what is computed twice', async () => {
    expect((await training.sessionModel()).keepsRepeats).toBe(true)
  })
})
