// Sessions on a model of texts and pictures with three graphs give PEFT's logits.

import * as ort from 'onnxruntime-node'
import { describe, expect, it } from 'vitest'
import { type Feeds, LoraAdapter, loadAdapter, loadModel } from '../../src/api/node.js'
import { ModelSession } from '../../src/run/model-session.js'
import { graphsFolder, graphsNumbers, int64, lastRows, worst } from '../several-graphs.js'
import { pictureLogits } from '../vision-language.js'

const open = () => loadModel(graphsFolder('llava'), { runtime: { module: ort } })
const adapterOf = () => loadAdapter(`${graphsFolder('llava')}/golden/adapter`)

describe('pictures, embedding and decoder', () => {
  it('raw feeds give PEFT’s logits, whole and with a cache', async () => {
    const model = await open()
    const adapters = { own: await adapterOf() }
    const session = await ModelSession.open(model, { adapters, allowMissing: true })
    expect(session.graphs).toEqual(['decoder', 'embed_tokens', 'vision_encoder'])
    const numbers = await graphsNumbers('llava')
    for (const [adapter, key] of [
      [null, 'base'],
      ['own', 'adapted'],
    ] as const) {
      const { whole, cached } = await pictureLogits((graph, feeds) => session.run(feeds, { graph, adapter }))
      expect(worst(whole, numbers.get(key)!)).toBeLessThan(1e-5)
      expect(worst(cached, numbers.get(key)!.slice(-2048))).toBeLessThan(1e-5)
    }
    await session.dispose()
    await model.close()
  })

  it('a mask, positions and a cache that are left out are as of one text, and rows run several tokens behind a cache', async () => {
    const model = await open()
    const session = await ModelSession.open(model)
    const { data, dims } = (await session.run({ input_ids: int64([5, 6, 7, 8]) }, { graph: 'embed_tokens' }))
      .inputs_embeds
    const vectors = (start: number, end: number, batch = 1): Feeds => {
      const own = (data as Float32Array).slice(start * dims[2], end * dims[2])
      const values = Float32Array.from({ length: batch * own.length }, (_, i) => own[i % own.length])
      return { inputs_embeds: { type: 'float32', data: values, dims: [batch, end - start, dims[2]] } }
    }
    const whole = await session.run(vectors(0, 4))
    expect(whole.logits.dims).toEqual([1, 4, 2048])
    const { logits: _, ...first } = await session.run(vectors(0, 2, 2))
    const past = Object.fromEntries(
      Object.entries(first).map(([name, tensor]) => [name.replace('present', 'past_key_values'), tensor]),
    )
    const { logits } = await session.run({ ...vectors(2, 4, 2), ...past })
    for (const row of [0, 1]) {
      const own = (logits.data as Float32Array).slice(row * 2 * 2048, (row + 1) * 2 * 2048)
      expect(worst(own, lastRows(whole.logits, 2))).toBeLessThan(1e-5)
    }
    await session.dispose()
    await model.close()
  })

  it('layers that the export dropped are an error that names the three graphs', async () => {
    const model = await open()
    const adapters = { own: await adapterOf() }
    await expect(ModelSession.open(model, { adapters })).rejects.toThrow(
      /none of the model's graphs \(decoder_model_merged.onnx, embed_tokens.onnx, vision_encoder.onnx\) has a module for model.vision_tower.encoder.layers.1.mlp.fc1/,
    )
    await model.close()
  })

  it.each([
    ['transformers 4, older', 'model.language_model.layers', 'language_model.model.layers'],
    ['SmolVLM', 'model.language_model.layers', 'model.text_model.layers'],
    ['Qwen2-VL, older', 'model.language_model.layers', 'model.layers'],
    ['towers of transformers 4', 'model.vision_tower.encoder', 'vision_tower.vision_model.encoder'],
    ['a tower alone', 'model.vision_tower.encoder', 'model.vision_model.encoder'],
  ])('names as in %s mean the same layers', async (_, from, to) => {
    const adapter = await adapterOf()
    const renamed = renamedAdapter(adapter, from, to)
    const model = await open()
    const session = await ModelSession.open(model, { adapters: { renamed }, allowMissing: true })
    const { whole } = await pictureLogits((graph, feeds) => session.run(feeds, { graph, adapter: 'renamed' }))
    expect(worst(whole, (await graphsNumbers('llava')).get('adapted')!)).toBeLessThan(1e-5)
    await session.dispose()
    await model.close()
  })

  it('trained tokens go to the graph of the embedding', async () => {
    const model = await open()
    const adapter = new LoraAdapter((await adapterOf()).config)
    const data = Float32Array.from({ length: 16 }, (_, i) => i)
    adapter.addTokenRows('model.language_model.embed_tokens', [6], { data, shape: [1, 16] })
    const session = await ModelSession.open(model, { adapters: { adapter } })
    const run = (name: string | null) =>
      session.run({ input_ids: int64([5, 6, 7]) }, { graph: 'embed_tokens', adapter: name })
    const [own, base] = [(await run('adapter')).inputs_embeds.data, (await run(null)).inputs_embeds.data]
    expect(own.slice(16, 32)).toEqual(data)
    expect(own.slice(0, 16)).toEqual(base.slice(0, 16))
    await session.dispose()
    await model.close()
  })
})

/** Renames the layers of an adapter. */
function renamedAdapter(adapter: LoraAdapter, from: string, to: string): LoraAdapter {
  const renamed = new LoraAdapter(adapter.config)
  for (const { name, weightA, weightB } of adapter.parts('linear')) {
    renamed.addFactors(name.replace(from, to), weightA, weightB)
  }
  for (const { name, weightA, weightB } of adapter.parts('embedding')) renamed.addEmbedding(name, weightA, weightB)
  return renamed
}
