// Records packed into a row give the same losses and gradients as the records in separate rows.

import { describe, expect, it } from 'vitest'
import { type Feeds, type Model, train as trainByOptions, UnsupportedError } from '../../src/api/node.js'
import { tokenInputs } from '../../src/model/inputs/tokens.js'
import { PackedExamples } from '../../src/model/text/packed-examples.js'
import type { Example } from '../../src/model/text/records.js'
import type { NodeProto } from '../../src/onnx/format/gen/onnx_pb.js'
import { loadNodeRuntime } from '../../src/onnx/runtime/node/runtime.js'
import { Builder } from '../../src/onnx/view/builder.js'
import { readGraph } from '../../src/onnx/view/graph.js'
import { ObjectiveGraph } from '../../src/train/graph/objective-graph.js'
import { separateRecords } from '../../src/train/graph/separate-records.js'
import { buildLossGraph, buildTrainingGraph } from '../../src/train/graph/training-graph.js'
import { causalLm } from '../../src/train/tasks/causal-lm.js'
import { train } from '../../src/train/train.js'
import { makeAdapter, openModel } from '../run/models.js'
import { cases } from '../thorough.js'

const runtime = await loadNodeRuntime()

/** Records of different lengths. Only some of their tokens count. */
function examplesOf(vocabulary: number): Example[] {
  return [5, 9, 3, 12, 7].map((length, record) => {
    const inputIds = Int32Array.from({ length }, (_, i) => 3 + ((37 * record + 11 * i * i) % (vocabulary - 3)))
    const labels = inputIds.map((id, i) => (i === 0 || (i + record) % 3 === 0 ? -100 : id))
    return { inputIds, labels }
  })
}

const packed = (examples: readonly Example[], length: number) =>
  new PackedExamples({ length: examples.length, at: (i) => examples[i] }, length)

describe('packing', () => {
  it('puts each example into the fullest row that holds it, the longest first', () => {
    const rows = packed(examplesOf(50), 16)
    expect([...rows].map(({ starts, inputIds }) => [starts, inputIds.length])).toEqual([
      [[0, 12], 15],
      [[0, 9], 16],
      [[0], 5],
    ])
    expect(packed(examplesOf(50), 4).length).toBe(5)
    expect(packed([], 4).length).toBe(0)
  })

  it.each([
    ...cases(['llama-optimum', 'llama-genai-rotary', 'gpt2-optimum'], ['llama-genai', 'qwen2-optimum']).map(
      (name) => `tests/golden/models/${name}`,
    ),
    ...cases([], ['models/union-3m']),
  ])('%s: losses and gradients equal those of separate rows', async (path) => {
    const model = await openModel(path)
    const examples = examplesOf(model.vocabularySize!)
    const rows = [...packed(examples, 40)]
    expect(rows).toHaveLength(1)
    const [apart, together] = [await results(model, examples, false), await results(model, rows, true)]
    expect(together.trained.loss).toBeCloseTo(apart.trained.loss, 5)
    expect(together.evaluated).toBeCloseTo(apart.evaluated, 5)
    expect(together.evaluated).toBeCloseTo(together.trained.loss, 5)
    const { trained: inBlocks } = await results(model, rows, true, 7)
    expect(inBlocks.loss).toBeCloseTo(apart.trained.loss, 5)
    for (const { gradients } of [together.trained, inBlocks]) {
      for (const [i, gradient] of gradients.entries()) {
        const expected = apart.trained.gradients[i]
        const largest = expected.reduce((max, value) => Math.max(max, Math.abs(value)), 1e-4)
        const off = gradient.reduce((max, value, j) => Math.max(max, Math.abs(value - expected[j])), 0)
        expect(off / largest).toBeLessThan(1e-4)
      }
    }
    // Without a mask, the records would give another loss.
    const open = openTask(model, rows, true)
    const feeds = open.collate(rows, 40)
    const leaked = await evaluate(model, rows, true, {
      ...feeds,
      'packing/records': { ...feeds['packing/records'], data: new Int32Array(40) },
    })
    expect(Math.abs(leaked - apart.evaluated)).toBeGreaterThan(1e-4)
    await model.close()
  })

  it('each record has the loss that it has alone', async () => {
    const model = await openModel('tests/golden/models/llama-optimum')
    const examples = examplesOf(model.vocabularySize!)
    for (const [i, example] of examples.entries()) {
      // Only this record’s tokens count.
      const others = examples.map(({ inputIds, labels }, j) => ({
        inputIds,
        labels: j === i ? labels : labels.slice().fill(-100),
      }))
      const [alone, among] = [
        await evaluate(model, [example], false),
        await evaluate(model, [...packed(others, 40)], true),
      ]
      expect(Math.abs(among - alone)).toBeLessThan(1e-5)
    }
    await model.close()
  })

  it('a run trains on packed rows', async () => {
    const model = await openModel('tests/golden/models/llama-optimum')
    const data = Array.from({ length: 12 }, (_, i) => ({ text: `The people number ${i} of the union.` }))
    const { report } = await train({
      model,
      data,
      packing: true,
      maxLength: 64,
      batchSize: 1,
      epochs: 2,
      config: { rank: 2 },
    })
    expect(report.steps).toBeLessThan(12)
    expect(report.trainLoss.at(-1)).toBeLessThan(report.trainLoss[0])
    await expect(trainByOptions({ model, data, packing: 'yes' as never, config: { rank: 2 } })).rejects.toThrow(
      /packing: not valid/,
    )
    await model.close()
  })

  it('refuses by name a graph whose positions cannot begin anew, and a task that cannot pack', async () => {
    const dynamo = await openModel('tests/golden/models/llama-dynamo')
    const data = [{ text: 'a' }, { text: 'b' }]
    const refused = train({ model: dynamo, data, packing: true, config: { rank: 2 } })
    await expect(refused).rejects.toThrow(UnsupportedError)
    await expect(refused).rejects.toThrow(/takes no position_ids.*Train without packing/s)
    await dynamo.close()
    const model = await openModel('tests/golden/text-classification/encoder')
    const rows = [
      { text: 'a', label: 'x' },
      { text: 'b', label: 'y' },
    ]
    const other = train({ model, data: rows, task: 'text-classification', packing: true, config: { rank: 2 } })
    await expect(other).rejects.toThrow(/packing: the task text-classification cannot put several records into one row/)
    await model.close()
  })

  it.each<[string, Partial<NodeProto>[], RegExp]>([
    [
      'a convolution',
      [{ opType: 'Softmax' }, { opType: 'Conv' }],
      /node mixer \(Conv\): records in one row would see one another/,
    ],
    ['no attention', [{ opType: 'Add' }], /no attention was found/],
  ])('refuses %s', async (_, nodes, message) => {
    const model = await openModel('tests/golden/models/gpt2-optimum')
    const graph = readGraph(model.onnx)
    for (const node of graph.nodes) if (node.opType === 'Softmax') graph.remove(node)
    const g = new Builder(graph, 'mixer')
    for (const { opType } of nodes) g.node(opType!, ['input_ids', 'input_ids']).name = 'mixer'
    const roles = tokenInputs(graph).roles
    expect(() => separateRecords(new ObjectiveGraph(graph), roles)).toThrow(message)
    await model.close()
  })
})

