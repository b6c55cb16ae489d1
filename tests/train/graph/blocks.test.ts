// Losses and attention computed in blocks, compared with the same computed at once. For the loss: values, gradients,
// predictions, and when blocks are used. For attention: masks that hide keys before and after a block, soft-capped
// scores, shared key heads, and blocks with more rows than there are queries.

import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { Feeds, LoraAdapter, Model, RuntimeTensor } from '../../../src/api/node.js'
import { decodeFloats, encodeFloats } from '../../../src/core/base/dtype.js'
import { Random } from '../../../src/core/base/random.js'
import { OnnxModel, serializeModel } from '../../../src/onnx/format/model.js'
import { create } from '../../../src/onnx/format/protobuf.js'
import { type GraphProto, TensorProtoSchema } from '../../../src/onnx/format/tensors.js'
import { buildBackward, type CustomGradients, gradientPath } from '../../../src/onnx/gradients/backward.js'
import { loadNodeRuntime } from '../../../src/onnx/runtime/node/runtime.js'
import { probeShapes, ShapeMap } from '../../../src/onnx/shapes/shapes.js'
import { Builder, type Value } from '../../../src/onnx/view/builder.js'
import { Graph } from '../../../src/onnx/view/graph.js'
import { attendInBlocks } from '../../../src/train/graph/attention-blocks.js'
import type { Objective } from '../../../src/train/graph/objective-graph.js'
import {
  buildLossGraph,
  buildTrainingGraph,
  type LossGraph,
  type TrainedLayer,
} from '../../../src/train/graph/training-graph.js'
import { dpo } from '../../../src/train/tasks/dpo.js'
import {
  causalOf,
  collated,
  factorFeeds,
  golden,
  layersOf,
  MODELS,
  openAdapter,
  openModel,
  relativeError,
  targetCount,
  UNION,
} from '../../model/golden.js'
import { addInput, addOutput, DataType, emptyGraph, normals, openGraph } from '../../onnx/toolkit.js'
import { some } from '../../thorough.js'

const runtime = await loadNodeRuntime()

const operators = ({ proto }: LossGraph) => new Set(proto.graph?.node.map(({ opType }) => opType))

function lengthNames({ input, output, valueInfo }: GraphProto): string[] {
  return [...input, ...output, ...valueInfo].flatMap(({ type }) => {
    const dims = type?.value.case === 'tensorType' ? type.value.value.shape?.dim : undefined
    return dims?.flatMap(({ value }) => (value.case === 'dimParam' ? [value.value] : [])) ?? []
  })
}

function bodiesOf({ node }: GraphProto): GraphProto[] {
  return node.flatMap(({ attribute }) => attribute.flatMap(({ g }) => (g ? [g, ...bodiesOf(g)] : [])))
}

async function run(graph: LossGraph, feeds: Feeds): Promise<Record<string, RuntimeTensor>> {
  const session = await runtime.createSession(await graph.sessionModel(), { threads: 1 })
  const outputs = await session.run(feeds)
  await session.dispose()
  return outputs
}

const CASES: [name: string, model: string, numbers: string][] = [
  ['a tied head that is stored once', UNION, 'tests/golden/train-union'],
  ['a head of its own', `${MODELS}/llama-dynamo`, `${MODELS}/llama-dynamo/golden`],
  ['a model without rotary embeddings', `${MODELS}/gpt2-optimum`, `${MODELS}/gpt2-optimum/golden`],
]

