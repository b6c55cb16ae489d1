import { describe, expect, it } from 'vitest'
import type { Feeds, RuntimeTensor } from '../../../src/api/node.js'
import { outputNorms } from '../../../src/model/inject/affine.js'
import { findLinears } from '../../../src/model/match/linears.js'
import { matchLayers } from '../../../src/model/match/match.js'
import { TensorProto_DataType as DataType } from '../../../src/onnx/format/gen/onnx_pb.js'
import { tensorsOf } from '../../../src/onnx/format/messages.js'
import { loadNodeRuntime } from '../../../src/onnx/runtime/node/runtime.js'
import { readGraph } from '../../../src/onnx/view/graph.js'
import type { Objective } from '../../../src/train/graph/objective-graph.js'
import { buildTrainingGraph } from '../../../src/train/graph/training-graph.js'
import { deviation } from '../../golden.js'
import { layersOf } from '../../model/golden.js'
import {
  dataOf,
  type FormNumbers,
  formAdapter,
  formNumbers,
  GOLDEN_FORMS,
  INTEGER_TOLERANCE,
  isHalf,
  openForm,
  quantizesInputs,
  X_DIMS,
} from '../../model/match/golden-forms.js'

const runtime = await loadNodeRuntime()

/** The loss Σ g · y, for which golden gradients exist. */
const weightedSum: Objective = {
  probe: {
    feeds: [2, 3].map((n, i) => {
      const [batch, sequence] = [n, 5 + 2 * i]
      const zeros = (width: number): RuntimeTensor => {
        return {
          type: 'float32',
          data: new Float32Array(batch * sequence * width).fill(0.5),
          dims: [batch, sequence, width],
        }
      }
      return { x: zeros(48), g: zeros(24) }
    }) as unknown as [Feeds, Feeds],
    lengths: [
      { name: 'batch', probed: [2, 3], of: ({ x }: Feeds) => x.dims[0], source: { input: 'x', axis: 0 } },
      { name: 'sequence', probed: [5, 7], of: ({ x }: Feeds) => x.dims[1], source: { input: 'x', axis: 1 } },
      { name: 'rows', probed: [10, 21], of: ({ x }: Feeds) => x.dims[0] * x.dims[1] },
    ],
  },
  forward(graph) {
    const g = graph.input('g', DataType.FLOAT, ['batch', 'sequence', 24])
    return graph.g.op('ReduceSum', [graph.g.mul('y', g)], { keepdims: 0 })
  },
}

async function gradientsOf(name: string, numbers: FormNumbers, isDora = false) {
  const model = await openForm(name)
  const adapter = formAdapter(numbers)
  const graph = readGraph(model)
  const norms = new Map<string, { own: Float64Array; adapted: Float64Array }>()
  for (const { layer, linear } of matchLayers(findLinears(graph), adapter.parts('linear'))) {
    const [own, adapted] = [
      await outputNorms(model, graph, linear),
      await outputNorms(model, graph, linear, layer),
    ].map(({ squares }) => squares)
    norms.set(layer.name, { own, adapted })
  }
  const layers = layersOf(adapter).map((layer) => {
    return isDora ? { ...layer, baseSquares: norms.get(layer.name)!.own } : layer
  })
  const training = await buildTrainingGraph(model, runtime, weightedSum, { layers })
  const session = await runtime.createSession(await training.sessionModel(), {
    threads: 1,
    exactProducts: true,
  })
  const feeds: Feeds = {
    ...training.feeds(
      {
        x: { type: 'float32', data: dataOf(numbers, 'x'), dims: X_DIMS },
        g: { type: 'float32', data: dataOf(numbers, 'g'), dims: [2, 5, 24] },
      },
      { normalizer: 1 },
    ),
    ...Object.fromEntries(
      training.parameters.map(({ name: parameter, input, shape }) => {
        const [layer, part] = [parameter.split('.').at(-2), parameter.split('.').at(-1)]
        if (part === 'magnitude') {
          const { adapted } = norms.get(`model.${layer}`)!
          return [input, { type: 'float32', data: Float32Array.from(adapted, Math.sqrt), dims: shape }]
        }
        const data = dataOf(numbers, `${layer}.${part}`)
        const values = part === 'A' ? data : transposed(data, shape[1], shape[0])
        return [input, { type: 'float32', data: values, dims: shape }]
      }),
    ),
  }
  const outputs = await session.run(feeds)
  const result = new Map<string, Float32Array>()
  for (const { name: parameter, gradient, shape } of training.parameters) {
    const [layer, part] = [parameter.split('.').at(-2), parameter.split('.').at(-1)]
    const data = outputs[gradient].data as Float32Array
    result.set(`${layer}.${part}`, part === 'B' ? transposed(data, shape[0], shape[1]) : data)
  }
  await session.dispose()
  await model.close()
  return { gradients: result, proto: training.proto, loss: outputs[training.loss].data[0] as number }
}

/** (rows, columns) → (columns, rows) */
function transposed(data: Float32Array, rows: number, columns: number): Float32Array {
  return Float32Array.from(data, (_, i) => data[(i % rows) * columns + Math.floor(i / rows)])
}

describe.each(GOLDEN_FORMS)('training through %s', (name) => {
  it('gives PyTorch’s gradients on the weights that the integers stand for', async () => {
    const numbers = await formNumbers(name)
    const { gradients, loss } = await gradientsOf(name, numbers)
    const tolerance = quantizesInputs(name) ? INTEGER_TOLERANCE : isHalf(name) ? 2e-3 : 1e-5
    for (const [parameter, gradient] of gradients) {
      expect(deviation(gradient, dataOf(numbers, `${parameter}.gradient`)), parameter).toBeLessThan(tolerance)
    }
    const expected = dataOf(numbers, 'adapted').reduce((sum, y, i) => sum + y * dataOf(numbers, 'g')[i], 0)
    expect(Math.abs(loss / expected - 1)).toBeLessThan(tolerance)
  })

  it('divides by the norms of the adapted rows for DoRA: with these as magnitudes it is plain LoRA', async () => {
    const numbers = await formNumbers(name)
    const [plain, dora] = [await gradientsOf(name, numbers), await gradientsOf(name, numbers, true)]
    expect(Math.abs(dora.loss / plain.loss - 1)).toBeLessThan(2e-5)
    expect(dora.gradients.size).toBe(6)
    for (const [parameter, gradient] of plain.gradients) {
      expect(deviation(dora.gradients.get(parameter)!, gradient), parameter).toBeLessThan(2e-5)
    }
  })

  it('keeps the weights as integers', async () => {
    const { proto } = await gradientsOf(name, await formNumbers(name))
    const floats = tensorsOf(proto).filter(({ dataType, dims }) => {
      return dataType === DataType.FLOAT && dims.reduce((product, dim) => product * Number(dim), 1) >= 24 * 40
    })
    expect(floats.map((tensor) => tensor.name)).toEqual([])
  })
})

it('holds the integers of a layer once, which its product and its gradient both make floats of', async () => {
  const form = 'nbits-8-16-zeros'
  const { proto } = await gradientsOf(form, await formNumbers(form))
  const makers = proto.graph!.node.filter(({ opType }) => opType === 'DequantizeLinear')
  const groups = [...new Set(makers.map(({ input }) => input[0]))].map((weight) =>
    makers.filter(({ input }) => input[0] === weight),
  )
  expect(groups.some((nodes) => nodes.length === 2)).toBe(true)
  for (const nodes of groups) {
    expect(new Set(nodes.map(({ input }) => input[2])).size, 'zero points of their own').toBe(nodes.length)
  }
})
