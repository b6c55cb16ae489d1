// Decoders of onnxruntime-genai whose caches are of another kind than Llama's: LFM2's convolutions, Gemma 2's sliding
// windows.

import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { parseSafetensorsHeader, readTensorF32 } from '../../src/formats/safetensors.js'
import { tokenInputs } from '../../src/graph/inputs/tokens.js'
import type { Model } from '../../src/graph/model-folder.js'
import { readGraph } from '../../src/graph/view/graph.js'
import { paddingOf } from '../../src/infer/generate/batching.js'
import { ModelSession } from '../../src/infer/model-session.js'
import { loadAdapter } from '../../src/peft/adapter-folder.js'
import { relativeError } from '../graph/golden.js'
import { int64 } from '../several-graphs.js'
import { directoryOf, openModel } from './models.js'

const IDS = [
  [5, 17, 40, 3, 99, 64],
  [7, 7, 81, 12, 100, 26],
]

describe.each(['lfm2', 'gemma2'])('%s', (name) => {
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

  it('fills no row up where a convolution would read what fills it up', () => {
    const graph = readGraph(model.onnx.proto)
    expect(paddingOf(graph, tokenInputs(graph))).toBe(name === 'lfm2' ? 'none' : 'right')
  })
})