describe.each(some(CASES, 2))('%s', (_, modelFolder, folder) => {
  const numbers = golden(folder)
  let model: OnnxModel
  let adapter: LoraAdapter
  let layers: TrainedLayer[]
  /** The bytes for logits of three rows. */
  let logitBytes: number

  beforeAll(async () => {
    model = await openModel(modelFolder)
    adapter = await openAdapter(`${folder}/adapter-init`)
    layers = layersOf(adapter)
    const logits = model.proto.graph?.output[0].type?.value
    const width = logits?.case === 'tensorType' ? logits.value.shape?.dim.at(-1)?.value : undefined
    logitBytes = 3 * 4 * Number(width?.value)
  })
  afterAll(() => model.close())

  const feedsOf = (graph: LossGraph, index: number, objective = causalOf(model)) => {
    const batch = numbers.batches[index]
    return {
      ...graph.feeds(collated(objective, batch), { normalizer: targetCount(batch) }),
      ...factorFeeds(graph.tensors, adapter),
    }
  }

  it('has the loss and the gradients of whole logits', async () => {
    const build = (bytes?: number) =>
      buildTrainingGraph(model, runtime, causalOf(model), {
        layers,
        ...(bytes && { logitBytes: { whole: bytes, block: bytes } }),
      })
    const [whole, parted] = [await build(), await build(logitBytes)]
    expect(operators(whole)).not.toContain('Scan')
    expect(operators(parted)).toContain('Scan')
    expect(operators(parted)).not.toContain('ScatterElements')
    for (const index of some([...numbers.batches.keys()])) {
      const expected = await run(whole, feedsOf(whole, index))
      const actual = await run(parted, feedsOf(parted, index))
      expect(Math.abs(Number(actual.loss.data[0]) / Number(expected.loss.data[0]) - 1)).toBeLessThan(1e-6)
      expect(parted.parameters.map(({ name }) => name)).toEqual(whole.parameters.map(({ name }) => name))
      whole.parameters.forEach(({ name, gradient }, i) => {
        const own = actual[parted.parameters[i].gradient].data as Float32Array
        expect(relativeError(own, expected[gradient].data as Float32Array), name).toBeLessThan(1e-5)
      })
    }
  })

  it('names lengths in bodies otherwise than outside', async () => {
    const blocks = { logitBytes: { whole: logitBytes, block: logitBytes }, attentionRows: 5 }
    const { proto } = await buildTrainingGraph(model, runtime, causalOf(model), { layers, ...blocks })
    const graph = proto.graph as GraphProto
    const outside = lengthNames(graph)
    expect(outside).toContain('rows')
    const bodies = bodiesOf(graph)
    expect(bodies.length).toBeGreaterThan(1)
    expect(bodies.flatMap(lengthNames).filter((name) => outside.includes(name))).toEqual([])
  })

  it.each(['the adapter', 'the base alone'])('predicts the same tokens without gradients, with %s', async (of) => {
    const own = of === 'the base alone' ? [] : layers
    const build = (blocks = {}) => buildLossGraph(model, runtime, causalOf(model), { layers: own, ...blocks })
    const logits = { logitBytes: { whole: logitBytes, block: logitBytes } }
    const whole = await build()
    const expected = await run(whole, feedsOf(whole, 0))
    for (const blocks of [logits, { ...logits, attentionRows: 5 }]) {
      const parted = await build(blocks)
      const scans = parted.proto.graph?.node.filter(({ opType }) => opType === 'Scan').length
      if (blocks === logits) expect(scans).toBe(1)
      else expect(scans).toBeGreaterThan(1)
      const actual = await run(parted, feedsOf(parted, 0))
      expect(Math.abs(Number(actual.loss.data[0]) / Number(expected.loss.data[0]) - 1)).toBeLessThan(1e-6)
      const [ours, others] = [actual[parted.predictions[0]], expected[whole.predictions[0]]].map(
        ({ data }) => data as Float32Array,
      )
      // The outputs are pairs of a token and its loss.
      expect(ours.filter((_, i) => i % 2 === 0)).toEqual(others.filter((_, i) => i % 2 === 0))
      expect(relativeError(ours, others)).toBeLessThan(1e-6)
    }
  })
})

