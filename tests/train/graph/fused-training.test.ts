import { describe, expect, it } from 'vitest'
import type { Feeds, RuntimeTensor } from '../../../src/api/node.js'
import { outputNorms } from '../../../src/model/inject/affine.js'
import { findLinears } from '../../../src/model/match/linears.js'
import { matchLayers } from '../../../src/model/match/match.js'
import { TensorProto_DataType as DataType } from '../../../src/onnx/format/gen/onnx_pb.js'
import { loadNodeRuntime } from '../../../src/onnx/runtime/node/runtime.js'
import { Graph } from '../../../src/onnx/view/graph.js'
import { readParameters } from '../../../src/train/engine/parameters.js'
import type { Objective } from '../../../src/train/graph/objective-graph.js'
import { baseOpener } from '../../../src/train/graph/open-base.js'
import { buildTrainingGraph } from '../../../src/train/graph/training-graph.js'
import type { Values } from '../../golden.js'
import {
  FUSED,
  FUSED_NORMS,
  fusedAdapter,
  fusedFeeds,
  fusedKinds,
  fusedNumbers,
  fusedOperators,
  openFused,
  PLAIN,
} from '../../model/fuse/fused-encoders.js'
import { factorFeeds, layersOf, partOf, relativeError, transposed } from '../../model/golden.js'
import { ints, sizeOf } from '../../onnx/toolkit.js'
import { some } from '../../thorough.js'

const runtime = await loadNodeRuntime()
const WIDTH = 16

/** The loss Σ g · hidden states, for which golden gradients exist. */
function weightedSum(inputs: readonly string[], numbers: Values): Objective {
  if (inputs.includes('pixel_values')) return weightedSumOfPictures(numbers)
  const feeds = [2, 3].map((batch, i) => {
    const dims = [batch, 5 + 2 * i]
    const ones = ints(Array(sizeOf(dims)).fill(1), dims)
    const g = { type: 'float32', data: new Float32Array(sizeOf(dims) * WIDTH), dims: [...dims, WIDTH] } as const
    return { ...Object.fromEntries(inputs.map((name) => [name, ones])), g }
  }) as unknown as [Feeds, Feeds]
  const of = (axis: number) => (run: Feeds) => run.input_ids.dims[axis]
  return {
    probe: {
      feeds,
      lengths: [
        { name: 'batch', probed: [2, 3], of: of(0), source: { input: 'input_ids', axis: 0 } },
        { name: 'sequence', probed: [5, 7], of: of(1), source: { input: 'input_ids', axis: 1 } },
        { name: 'rows', probed: [10, 21], of: (run) => of(0)(run) * of(1)(run) },
      ],
    },
    forward(graph) {
      const g = graph.input('g', DataType.FLOAT, ['batch', 'sequence', WIDTH])
      return graph.g.op('ReduceSum', [graph.g.mul('last_hidden_state', g)], { keepdims: 0 })
    },
  }
}

/** The same loss for pictures of one size, whose hidden states have a fixed number of rows. */
function weightedSumOfPictures(numbers: Values): Objective {
  const [pixels, rows] = ['pixel_values', 'g'].map((name) => numbers.get(name)!.shape.slice(1))
  const zeros = (dims: readonly number[]): RuntimeTensor => {
    return { type: 'float32', data: new Float32Array(sizeOf(dims)), dims }
  }
  const feeds = [2, 3].map((batch) => {
    return { pixel_values: zeros([batch, ...pixels]), g: zeros([batch, ...rows]) }
  }) as unknown as [Feeds, Feeds]
  const of = (run: Feeds) => run.pixel_values.dims[0]
  return {
    probe: { feeds, lengths: [{ name: 'batch', probed: [2, 3], of, source: { input: 'pixel_values', axis: 0 } }] },
    forward: (graph) => {
      const g = graph.input('g', DataType.FLOAT, ['batch', ...rows])
      return graph.g.op('ReduceSum', [graph.g.mul('last_hidden_state', g)], { keepdims: 0 })
    },
  }
}