/** Opens the task for packed or separate rows. */
const openTask = (model: Model, rows: readonly Example[], packing: boolean) =>
  causalLm.open(model, packing ? packed([], 1) : rows)

interface Results {
  trained: { loss: number; gradients: Float32Array[] }
  evaluated: number
}

const isAdapted = /(q_proj|v_proj|up_proj|c_attn)$/

/** Makes the factors of an adapter that is not zero, as feeds of a graph. */
function factorsOf(model: Model, tensors: readonly { readonly input: string }[]): Feeds {
  const factors: Feeds = {}
  makeAdapter(model, isAdapted, { std: 0.1 })
    .parts('linear')
    .forEach(({ weightA, weightB, rank, d, k }, i) => {
      const transposed = Float32Array.from(
        { length: rank * d },
        (_, at) => weightB.data[(at % d) * rank + Math.floor(at / d)],
      )
      factors[tensors[2 * i].input] = { type: 'float32', data: Float32Array.from(weightA.data), dims: [rank, k] }
      factors[tensors[2 * i + 1].input] = { type: 'float32', data: transposed, dims: [rank, d] }
    })
  return factors
}

const layersOf = (model: Model) =>
  makeAdapter(model, isAdapted)
    .parts('linear')
    .map(({ name, d, k, rank, scaling }) => ({ name, d, k, rank, scaling }))

/** Computes the loss with the graph for evaluation. */
async function evaluate(model: Model, rows: readonly Example[], packing: boolean, feeds?: Feeds): Promise<number> {
  const open = openTask(model, rows, packing)
  const graph = await buildLossGraph(model.onnx, runtime, open, { layers: layersOf(model) })
  const session = await runtime.createSession(await graph.sessionModel(), { threads: 1 })
  const own = graph.feeds(feeds ?? open.collate(rows, 40), { normalizer: open.normalizer(rows) })
  const outputs = await session.run({ ...own, ...factorsOf(model, graph.tensors) })
  await session.dispose()
  return Number(outputs[graph.loss].data[0])
}

async function results(
  model: Model,
  rows: readonly Example[],
  packing: boolean,
  attentionRows?: number,
): Promise<Results> {
  const open = openTask(model, rows, packing)
  const graph = await buildTrainingGraph(model.onnx, runtime, open, { layers: layersOf(model), attentionRows })
  const session = await runtime.createSession(await graph.sessionModel(), { threads: 1 })
  const own = graph.feeds(open.collate(rows, 40), { normalizer: open.normalizer(rows) })
  const outputs = await session.run({ ...own, ...factorsOf(model, graph.tensors) })
  await session.dispose()
  return {
    trained: {
      loss: Number(outputs[graph.loss].data[0]),
      gradients: graph.parameters.map(({ gradient }) => outputs[gradient].data as Float32Array),
    },
    evaluated: await evaluate(model, rows, packing),
  }
}
