// A module of an adapter that the graph computes as several products, as onnxruntime-genai writes Phi-3's gate_up_proj:
// DoRA, dropout, and a loaded adapter that is trained further. Plain gradients are in
// tests/train/graph/training-graph.test.ts.

import { afterAll, beforeAll, expect, it } from 'vitest'
import { type Feeds, type LoraAdapter, loadAdapter, MemoryDirectory, type Model } from '../../src/api/node.js'
import { resolveConfig } from '../../src/lora/config.js'
import { outputNorms } from '../../src/model/inject/affine.js'
import { findLinears } from '../../src/model/match/linears.js'
import { placeAdapter } from '../../src/model/place/linears.js'
import { loadNodeRuntime } from '../../src/onnx/runtime/node/runtime.js'
import { readGraph } from '../../src/onnx/view/graph.js'
import { squaresOfRows } from '../../src/train/engine/dora.js'
import { buildTrainingGraph } from '../../src/train/graph/training-graph.js'
import { findTargets, newAdapter } from '../../src/train/new-adapter.js'
import { causalLm } from '../../src/train/tasks/causal-lm.js'
import { train } from '../../src/train/train.js'
import { causalOf, collated, factorFeeds, golden, layersOf, relativeError, targetCount } from '../model/golden.js'
import { openModel } from '../run/models.js'
import { abortAt, data, WEIGHTS } from './tiny.js'

const FOLDER = 'tests/golden/models/phi3-genai'
const numbers = golden(`${FOLDER}/golden`)
const MODULE = 'model.layers.0.mlp.gate_up_proj'

let model: Model
let adapter: LoraAdapter
beforeAll(async () => {
  model = await openModel(FOLDER)
  adapter = await loadAdapter(`${FOLDER}/golden/adapter-init`)
})
afterAll(() => model.close())

/** Norms of the rows of W + s·B·A, by module. With these magnitudes, DoRA equals plain LoRA. */
async function adaptedNorms(): Promise<Map<string, Float32Array>> {
  const graph = readGraph(model.onnx)
  const parts = new Map<string, number[]>()
  for (const { name, layer, linear } of placeAdapter(graph, findLinears(graph), adapter.parts('linear'))) {
    const { squares } = await outputNorms(model.onnx, graph, linear, layer)
    parts.set(name, [...(parts.get(name) ?? []), ...Array.from(squares, Math.sqrt)])
  }
  return new Map(Array.from(parts, ([name, norms]) => [name, Float32Array.from(norms)]))
}

it('a new adapter has it as one layer, as PEFT does', async () => {
  const [open, task] = [causalOf(model.onnx) as never, causalLm as never]
  const fresh = await newAdapter(
    model,
    await findTargets(model, resolveConfig({ rank: 2, targetModules: 'all-linear' }), {}),
    { task, open },
  )
  const modules = ['mlp.down_proj', 'mlp.gate_up_proj', 'self_attn.o_proj', 'self_attn.qkv_proj']
  expect(fresh.names().sort()).toEqual(modules.map((name) => `model.layers.0.${name}`))
  expect(fresh.get(MODULE)?.shape).toEqual(adapter.get(MODULE)?.shape)
})

it.each([0, 0.25])('with DoRA it divides by the norms of all rows, dropout %s', async (dropout) => {
  const runtime = await loadNodeRuntime()
  const squares = await squaresOfRows(model, adapter.parts('linear'), undefined)
  const norms = await adaptedNorms()
  const [batch] = numbers.batches
  const results = []
  for (const isDora of [false, true]) {
    const layers = layersOf(adapter).map((layer) =>
      isDora ? { ...layer, baseSquares: squares.get(layer.name)! } : layer,
    )
    const graph = await buildTrainingGraph(model.onnx, runtime, causalOf(model.onnx), { layers, dropout })
    const masks = graph.proto.graph!.input.filter(({ name }) => name.endsWith('/dropout'))
    // There is a mask for each module, and not for each product.
    expect(masks).toHaveLength(dropout === 0 ? 0 : adapter.parts('linear').length)
    const session = await runtime.createSession(await graph.sessionModel(), { threads: 1 })
    const options = { normalizer: targetCount(batch), dropout: { seed: 1, step: 0, run: 0 } }
    const factors = graph.parameters.filter(({ name }) => !name.endsWith('.magnitude'))
    const magnitudes: Feeds = {}
    for (const { name, input, shape } of graph.parameters) {
      if (!name.endsWith('.magnitude')) continue
      magnitudes[input] = { type: 'float32', data: norms.get(name.replace('.magnitude', ''))!, dims: shape }
    }
    const feeds = graph.feeds(collated(causalOf(model.onnx), batch), options)
    const outputs = await session.run({ ...feeds, ...factorFeeds(factors, adapter), ...magnitudes })
    results.push({
      loss: Number(outputs[graph.loss].data[0]),
      gradients: new Map(graph.parameters.map(({ name, gradient }) => [name, outputs[gradient].data as Float32Array])),
    })
    await session.dispose()
  }
  const [plain, dora] = results
  expect(dora.gradients.get(`${MODULE}.magnitude`)).toHaveLength(adapter.layer(MODULE).d)
  expect(dora.loss / plain.loss).toBeCloseTo(1, 5)
  for (const [name, gradient] of plain.gradients) {
    expect(relativeError(dora.gradients.get(name)!, gradient), name).toBeLessThan(1e-4)
  }
})

it('is trained further, and resumed to the same bytes', async () => {
  const load = () => loadAdapter(`${FOLDER}/golden/adapter-init`)
  const run = async (out: MemoryDirectory, options: object = {}) =>
    train({
      ...{
        model,
        adapter: await load(),
        out,
        data: data.slice(0, 8),
        maxLength: 24,
        batchSize: 4,
        maxSteps: 4,
        threads: 1,
      },
      ...options,
    })
  const [whole, broken] = [new MemoryDirectory(), new MemoryDirectory()]
  const { report } = await run(whole)
  expect(report.trainLoss.at(-1)).toBeLessThan(report.trainLoss[0])
  await run(broken, abortAt(2))
  await run(broken, { resume: true })
  expect(broken.files.get(WEIGHTS)).toEqual(whole.files.get(WEIGHTS))
  const saved = await loadAdapter(whole)
  expect(saved.layer(MODULE).d).toBe((await load()).layer(MODULE).d)
})
