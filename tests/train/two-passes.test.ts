import { describe, expect, it } from 'vitest'
import type { Feeds } from '../../src/api/node.js'
import { OnnxModel } from '../../src/onnx/format/model.js'
import { loadNodeRuntime } from '../../src/onnx/runtime/node/runtime.js'
import { untransferred } from '../../src/onnx/runtime/rpc.js'
import { Builder } from '../../src/onnx/view/builder.js'
import { TrainEngine } from '../../src/train/engine/engine.js'
import { PACKED, PACKED_GRADIENT } from '../../src/train/graph/forward.js'
import type { Objective } from '../../src/train/graph/objective-graph.js'
import { buildTrainingGraph, type TrainingGraph } from '../../src/train/graph/training-graph.js'
import { addInput, addOutput, DataType, emptyGraph, floats, floatTensor } from '../onnx/toolkit.js'
import { takeStep } from './take-step.js'

const runtime = await loadNodeRuntime()
const [K, D, RANK] = [3, 2, 2]
const wave = (length: number, phase: number) => Array.from({ length }, (_, i) => Math.sin(phase + 1.7 * i))

/** A model that computes e = x·W for any number of rows. */
function model(): OnnxModel {
  const graph = emptyGraph(17)
  addInput(graph, 'x', DataType.FLOAT, ['batch', K])
  graph.addInitializer(floatTensor('layer.weight', DataType.FLOAT, wave(K * D, 1), [K, D]))
  graph.rename(new Builder(graph, 'layer').matmul('x', 'layer.weight'), 'e')
  addOutput(graph, 'e', DataType.FLOAT)
  return new OnnxModel('toy', 'toy.onnx', graph.toModel(), new Map())
}

const rowsOf = (count: number, phase: number): Feeds => ({
  x: floats(DataType.FLOAT, wave(count * K, phase), [count, K]),
})
const probe: Objective['probe'] = {
  feeds: [rowsOf(4, 0), rowsOf(9, 0)],
  lengths: [{ name: 'batch', probed: [4, 9], of: ({ x }) => x.dims[0], source: { input: 'x', axis: 0 } }],
}

/** A loss over all pairs, Σ (eᵢ·eⱼ)². The gradient of each example depends on all others. */
const whole: Objective = {
  probe,
  forward: ({ g }) => {
    const products = g.matmul('e', g.transpose('e', [1, 0]))
    return g.op('ReduceSum', [g.mul(products, products)], { keepdims: 0 })
  },
}

/** The same loss, computed outside the graph. */
const cached: Objective = {
  probe,
  forward: (graph) => graph.fedGradient(graph.predict('e'), 'gradient'),
}

/** Returns the loss of all rows, and its gradient with respect to each: 4·Σⱼ (eᵢ·eⱼ)·eⱼ */
function lossOf(rows: number[][]): { loss: number; gradients: number[][] } {
  const products = rows.map((a) => rows.map((b) => a.reduce((sum, value, i) => sum + value * b[i], 0)))
  return {
    loss: products.flat().reduce((sum, value) => sum + value * value, 0),
    gradients: rows.map((_, i) =>
      rows[0].map((_, d) => rows.reduce((sum, e, j) => sum + 4 * products[i][j] * e[d], 0)),
    ),
  }
}

const layers = [{ name: 'layer', d: D, k: K, rank: RANK, scaling: 1.5 }]
const parameters = () => [Float32Array.from(wave(RANK * K, 2)), Float32Array.from(wave(RANK * D, 3))]

async function started(graph: TrainingGraph, isPacked = false): Promise<{ engine: TrainEngine; session: number }> {
  const engine = new TrainEngine(runtime)
  const model = await graph.sessionModel(isPacked ? graph.parameters : undefined)
  const { id } = await engine.openSession(model, { threads: 1 })
  const zeros = () => parameters().map(({ length }) => new Float32Array(length))
  const setup = { parameters: graph.parameters, optimizer: { weightDecay: 0 }, maxGradNorm: 1 }
  await engine.start(
    { ...setup, packed: isPacked ? { input: PACKED, gradient: PACKED_GRADIENT } : undefined },
    { parameters: parameters(), firstMoments: zeros(), secondMoments: zeros(), updates: 0 },
  )
  return { engine, session: id }
}

async function parametersOf(engine: TrainEngine): Promise<Float32Array[]> {
  return untransferred(await engine.state()).parameters
}

describe('a step in two passes', () => {
  it.each([
    ['does what one pass over all examples does', false],
    ['does so with all tensors in one vector, as a GPU takes them', true],
  ])('%s', async (_, isPacked) => {
    const x = wave(6 * K, 4)
    const parts = [x.slice(0, 2 * K), x.slice(2 * K)].map(
      (data): Feeds => ({
        x: floats(DataType.FLOAT, data, [data.length / K, K]),
      }),
    )
    const one = await buildTrainingGraph(model(), runtime, whole, { layers })
    const two = await buildTrainingGraph(model(), runtime, cached, { layers, twoPasses: true })
    const direct = await started(one)
    const split = await started(two, isPacked)
    const first = two.firstPass!
    const { id: firstSession } = await split.engine.openSession(
      await first.sessionModel(isPacked ? two.parameters : undefined),
      { threads: 1 },
    )

    for (let step = 0; step < 3; step++) {
      const rows: number[][] = []
      for (const part of parts) {
        const pass = { session: firstSession, feeds: first.feeds(part, { normalizer: 1 }) }
        const { e } = untransferred(await split.engine.forward(pass, ['e']))
        for (let i = 0; i < e.data.length; i += D) rows.push(Array.from(e.data.slice(i, i + D), Number))
      }
      const { loss, gradients } = lossOf(rows)
      const fed = [gradients.slice(0, 2), gradients.slice(2)].map((part) =>
        floats(DataType.FLOAT, part.flat(), [part.length, D]),
      )
      const passes = parts.map((part, run) => ({
        session: split.session,
        loss: two.loss,
        feeds: two.feeds({ ...part, gradient: fed[run] }, { normalizer: 1 }),
      }))
      const result = await takeStep(split.engine, passes, 0.05, loss)
      expect(result.loss).toBe(loss)
      const feeds = one.feeds({ x: floats(DataType.FLOAT, x, [6, K]) }, { normalizer: 1 })
      const expected = await takeStep(direct.engine, [{ session: direct.session, loss: one.loss, feeds }], 0.05)
      expect(result.loss).toBeCloseTo(expected.loss, 4)
      expect(result.gradientNorm / expected.gradientNorm).toBeCloseTo(1, 5)
    }
    const [a, b] = [await parametersOf(direct.engine), await parametersOf(split.engine)]
    a.forEach((values, p) => void values.forEach((value, i) => void expect(b[p][i]).toBeCloseTo(value, 4)))
  })

  it('drops the same in both passes', async () => {
    const graph = await buildTrainingGraph(model(), runtime, cached, { layers, dropout: 0.5, twoPasses: true })
    const draw = { normalizer: 1, dropout: { seed: 1, step: 2, run: 3 } }
    const masksOf = (feeds: Feeds) => Object.entries(feeds).filter(([, { type }]) => type === 'bool')
    const second = graph.feeds({ ...rowsOf(5, 0), gradient: floats(DataType.FLOAT, wave(5 * D, 0), [5, D]) }, draw)
    expect(masksOf(second)).toHaveLength(1)
    expect(masksOf(second)[0][1].dims).toEqual([5, K])
    expect(masksOf(graph.firstPass!.feeds(rowsOf(5, 0), draw))).toEqual(masksOf(second))
  })
})