describe.each(some([...FUSED, ...FUSED_NORMS]))('training through $name', ({ model, name, operator }) => {
  it('gives PyTorch’s gradients', async () => {
    const [onnx, numbers, adapter] = [
      await openFused(name),
      await fusedNumbers(model),
      await fusedAdapter(model, 'lora'),
    ]
    expect(fusedOperators(model)[name.slice(model.length + 1)]).toContain(operator)
    const inputs = new Graph(onnx.proto).inputs.map((input) => input.name)
    const training = await buildTrainingGraph(onnx, runtime, weightedSum(inputs, numbers), {
      layers: layersOf(adapter),
    })
    const session = await runtime.createSession(await training.sessionModel(), { threads: 1 })
    const g = numbers.get('g')!
    const own: Feeds = {
      ...fusedFeeds(numbers, inputs),
      g: { type: 'float32', data: g.data as Float32Array, dims: g.shape },
    }
    const outputs = await session.run({
      ...training.feeds(own, { normalizer: 1 }),
      ...factorFeeds(training.parameters, adapter),
    })
    expect(training.parameters).toHaveLength(
      [...numbers.keys()].filter((key) => /^gradient\/base_model/.test(key)).length,
    )
    for (const { name: parameter, gradient } of training.parameters) {
      const [layer, factor] = partOf(parameter)
      const { data, shape } = numbers.get(`gradient/base_model.model.${layer}.lora_${factor}.weight`)!
      const wanted = factor === 'A' ? data : transposed(data, shape)
      expect(relativeError(outputs[gradient].data as Float32Array, wanted), parameter).toBeLessThan(1e-5)
    }
    const loss = numbers.get('lora')!.data.reduce((sum, value, i) => sum + value * g.data[i], 0)
    expect(Math.abs((outputs[training.loss].data[0] as number) / loss - 1)).toBeLessThan(1e-5)
    await session.dispose()
    await onnx.close()
  })
})

describe.each(some([...FUSED, ...FUSED_NORMS, ...PLAIN]))('DoRA, biases and norms through $name', ({ model, name }) => {
  it.each(fusedKinds(model).filter((kind) => kind !== 'lora'))('give PyTorch’s gradients of %s', async (kind) => {
    const [onnx, numbers, adapter] = [await openFused(name), await fusedNumbers(model), await fusedAdapter(model, kind)]
    const graph = new Graph(onnx.proto)
    const inputs = graph.inputs.map((input) => input.name)
    const layers = []
    for (const layer of layersOf(adapter)) {
      const [{ linear }] = matchLayers(findLinears(graph), [layer])
      const { squares } = await outputNorms(onnx, graph, linear)
      layers.push(kind === 'saved' ? layer : { ...layer, baseSquares: squares })
    }
    const biases = adapter.parts('replacement')
    const tensors = biases.map(({ name: tensor, shape }) => ({ name: tensor, shape, isOptional: false }))
    const base = baseOpener(tensors, [])
    const training = await buildTrainingGraph(onnx, runtime, weightedSum(inputs, numbers), { layers, base })
    const session = await runtime.createSession(await training.sessionModel(), { threads: 1 })
    const g = numbers.get('g')!
    const own: Feeds = {
      ...fusedFeeds(numbers, inputs),
      g: { type: 'float32', data: g.data as Float32Array, dims: g.shape },
    }
    const names = training.parameters.map((parameter) => parameter.name)
    const values = readParameters(adapter, names)
    const trained = training.parameters.map(({ input, shape }, i): [string, RuntimeTensor] => {
      return [input, { type: 'float32', data: values[i], dims: shape }]
    })
    const outputs = await session.run({ ...training.feeds(own, { normalizer: 1 }), ...Object.fromEntries(trained) })
    const wanted = new Map([...numbers].filter(([key]) => key.startsWith(`gradient/${kind}/`)))
    expect(training.parameters).toHaveLength(wanted.size)
    const scale = Math.max(...[...wanted.values()].flatMap(({ data }) => Array.from(data, Math.abs)))
    for (const { name: parameter, gradient } of training.parameters) {
      const [, module, role] = /^(.*)\.([^.]*)$/.exec(parameter)!
      const suffix = { A: 'lora_A.weight', B: 'lora_B.weight', magnitude: 'lora_magnitude_vector.weight' }[role] ?? role
      const key = `gradient/${kind}/base_model.model.${module}.${suffix}`
      const keys = [key, key.replace(/bias$/, 'base_layer.bias'), key.replace(/\.(\w+)$/, '.modules_to_save.$1')]
      const { data, shape } = keys.map((one) => wanted.get(one)).find((one) => one !== undefined)!
      const mine = outputs[gradient].data as Float32Array
      const theirs = role === 'B' ? transposed(data, shape) : data
      // A bias of the keys changes nothing, so its gradient is rounding noise.
      const error = Math.max(...Array.from(mine, (value, i) => Math.abs(value - theirs[i])))
      expect(Math.min(error / scale, relativeError(mine, theirs)), parameter).toBeLessThan(2e-6)
    }
    const loss = numbers.get(kind)!.data.reduce((sum, value, i) => sum + value * g.data[i], 0)
    expect(Math.abs((outputs[training.loss].data[0] as number) / loss - 1)).toBeLessThan(1e-5)
    await session.dispose()
    await onnx.close()
  })
})