describe('on one small model', () => {
  const folder = `${MODELS}/llama-dynamo`
  let model: OnnxModel
  let adapter: LoraAdapter
  beforeAll(async () => {
    model = await openModel(folder)
    adapter = await openAdapter(`${folder}/golden/adapter-init`)
  })
  afterAll(() => model.close())

  const logitBytes = 4096

  it('gives preferences the same gradients', async () => {
    const answer = (...inputIds: number[]) => ({
      inputIds: Int32Array.from(inputIds),
      labels: Int32Array.from(inputIds, (id, i) => (i < 2 ? -100 : id)),
    })
    const examples = [
      { chosen: answer(5, 6, 7, 8, 9), rejected: answer(5, 6, 9, 4) },
      { chosen: answer(3, 4, 11), rejected: answer(3, 4, 12, 13, 14) },
    ]
    const task = dpo.open({ onnx: model, padTokenId: 0, graphs: {} } as unknown as Model, [])
    const reference = { data: Float32Array.of(-1, -2, -3, -1), dims: [2, 2], type: 'float32' } as const
    task.reference?.({ reference }).forEach((before, i) => void Object.assign(examples[i], { before }))
    const results: RuntimeTensor[][] = []
    for (const bytes of [undefined, logitBytes]) {
      const graph = await buildTrainingGraph(model, runtime, task as Objective, {
        layers: layersOf(adapter),
        ...(bytes && { logitBytes: { whole: bytes, block: bytes } }),
      })
      expect(operators(graph).has('Scan')).toBe(bytes !== undefined)
      const feeds = graph.feeds(task.collate(examples as never, 5), { normalizer: 2 })
      const outputs = await run(graph, { ...feeds, ...factorFeeds(graph.tensors, adapter) })
      results.push([outputs.loss, ...graph.parameters.map(({ gradient }) => outputs[gradient])])
    }
    results[0].forEach(({ data }, i) => {
      expect(relativeError(results[1][i].data as Float32Array, data as Float32Array)).toBeLessThan(1e-5)
    })
  })

  it('casts a head in half precision block by block', async () => {
    const edited = new Graph(model.proto)
    const { name, dims, ...head } = edited.initializers.get('lm_head.weight')!
    const values = decodeFloats(await model.readTensor({ name, dims, ...head }), 'fp32')
    const half = { dataType: DataType.FLOAT16, rawData: encodeFloats(values, 'fp16') }
    edited.addInitializer(create(TensorProtoSchema, { name, dims, ...half }))
    const own = new OnnxModel(model.name, model.fileName, edited.toModel(), model.files)
    const [batch] = golden(`${folder}/golden`).batches
    const results: Record<string, RuntimeTensor>[] = []
    for (const bytes of [undefined, logitBytes]) {
      const graph = await buildTrainingGraph(own, runtime, causalOf(own), {
        layers: layersOf(adapter),
        ...(bytes && { logitBytes: { whole: bytes, block: bytes } }),
      })
      const casts = graph.proto.graph?.node.filter(({ opType, input }) => opType === 'Cast' && input[0] === name)
      expect(casts?.length).toBe(bytes === undefined ? 2 : 0)
      const feeds = graph.feeds(collated(causalOf(own), batch), { normalizer: targetCount(batch) })
      results.push(await run(graph, { ...feeds, ...factorFeeds(graph.tensors, adapter) }))
    }
    const [whole, parted] = results.map((outputs) => Object.values(outputs).map(({ data }) => data as Float32Array))
    expect(relativeError(parted[0], whole[0])).toBeLessThan(1e-6)
    whole.forEach((expected, i) => void expect(relativeError(parted[i], expected)).toBeLessThan(1e-5))
  })

  it('chooses rows and computes blocks for a head with a bias, as MatMul and Add or as a Gemm between Reshapes', async () => {
    const [d, k] = model.proto.graph!.initializer.find(({ name }) => name === 'lm_head.weight')!.dims.map(Number)
    const random = new Random(5, 'bias')
    const rawData = new Uint8Array(Float32Array.from({ length: d }, () => random.normal()).buffer)
    const withBias = (isGemm: boolean) => {
      const edited = new Graph(model.proto)
      const head = edited.producer('logits')!
      const [x, weight] = head.input
      const g = new Builder(edited, '/lm_head')
      const dims = [BigInt(d)]
      edited.remove(head)
      const bias = edited.addInitializer(
        create(TensorProtoSchema, { name: 'lm_head.bias', dims, dataType: DataType.FLOAT, rawData }),
      )
      const product = () => g.op('Gemm', [g.reshape(x, g.int([-1, k])), 'lm_head.weight', bias], { transB: 1 })
      const shape = () => g.concat([g.op('Slice', [g.shape(x), g.int([0]), g.int([2])]), g.int([d])], 0)
      edited.rename(isGemm ? g.reshape(product(), shape()) : g.add(g.matmul(x, weight), bias), 'logits')
      edited.prune()
      return new OnnxModel(model.name, model.fileName, edited.toModel(), model.files)
    }
    const [batch] = golden(`${folder}/golden`).batches
    const resultsOf = async (isGemm: boolean, bytes?: number) => {
      const own = withBias(isGemm)
      const graph = await buildTrainingGraph(own, runtime, causalOf(own), {
        layers: layersOf(adapter),
        ...(bytes && { logitBytes: { whole: bytes, block: bytes } }),
      })
      expect(operators(graph).has('Scan')).toBe(bytes !== undefined)
      // Only chosen rows are multiplied.
      const nodes = graph.proto.graph!.node
      const heads = nodes.filter(({ opType, input }) => opType === 'Gemm' && input[1] === 'lm_head.weight')
      const makers = heads.map(({ input }) => nodes.find(({ output }) => output[0] === input[0])?.opType)
      expect(makers.filter((maker) => maker === 'Gather')).toHaveLength(bytes === undefined ? 1 : 0)
      const feeds = graph.feeds(collated(causalOf(own), batch), { normalizer: targetCount(batch) })
      const outputs = await run(graph, { ...feeds, ...factorFeeds(graph.tensors, adapter) })
      return [outputs.loss, ...graph.parameters.map(({ gradient }) => outputs[gradient])]
    }
    const wanted = await resultsOf(false)
    for (const results of [
      await resultsOf(true),
      await resultsOf(false, logitBytes),
      await resultsOf(true, logitBytes),
    ]) {
      wanted.forEach(({ data }, i) => {
        expect(relativeError(results[i].data as Float32Array, data as Float32Array)).toBeLessThan(1e-5)
      })
    }
  })

  it('is left out where the output layer is trained: its gradient needs all logits', async () => {
    const lmHead = { name: 'lm_head', d: 0, k: 0, rank: 2, scaling: 1 }
    const tensor = model.proto.graph?.initializer.find(({ name }) => name === 'lm_head.weight')
    const [d, k] = tensor?.dims.map(Number) ?? [0, 0]
    const graph = await buildTrainingGraph(model, runtime, causalOf(model), {
      layers: [...layersOf(adapter), { ...lmHead, d, k }],
      logitBytes: { whole: logitBytes, block: logitBytes },
    })
    expect(operators(graph)).not.toContain('Scan')
  })
})

