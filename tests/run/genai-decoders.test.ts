// Decoders of onnxruntime-genai whose caches or modules are of another kind than Llama's: LFM2's convolutions, Gemma
// 2's sliding windows, Granite 4's MLP.

import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { loadAdapter, loadModel, MemoryDirectory, type Model } from '../../src/api/node.js'
import { parseSafetensorsHeader, readTensorF32 } from '../../src/files/safetensors.js'
import { merge } from '../../src/merge/merge.js'
import { runtimeOf } from '../../src/onnx/runtime/onnxruntime.js'
import { textFormOf } from '../../src/run/generate/text-graph.js'
import { ModelSession } from '../../src/run/model-session.js'
import { buildTrainingGraph } from '../../src/train/graph/training-graph.js'
import { findTargets, newAdapter } from '../../src/train/new-adapter.js'
import { causalLm } from '../../src/train/tasks/causal-lm.js'
import {
  causalOf,
  collated,
  factorFeeds,
  layersOf,
  partOf,
  relativeError,
  targetCount,
  transposed,
} from '../model/golden.js'
import { int64 } from '../several-graphs.js'
import { directoryOf, inThread, oneThread, openModel } from './models.js'

const IDS = [
  [5, 17, 40, 3, 99, 64],
  [7, 7, 81, 12, 100, 26],
]

describe.each(['lfm2', 'gemma2', 'qwen3_5', 'granite'])('%s', (name) => {
  const folder = `tests/golden/genai-decoders/${name}`
  let model: Model
  let session: ModelSession<Model>
  beforeAll(async () => {
    model = await openModel(folder)
    const own = await loadAdapter(directoryOf(`${folder}/golden/adapter`))
    session = await ModelSession.open(model, { adapters: { own } })
  })
  afterAll(async () => {
    await session?.dispose()
    await model.close()
  })

  it.each([null, 'own'])('gives PyTorch’s logits, at once and token by token, with the adapter %s', async (adapter) => {
    const source = await directoryOf(`${folder}/golden`).open('logits.safetensors')
    const { data: wanted } = await readTensorF32(
      await parseSafetensorsHeader(source),
      adapter === null ? 'base' : 'adapted',
    )
    await source.close()
    const width = wanted.length / 2
    const whole = await session.run({ input_ids: int64(IDS.flat(), [2, 6]) }, { adapter })
    for (const [row, ids] of IDS.entries()) {
      const expected = wanted.slice(row * width, (row + 1) * width) as Float32Array
      const all = whole.logits.data as Float32Array
      const size = all.length / 2
      expect(relativeError(all.subarray((row + 1) * size - width, (row + 1) * size), expected)).toBeLessThan(1e-4)
      let cache = {}
      let last: Float32Array = new Float32Array()
      for (const [i, id] of ids.entries()) {
        const mask = int64(Array(i + 1).fill(1))
        const { logits, ...presents } = await session.run(
          { input_ids: int64([id]), attention_mask: mask, ...cache },
          { adapter },
        )
        last = logits.data as Float32Array
        cache = Object.fromEntries(
          Object.entries(presents).map(([present, value]) => {
            const past = session.inputNames.find((input) =>
              [present.replace('present', 'past_key_values'), present.replace('present', 'past')].includes(input),
            )!
            return [past, value]
          }),
        )
      }
      expect(relativeError(last.subarray(last.length - width), expected)).toBeLessThan(1e-4)
    }
  })

  it('gives the same logits merged', async () => {
    const adapter = await loadAdapter(directoryOf(`${folder}/golden/adapter`))
    const out = new MemoryDirectory({}, 'out')
    await merge({ base: { directory: directoryOf(folder) }, adapters: adapter, out })
    const merged = await ModelSession.open(await loadModel(out, { runtime: inThread }), {}, true)
    const feeds = { input_ids: int64(IDS.flat(), [2, 6]) }
    const [{ logits }, own] = [await merged.run(feeds), await session.run(feeds, { adapter: 'own' })]
    expect(relativeError(logits.data as Float32Array, own.logits.data as Float32Array)).toBeLessThan(1e-5)
    await merged.dispose()
  })

  it('learns with PEFT’s loss and gradients, in layers of PEFT’s names', async () => {
    const source = await directoryOf(`${folder}/golden`).open('logits.safetensors')
    const file = await parseSafetensorsHeader(source)
    const adapter = await loadAdapter(directoryOf(`${folder}/golden/adapter`))
    const task = causalOf(model.onnx)
    const runtime = runtimeOf(oneThread)
    const graph = await buildTrainingGraph(model.onnx, runtime, task, { layers: layersOf(adapter) })
    const compiled = await runtime.createSession(await graph.sessionModel(), {})
    const batch = { inputIds: IDS, attentionMask: IDS.map((ids) => ids.map(() => 1)), labels: IDS }
    const feeds = { ...collated(task, batch), ...factorFeeds(graph.parameters, adapter) }
    const outputs = await compiled.run(graph.feeds(feeds, { normalizer: targetCount(batch) }))
    const { data: loss } = await readTensorF32(file, 'loss')
    expect(Number(outputs[graph.loss].data[0])).toBeCloseTo(loss[0], 5)
    for (const { name: parameter, gradient } of graph.parameters) {
      const [layer, factor] = partOf(parameter)
      const { data, shape } = await readTensorF32(file, `gradient/base_model.model.${layer}.lora_${factor}.weight`)
      const wanted = factor === 'A' ? data : transposed(data, shape)
      expect(relativeError(outputs[gradient].data as Float32Array, wanted), parameter).toBeLessThan(1e-4)
    }
    await compiled.dispose()
    await source.close()
    const fresh = await newAdapter(model, await findTargets(model, adapter.config, {}), {
      task: causalLm as never,
      open: task as never,
    })
    expect(fresh.names().sort()).toEqual(adapter.names().sort())
  })

  it('fills no prompt up where a convolution would read what fills it up', async () => {
    const { padding, cachePadding, shares } = await textFormOf(model)
    const hasStates = !['gemma2', 'granite'].includes(name)
    expect({ padding, cachePadding, shares }).toEqual({
      padding: hasStates ? 'none' : 'right',
      cachePadding: 'right',
      shares: true,
    })
  })
})

it.each([
  ['lfm2', 'feed_forward', 'feed-forward'],
  ['granite', 'shared_mlp', 'common_mlp'],
])('%s with MLPs of unknown names: they are not offered to be left out', async (name, known, unknown) => {
  const golden = `tests/golden/genai-decoders/${name}`
  const read = (file: string) => readFileSync(`${golden}/golden/adapter/${file}`, 'latin1')
  const files = {
    'adapter_config.json': read('adapter_config.json'),
    'adapter_model.safetensors': read('adapter_model.safetensors').replaceAll(known, unknown),
  }
  const folder = new MemoryDirectory(
    Object.fromEntries(Object.entries(files).map(([file, text]) => [file, Buffer.from(text, 'latin1')])),
  )
  const model = await openModel(golden)
  const opened = ModelSession.open(model, { adapters: { own: await loadAdapter(folder) } })
  await expect(opened).rejects.toThrow(/no module for model\.layers\.(?!.*allowMissing).*under other names/s)
  await model.close()
})
