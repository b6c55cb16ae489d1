// OLMo 3 by torch.onnx: sessions, merges and training of adapters, and of a classifier, against PEFT
// (tests/golden/olmo3).

import { afterAll, beforeAll, expect, it } from 'vitest'
import { loadAdapter, loadModel, MemoryDirectory, type Model } from '../../../src/api/node.js'
import { parseSafetensorsHeader, readTensorF32, type SafetensorsFile } from '../../../src/files/safetensors.js'
import { merge } from '../../../src/merge/merge.js'
import { runtimeOf } from '../../../src/onnx/runtime/onnxruntime.js'
import { ModelSession } from '../../../src/run/model-session.js'
import { buildTrainingGraph } from '../../../src/train/graph/training-graph.js'
import { findTargets, newAdapter } from '../../../src/train/new-adapter.js'
import { causalLm } from '../../../src/train/tasks/causal-lm.js'
import { directoryOf, inThread, oneThread, openModel } from '../../run/models.js'
import { int64 } from '../../several-graphs.js'
import { causalOf, collated, factorFeeds, layersOf, partOf, relativeError, targetCount, transposed } from '../golden.js'

const FOLDER = 'tests/golden/olmo3'
const IDS = [
  [5, 17, 40, 3, 99, 64],
  [7, 7, 81, 12, 100, 26],
]
const FEEDS = { input_ids: int64(IDS.flat(), [2, 6]), attention_mask: int64(Array(12).fill(1), [2, 6]) }

let model: Model
let golden: SafetensorsFile
beforeAll(async () => {
  model = await openModel(FOLDER)
  golden = await parseSafetensorsHeader(await directoryOf(`${FOLDER}/golden`).open('logits.safetensors'))
})
afterAll(async () => {
  await golden.source.close()
  await model.close()
})

const wanted = async (name: string) => (await readTensorF32(golden, name)).data as Float32Array

/** Returns the logits at the last token of each row. */
async function lastLogits(session: ModelSession<Model>, adapter: string | null): Promise<Float32Array> {
  const { logits } = await session.run(FEEDS, { adapter })
  const [rows, tokens, width] = logits.dims
  return Float32Array.from({ length: rows * width }, (_, i) => {
    return Number(logits.data[(Math.floor(i / width) * tokens + tokens - 1) * width + (i % width)])
  })
}

it('gives PyTorch’s logits, and with an adapter PEFT’s, in a session and merged', async () => {
  const own = await loadAdapter(directoryOf(`${FOLDER}/golden/adapter`))
  const session = await ModelSession.open(model, { adapters: { own } })
  expect(relativeError(await lastLogits(session, null), await wanted('base'))).toBeLessThan(1e-4)
  expect(relativeError(await lastLogits(session, 'own'), await wanted('adapted'))).toBeLessThan(1e-4)
  await session.dispose()

  const out = new MemoryDirectory({}, 'out')
  await merge({ base: { directory: directoryOf(FOLDER) }, adapters: own, out })
  const merged = await ModelSession.open(await loadModel(out, { runtime: inThread }), {}, true)
  expect(relativeError(await lastLogits(merged, null), await wanted('adapted'))).toBeLessThan(1e-4)
  await merged.dispose()
})

it('learns with PEFT’s loss and gradients, in layers of PEFT’s names', async () => {
  const adapter = await loadAdapter(directoryOf(`${FOLDER}/golden/adapter`))
  const task = causalOf(model.onnx)
  const runtime = runtimeOf(oneThread)
  const graph = await buildTrainingGraph(model.onnx, runtime, task, { layers: layersOf(adapter) })
  const compiled = await runtime.createSession(await graph.sessionModel(), {})
  const batch = { inputIds: IDS, attentionMask: IDS.map((ids) => ids.map(() => 1)), labels: IDS }
  const feeds = { ...collated(task, batch), ...factorFeeds(graph.parameters, adapter) }
  const outputs = await compiled.run(graph.feeds(feeds, { normalizer: targetCount(batch) }))
  expect(Number(outputs[graph.loss].data[0])).toBeCloseTo((await wanted('loss'))[0], 5)
  expect(graph.parameters).toHaveLength(2 * adapter.size)
  for (const { name: parameter, gradient } of graph.parameters) {
    const [layer, factor] = partOf(parameter)
    const { data, shape } = await readTensorF32(golden, `gradient/base_model.model.${layer}.lora_${factor}.weight`)
    const expected = factor === 'A' ? data : transposed(data, shape)
    expect(relativeError(outputs[gradient].data as Float32Array, expected), parameter).toBeLessThan(1e-4)
  }
  await compiled.dispose()
  const fresh = await newAdapter(model, await findTargets(model, adapter.config, {}), {
    task: causalLm as never,
    open: task as never,
  })
  expect(fresh.names().sort()).toEqual(adapter.names().sort())
})

it('gives labels as PEFT does, with the head that transformers puts on the decoder', async () => {
  const own = await loadAdapter(directoryOf(`${FOLDER}/golden/classifier`))
  const config = { ...model.config, id2label: { 0: 'a', 1: 'b', 2: 'c' } }
  const session = await ModelSession.open({ ...model, config }, { adapters: { own } })
  const { logits } = await session.run(FEEDS, { adapter: 'own' })
  expect(logits.dims).toEqual([2, 3])
  expect(relativeError(logits.data as Float32Array, await wanted('labels'))).toBeLessThan(1e-4)
  await session.dispose()
})
