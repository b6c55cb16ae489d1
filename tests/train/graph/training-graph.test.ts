import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  DataError,
  type Feeds,
  type LoraAdapter,
  MismatchError,
  type RuntimeTensor,
  StateError,
} from '../../../src/api/node.js'
import { findLinears } from '../../../src/model/match/linears.js'
import { ModelProtoSchema } from '../../../src/onnx/format/gen/onnx_pb.js'
import { OnnxModel } from '../../../src/onnx/format/model.js'
import { fromBinary } from '../../../src/onnx/format/protobuf.js'
import { loadNodeRuntime } from '../../../src/onnx/runtime/node/runtime.js'
import type { RuntimeSession } from '../../../src/onnx/runtime/runtime.js'
import { Builder } from '../../../src/onnx/view/builder.js'
import { Graph } from '../../../src/onnx/view/graph.js'
import {
  buildLossGraph,
  buildTrainingGraph,
  type LossGraph,
  type TrainedLayer,
  type TrainingGraph,
} from '../../../src/train/graph/training-graph.js'
import {
  causalOf,
  collated,
  factorFeeds,
  type Golden,
  golden,
  goldenGradients,
  layersOf,
  MODELS,
  openAdapter,
  openModel,
  partOf,
  relativeError,
  targetCount,
  UNION,
} from '../../model/golden.js'

const runtime = await loadNodeRuntime()

async function open(graph: LossGraph): Promise<RuntimeSession> {
  return runtime.createSession(await graph.sessionModel(), { threads: 1 })
}

function lossOf(outputs: Record<string, RuntimeTensor>): number {
  return outputs.loss.data[0] as number
}

const TRAINED: [name: string, model: string, numbers: string][] = [
  ['union-3m', UNION, 'tests/golden/train-union'],
  ...[
    ...['llama-optimum', 'llama-genai', 'llama-genai-rotary', 'llama-dynamo', 'qwen2-optimum', 'gpt2-optimum'],
    ...['qwen3-genai', 'phi3-genai'],
    'merged-if',
  ].map((name): [string, string, string] => [name, `${MODELS}/${name}`, `${MODELS}/${name}/golden`]),
]

describe.each(TRAINED)('%s', (_, modelFolder, folder) => {
  let model: OnnxModel
  let adapter: LoraAdapter
  let numbers: Golden
  let graph: TrainingGraph
  let session: RuntimeSession
  let factors: Feeds

  beforeAll(async () => {
    numbers = golden(folder)
    model = await openModel(modelFolder)
    adapter = await openAdapter(`${folder}/adapter-init`)
    graph = await buildTrainingGraph(model, runtime, causalOf(model), { layers: layersOf(adapter) })
    session = await open(graph)
    factors = factorFeeds(graph.parameters, adapter)
  })

  afterAll(async () => {
    await session.dispose()
    await model.close()
  })

  const run = (index: number, normalizer = targetCount(numbers.batches[index])) =>
    session.run({ ...graph.feeds(collated(causalOf(model), numbers.batches[index]), { normalizer }), ...factors })

  it("gives PyTorch's losses", async () => {
    for (const [index, expected] of numbers.loss.entries()) {
      expect(Math.abs(lossOf(await run(index)) / expected - 1)).toBeLessThan(1e-5)
    }
  })

  it("gives PyTorch's gradients", async () => {
    for (const index of [0, 1]) {
      const outputs = await run(index)
      const expected = await goldenGradients(folder, index)
      for (const { name, gradient } of graph.parameters) {
        const [layer, factor] = partOf(name)
        const error = relativeError(outputs[gradient].data as Float32Array, expected(layer, factor))
        expect(error, `${layer} ${factor}`).toBeLessThan(1e-4)
      }
    }
  })

  // One of each kind of attention: written out, fused, behind an If, and with a mask of its own.
  const hasBlocks = /llama-(optimum|genai)$|merged-if|gpt2/.test(modelFolder)
  it.runIf(hasBlocks)('gives both with attention in blocks of five queries', async () => {
    const parted = await buildTrainingGraph(model, runtime, causalOf(model), {
      layers: layersOf(adapter),
      attentionRows: 5,
      isOptimized: true,
    })
    const softmaxes = parted.proto.graph?.node.filter(({ opType }) => opType === 'Softmax')
    expect(softmaxes, 'that of the loss alone').toHaveLength(1)
    const own = await open(parted)
    const batch = numbers.batches[1]
    const feeds = parted.feeds(collated(causalOf(model), batch), { normalizer: targetCount(batch) })
    const outputs = await own.run({ ...feeds, ...factorFeeds(parted.parameters, adapter) })
    expect(Math.abs(lossOf(outputs) / numbers.loss[1] - 1)).toBeLessThan(1e-5)
    const expected = await goldenGradients(folder, 1)
    for (const { name, gradient } of parted.parameters) {
      const error = relativeError(outputs[gradient].data as Float32Array, expected(...partOf(name)))
      expect(error, name).toBeLessThan(1e-4)
    }
    await own.dispose()
  })

  it('gives the same losses without gradients', async () => {
    const evaluation = await buildLossGraph(model, runtime, causalOf(model), { layers: layersOf(adapter) })
    const evaluating = await open(evaluation)
    for (const [index, expected] of numbers.loss.entries()) {
      const batch = numbers.batches[index]
      const feeds = evaluation.feeds(collated(causalOf(model), batch), { normalizer: targetCount(batch) })
      const outputs = await evaluating.run({ ...feeds, ...factors })
      expect(Math.abs(lossOf(outputs) / expected - 1)).toBeLessThan(1e-5)
    }
    await evaluating.dispose()
  })

  it("with B = 0 gives the base model's losses", async () => {
    const zeros = graph.parameters.map(({ input, shape, name }) => [
      input,
      partOf(name)[1] === 'A' ? factors[input] : { ...factors[input], data: new Float32Array(shape[0] * shape[1]) },
    ])
    for (const [index, expected] of numbers.baseLoss.entries()) {
      const batch = numbers.batches[index]
      const feeds = graph.feeds(collated(causalOf(model), batch), { normalizer: targetCount(batch) })
      expect(
        Math.abs(lossOf(await session.run({ ...feeds, ...Object.fromEntries(zeros) })) / expected - 1),
      ).toBeLessThan(1e-5)
    }
  })

  it('leaves the weights in their files', async () => {
    const { graph: bytes, weightsFolder, weights } = await graph.sessionModel()
    expect(weights).toBeUndefined()
    expect(weightsFolder).toMatch(/onnx$/)
    expect(bytes.byteLength).toBeLessThan(600_000)
  })
})

