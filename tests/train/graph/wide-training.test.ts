// Layers with at least 512 columns train with products that add in place, and large vocabularies train in blocks.
// Golden models are too small for both, so this test compares training with both to training with neither.

import { expect, it } from 'vitest'
import { Random } from '../../../src/core/base/random.js'
import { blocksFor } from '../../../src/model/memory.js'
import { OnnxModel } from '../../../src/onnx/format/model.js'
import { loadNodeRuntime } from '../../../src/onnx/runtime/node/runtime.js'
import { Builder, type Value } from '../../../src/onnx/view/builder.js'
import { buildTrainingGraph } from '../../../src/train/graph/training-graph.js'
import { causalOf, collated, relativeError, targetCount } from '../../model/golden.js'
import { addInput, addOutput, DataType, emptyGraph, floatTensor, normals, valuesOf } from '../../onnx/toolkit.js'

const [VOCABULARY, WIDTH, WIDER] = [96, 512, 640]
const layers = Array.from({ length: 2 }, (_, i) =>
  ['up_proj', 'down_proj'].map((name, j) => {
    const [k, d] = j === 0 ? [WIDTH, WIDER] : [WIDER, WIDTH]
    return { name: `model.layers.${i}.mlp.${name}`, k, d, rank: 4, scaling: 2 }
  }),
).flat()

/** h ← h + down(up(h)·σ(up(h))) of each pair of layers. */
function wideModel(random: Random): OnnxModel {
  const graph = emptyGraph(17)
  addInput(graph, 'input_ids', DataType.INT64, ['batch', 'sequence'])
  const weight = (name: string, k: number, d: number) => {
    const values = valuesOf(normals(random, [k, d], k ** -0.5))
    graph.addInitializer(floatTensor(name, DataType.FLOAT, values, [k, d]))
    return name
  }
  const product = (x: Value, name: string, k: number, d: number) =>
    new Builder(graph, `/${name.replaceAll(/\.(?!\d)/g, '/')}`).op('MatMul', [x, weight(`${name}.weight`, k, d)])
  const g = new Builder(graph, 'test')
  let h = g.op('Gather', [weight('model.embed_tokens.weight', VOCABULARY, WIDTH), 'input_ids'])
  for (let i = 0; i < layers.length; i += 2) {
    const [up, down] = layers.slice(i, i + 2)
    const inner = product(h, up.name, up.k, up.d)
    h = g.add(h, product(g.mul(inner, g.op('Sigmoid', [inner])), down.name, down.k, down.d))
  }
  g.op('Identity', [product(h, 'lm_head', WIDTH, VOCABULARY)])
  const last = graph.nodes.at(-1)
  if (last) last.output = ['logits']
  addOutput(graph, 'logits', DataType.FLOAT)
  return new OnnxModel('wide', 'model.onnx', graph.toModel(), new Map())
}

it('has the loss and the gradients of plain products and whole logits', async () => {
  const random = new Random(5, 'wide')
  const model = wideModel(random)
  const ids = Array.from({ length: 2 }, () => Array.from({ length: 24 }, () => random.below(VOCABULARY)))
  const batch = { inputIds: ids, labels: ids, attentionMask: ids.map((row) => row.map(() => 1)) }
  const runtime = await loadNodeRuntime()
  const factors = new Map<string, ReturnType<typeof normals>>()
  const results: Record<string, number[]>[] = []
  for (const isWhole of [true, false]) {
    const logitBytes = { whole: 4 * VOCABULARY, block: 4 * VOCABULARY * 7 }
    const options = isWhole ? {} : { ...blocksFor(48), logitBytes }
    const graph = await buildTrainingGraph(model, runtime, causalOf(model), { layers, ...options })
    const operators = graph.proto.graph?.node.map(({ opType }) => opType)
    expect(operators?.includes('Scan')).toBe(!isWhole)
    expect(operators?.includes('FusedConv')).toBe(!isWhole)
    const feeds = graph.feeds(collated(causalOf(model), batch), { normalizer: targetCount(batch) })
    for (const { name, input, shape } of graph.parameters) {
      const values = factors.get(name) ?? normals(random, shape, 0.05)
      factors.set(name, values)
      feeds[input] = values
    }
    const session = await runtime.createSession(await graph.sessionModel(), { threads: 2 })
    const outputs = await session.run(feeds)
    await session.dispose()
    const gradients = graph.parameters.map(({ name, gradient }) => [name, valuesOf(outputs[gradient])])
    results.push({ loss: valuesOf(outputs.loss), ...Object.fromEntries(gradients) })
  }
  const [whole, parted] = results
  expect(Object.keys(parted)).toHaveLength(1 + 2 * layers.length)
  for (const [name, expected] of Object.entries(whole)) {
    expect(relativeError(parted[name], expected), name).toBeLessThan(name === 'loss' ? 1e-6 : 1e-5)
  }
})