const LOWEST = -3.4028234663852886e38

interface Mask {
  /** Returns whether a query sees a key. Without it, there is no mask. */
  sees?: (query: number, key: number) => boolean
  /** The number that is added to the score of a hidden key. Default: the lowest float. */
  hidden?: number
  /** Axes before those of queries and keys. */
  leading?: readonly number[]
  keyLeading?: readonly number[]
  /** The number of query heads for which each key head is repeated, as exporters do. */
  repeats?: number
  /** True if keys are stored as (…, d, T). */
  areTurned?: boolean
  /** The number of heads with a separate mask, which also limits how far they look. */
  masks?: number
  squash?: boolean
  /** Replaces NaN by zero, as exporters do. */
  guard?: boolean
}

const causal = (query: number, key: number) => key <= query
const MASKS: Record<string, Mask> = {
  'no mask': {},
  'a causal mask': { sees: causal },
  'a sliding window': { sees: (query, key) => causal(query, key) && query - key < 3, hidden: Number.NEGATIVE_INFINITY },
  'records in one row': { sees: (query, key) => causal(query, key) && query >> 2 === key >> 2, hidden: -1e9 },
  'keys that nobody sees': { sees: (_, key) => key < 6 },
  'a mask too weak to hide': { sees: causal, hidden: -3 },
  'squashed scores': { sees: causal, squash: true },
  'shared key heads': { sees: causal, leading: [2, 2, 3], keyLeading: [2, 2, 1] },
  'repeated key heads': { sees: causal, leading: [2, 6], keyLeading: [2, 2], repeats: 3 },
  'records in one row, with repeated key heads': {
    ...{ sees: (query, key) => causal(query, key) && query >> 2 === key >> 2, hidden: -1e9 },
    ...{ leading: [2, 6], keyLeading: [2, 2], repeats: 3 },
  },
  'a mask for each head': { sees: causal, masks: 3 },
  'turned keys': { sees: causal, areTurned: true },
  'a prefix that all see': { sees: (query, key) => causal(query, key) || key < 5, hidden: Number.NEGATIVE_INFINITY },
  'a guard': { sees: causal, guard: true },
}

const WIDTH = 4