it('gives the same loss and gradients where no weights are repacked', async () => {
  const model = await openModel(UNION)
  const adapter = await openAdapter('tests/golden/train-union/adapter-init')
  const graph = await buildTrainingGraph(model, runtime, causalOf(model), { layers: layersOf(adapter) })
  const [batch] = golden('tests/golden/train-union').batches
  const feeds = graph.feeds(collated(causalOf(model), batch), { normalizer: targetCount(batch) })
  const results: Record<string, RuntimeTensor>[] = []
  const counts: number[] = []
  for (const copiedBytes of [Number.POSITIVE_INFINITY, 0, 2 ** 20]) {
    const opened = await graph.sessionModel(undefined, copiedBytes)
    const { initializer = [], input = [] } = fromBinary(ModelProtoSchema, opened.graph).graph ?? {}
    const names = new Set(initializer.map(({ name }) => name))
    counts.push(input.filter(({ name }) => names.has(name)).length)
    const session = await runtime.createSession(opened, { threads: 1 })
    results.push(await session.run({ ...feeds, ...factorFeeds(graph.parameters, adapter) }))
    await session.dispose()
  }
  expect(counts[0]).toBe(0)
  expect(counts[2]).toBeGreaterThan(0)
  expect(counts[1]).toBeGreaterThan(counts[2])
  const [packed, ...mapped] = results
  for (const name of ['loss', ...graph.parameters.map(({ gradient }) => gradient)]) {
    for (const result of mapped) {
      const error = relativeError(result[name].data as Float32Array, packed[name].data as Float32Array)
      expect(error, name).toBeLessThan(1e-5)
    }
  }
  await model.close()
})

it('has norms and rotations as one operator each, and repeats no key', async () => {
  const model = await openModel(`${MODELS}/llama-optimum`)
  const adapter = await openAdapter(`${MODELS}/llama-optimum/golden/adapter-init`)
  const training = await buildTrainingGraph(model, runtime, causalOf(model), { layers: layersOf(adapter) })
  const forward = new Graph(training.proto).nodes.filter(({ name }) => !/backward|again/.test(name))
  const count = (opType: string) => forward.filter((node) => node.opType === opType).length
  const layers = model.proto.graph?.node.filter(({ opType }) => opType === 'Softmax').length ?? 0
  expect(layers).toBeGreaterThan(1)
  expect(count('RotaryEmbedding')).toBe(2 * layers)
  // No gradient passes the first layer's norm, so only later norms remain fused.
  expect(count('SimplifiedLayerNormalization')).toBe(2 * layers)
  // Only the lengths of repeated keys are read again.
  const again = training.proto.graph?.node.filter(({ name }) => name.startsWith('again/'))
  expect(again?.filter(({ opType }) => opType === 'MatMul')).not.toHaveLength(0)
  expect(again?.some(({ opType }) => opType === 'Expand')).toBe(false)
  await model.close()
})

describe('on one small model', () => {
  const folder = `${MODELS}/llama-dynamo`
  const numbers = golden(`${folder}/golden`)
  const [batch] = numbers.batches
  const normalizer = targetCount(batch)
  let model: OnnxModel
  let adapter: LoraAdapter
  let layers: TrainedLayer[]

  beforeAll(async () => {
    model = await openModel(folder)
    adapter = await openAdapter(`${folder}/golden/adapter-init`)
    layers = layersOf(adapter)
  })
  afterAll(() => model.close())

  const gradientsOf = (graph: TrainingGraph, outputs: Record<string, RuntimeTensor>) =>
    graph.parameters.map(({ gradient }) => outputs[gradient].data as Float32Array)

  it('splits a step into runs whose losses and gradients add up', async () => {
    const graph = await buildTrainingGraph(model, runtime, causalOf(model), { layers })
    const session = await open(graph)
    const factors = factorFeeds(graph.parameters, adapter)
    const run = (rows: number[]) => {
      const part = {
        inputIds: rows.map((row) => batch.inputIds[row]),
        attentionMask: rows.map((row) => batch.attentionMask[row]),
        labels: rows.map((row) => batch.labels[row]),
      }
      return session.run({ ...graph.feeds(collated(causalOf(model), part), { normalizer }), ...factors })
    }
    const whole = await run([0, 1, 2, 3])
    const parts = [await run([0]), await run([1, 2, 3])]
    expect(parts.reduce((sum, outputs) => sum + lossOf(outputs), 0)).toBeCloseTo(lossOf(whole), 5)
    const [first, second] = parts.map((outputs) => gradientsOf(graph, outputs))
    gradientsOf(graph, whole).forEach((expected, p) => {
      const sum = expected.map((_, i) => first[p][i] + second[p][i])
      expect(relativeError(sum, expected)).toBeLessThan(1e-5)
    })
    await session.dispose()
  })

  it('trains the output embedding too', async () => {
    const k = 32
    const head = { name: 'lm_head', d: 2048, k, rank: 2, scaling: 1.5 }
    const graph = await buildTrainingGraph(model, runtime, causalOf(model), { layers: [...layers, head] })
    const session = await open(graph)
    const value = (length: number, phase: number) => Float32Array.from({ length }, (_, i) => 0.1 * Math.sin(phase + i))
    const feeds: Feeds = {
      ...graph.feeds(collated(causalOf(model), batch), { normalizer }),
      ...factorFeeds(graph.parameters.slice(0, -2), adapter),
      'lora/lm_head/A': { type: 'float32' as const, data: value(k * 2, 1), dims: [2, k] },
      'lora/lm_head/B': { type: 'float32' as const, data: value(2 * 2048, 2), dims: [2, 2048] },
    }
    const outputs = await session.run(feeds)
    // Central differences along one direction per factor, in the f32 of the graph itself.
    for (const { input, gradient, shape } of graph.parameters.filter(({ name }) => /lm_head|0\.mlp\.up/.test(name))) {
      const direction = value(shape[0] * shape[1], 3)
      const step = 0.03
      const at = async (sign: number) => {
        const data = (feeds[input].data as Float32Array).map((entry, i) => entry + sign * step * direction[i])
        return lossOf(await session.run({ ...feeds, [input]: { ...feeds[input], data } }, ['loss']))
      }
      const slope = ((await at(1)) - (await at(-1))) / (2 * step)
      const product = (outputs[gradient].data as Float32Array).reduce((sum, entry, i) => sum + entry * direction[i], 0)
      expect(Math.abs(product - slope)).toBeLessThan(0.01 * Math.abs(slope) + 1e-3)
    }
    await session.dispose()
  })

  describe('dropout', () => {
    const draw = { seed: 1, step: 3, run: 0 }

    it('is seeded, changes the loss, and keeps its mean', async () => {
      const graph = await buildTrainingGraph(model, runtime, causalOf(model), { layers, dropout: 0.1 })
      const session = await open(graph)
      const factors = factorFeeds(graph.parameters, adapter)
      const run = async (dropout: typeof draw) =>
        lossOf(
          await session.run({ ...graph.feeds(collated(causalOf(model), batch), { normalizer, dropout }), ...factors }),
        )
      expect(await run(draw)).toBe(await run(draw))
      const losses: number[] = []
      for (let step = 0; step < 24; step++) losses.push(await run({ ...draw, step }))
      expect(new Set(losses).size).toBe(24)
      const mean = losses.reduce((a, b) => a + b) / 24
      const error = Math.sqrt(losses.reduce((sum, loss) => sum + (loss - mean) ** 2, 0) / 23 / 24)
      expect(Math.abs(mean - numbers.loss[0])).toBeLessThan(6 * error + 0.05)
      await session.dispose()
    })

    it('drops the share that it was told, differently for every draw and mask', async () => {
      const graph = await buildTrainingGraph(model, runtime, causalOf(model), { layers, dropout: 0.25 })
      const masksOf = (dropout: typeof draw) =>
        Object.entries(graph.feeds(collated(causalOf(model), batch), { normalizer, dropout }))
          .filter(([, { type }]) => type === 'bool')
          .map(([, { data }]) => data as Uint8Array)
      const masks = masksOf(draw)
      expect(masks).toHaveLength(14) // one for each layer, also where several read one input
      const kept = masks.flatMap((mask) => [...mask])
      expect(kept.reduce((a, b) => a + b) / kept.length).toBeCloseTo(0.75, 1)
      const all = [masks, masksOf({ ...draw, step: 4 }), masksOf({ ...draw, run: 1 }), masksOf({ ...draw, seed: 2 })]
      const prefixes = all.flatMap((list) => list.map((mask) => mask.slice(0, 64).join('')))
      expect(new Set(prefixes).size).toBe(4 * 14)
    })

    it('needs a draw', async () => {
      const graph = await buildTrainingGraph(model, runtime, causalOf(model), { layers, dropout: 0.1 })
      expect(() => graph.feeds(collated(causalOf(model), batch), { normalizer })).toThrow(StateError)
    })
  })

  it('needs a target', async () => {
    const graph = await buildLossGraph(model, runtime, causalOf(model), { layers })
    const labels = batch.labels.map((row) => row.map((label, i) => (i === 0 ? label : -100)))
    expect(() => graph.feeds(collated(causalOf(model), { ...batch, labels }), { normalizer: 1 })).toThrow(DataError)
  })

  it('refuses layers that the model does not have, or has in another shape', async () => {
    const other = { ...layers[0], name: 'model.layers.7.self_attn.q_proj' }
    await expect(buildTrainingGraph(model, runtime, causalOf(model), { layers: [other] })).rejects.toThrow(
      MismatchError,
    )
    const wide = { ...layers[0], k: 33 }
    await expect(buildTrainingGraph(model, runtime, causalOf(model), { layers: [wide] })).rejects.toThrow(
      /down_proj.*expected a weight of \(32, 80\), as in the model, got \(32, 33\)/,
    )
  })
})