it.each(some(Object.entries(MASKS), 2))('%s', async (_, { sees, hidden = LOWEST, ...shapes }) => {
  const { leading = [2, 3], keyLeading = leading, repeats = 1, masks = 1, areTurned, squash, guard } = shapes
  const build = () => {
    const graph = emptyGraph(18)
    const axes = leading.map((_, i) => `axis ${i}`)
    for (const name of ['q', 'v', 'weights']) addInput(graph, name, DataType.FLOAT, [...axes, 'tokens', WIDTH])
    addInput(graph, 'k', DataType.FLOAT, areTurned ? [...axes, WIDTH, 'tokens'] : [...axes, 'tokens', WIDTH])
    const g = new Builder(graph, 'test')
    const swap = [...leading.keys(), leading.length + 1, leading.length]
    const repeated = (heads: Value) => {
      if (repeats === 1) return heads
      return g.reshape(
        g.expand(g.unsqueeze(heads, [2]), g.int([1, 1, repeats, 1, 1])),
        g.int([0, leading[1], -1, WIDTH]),
      )
    }
    const keys = areTurned ? 'k' : g.transpose(repeated('k'), swap)
    let scores = g.matmul(g.mul('q', g.float(0.5)), keys)
    if (squash) scores = g.mul(g.op('Tanh', [g.div(scores, g.float(2))]), g.float(2))
    if (sees) scores = g.add(scores, addInput(graph, 'mask', DataType.FLOAT, ['one', masks, 'tokens', 'keys']))
    let p = g.op('Softmax', [scores], { axis: -1 })
    if (guard) p = g.where(g.op('IsNaN', [p]), g.float(0), p)
    return { graph, g, output: g.matmul(p, repeated('v')) }
  }
  const feedsOf = (tokens: number): Feeds => {
    const random = new Random(tokens, 'attention')
    const [own, ofKeys] = [leading, keyLeading].map((axes) => [...axes, tokens, WIDTH])
    const mask = Array.from({ length: masks * tokens ** 2 }, (_, i) => {
      const [key, query, head] = [i % tokens, Math.floor(i / tokens) % tokens, Math.floor(i / tokens ** 2)]
      return sees === undefined || sees(query, key) ? head * key : hidden
    })
    return {
      ...{ q: normals(random, own), v: normals(random, ofKeys) },
      k: normals(random, areTurned ? [...keyLeading, WIDTH, tokens] : ofKeys),
      weights: normals(random, own),
      ...(sees && { mask: { type: 'float32', data: Float32Array.from(mask), dims: [1, masks, tokens, tokens] } }),
    }
  }
  const probe = async () => {
    const { graph, output } = build()
    const points = [3, 7].map(feedsOf) as [Feeds, Feeds]
    for (const point of points) delete point.weights
    graph.inputs = graph.inputs.filter(({ name }) => name !== 'weights')
    addOutput(graph, output, DataType.FLOAT)
    return probeShapes(graph, (model) => runtime.createSession({ graph: serializeModel(model) }), points)
  }
  // The graph is the same in all runs, which add shapes of their own.
  const probed = await probe()
  const run = async (rows: number | undefined, tokens: number) => {
    const { graph, g, output } = build()
    const wrt = ['q', 'k', 'v']
    const { values } = gradientPath(graph, wrt, [output])
    addOutput(graph, output, DataType.FLOAT)
    const shapes = new ShapeMap(probed)
    for (const [value, content] of probed.contents) shapes.contents.set(value, content)
    const custom: CustomGradients = new Map()
    if (rows !== undefined) attendInBlocks({ graph, shapes, rows, customGradients: custom, onPath: values })
    const gradients = buildBackward(g, shapes, new Map<Value, Value>([[output, 'weights']]), wrt, custom)
    for (const name of gradients.values()) addOutput(graph, name, DataType.FLOAT)
    graph.prune()
    expect(graph.nodes.some(({ opType }) => opType === 'Softmax')).toBe(rows === undefined)
    const session = await openGraph(graph)
    const results = await session.run(feedsOf(tokens))
    await session.dispose()
    return [output, ...wrt.map((name) => gradients.get(name) as Value)].map(
      (name) => results[name].data as Float32Array,
    )
  }
  const wholes = { 9: await run(undefined, 9), 11: await run(undefined, 11) }
  for (const [rows, tokens] of [
    [4, 11],
    [3, 9],
    [20, 11],
  ] as const) {
    const parted = await run(rows, tokens)
    wholes[tokens].forEach((expected, i) => {
      expect(relativeError(parted[i], expected), `${['output', 'q', 'k', 'v'][i]}, ${rows} rows`).toBeLessThan(1e-5)
    })
  }
})