describe('a model that gives logits of the last token alone', () => {
  it.each([
    [
      'keeps an axis of tokens',
      (g: Builder, x: string) => g.op('Slice', [x, g.int([-1]), g.int([2 ** 31]), g.int([1])]),
    ],
    ['has none', (g: Builder, x: string) => g.op('Gather', [x, g.int(-1)], { axis: 1 })],
  ])('is refused before training when its head %s', async (_, cut) => {
    const model = await openModel(`${MODELS}/llama-optimum`)
    const graph = new Graph(model.proto)
    const head = findLinears(graph).find(({ isHead }) => isHead)!
    const last = cut(new Builder(graph, 'test'), head.input)
    graph.setInputs(head.node, [last, ...head.node.input.slice(1)])
    const pruned = new OnnxModel(model.name, model.fileName, graph.toModel(), model.files)
    const layers = [{ name: 'model.layers.0.self_attn.q_proj', d: 64, k: 32, rank: 2, scaling: 1 }]
    await expect(buildTrainingGraph(pruned, runtime, causalOf(pruned), { layers })).rejects.toThrow(
      /logits for some tokens only.*expected logits \(batch, sequence, vocabulary\), got 2 rows of logits for 2 sequences of 3 tokens/,
    )
    await model.close()
  })
})

it('computes rows in layers that are not adapted, where gradients pass them between two that are', async () => {
  const model = await openModel(`${MODELS}/llama-optimum`)
  const adapter = await openAdapter(`${MODELS}/llama-optimum/golden/adapter-init`)
  const isTrained = ({ name }: TrainedLayer) => /layers\.0\..*q_proj|layers\.1\..*down_proj/.test(name)
  const layers = layersOf(adapter).filter(isTrained)
  expect(layers).toHaveLength(2)
  const { proto } = await buildTrainingGraph(model, runtime, causalOf(model), { layers })
  const between = proto.graph!.node.filter(({ name }) => /layers\.[01]\/mlp\/gate_proj/.test(name))
  expect(between.map(({ opType }) => opType)).toEqual(['Gemm', 'Gemm'])
  await model.close()
})
