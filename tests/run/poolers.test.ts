// Adapters for an encoder with its pooler (ViTModel, RobertaModel), used on a classifier without a pooler, as
// transformers builds it.

import * as ort from 'onnxruntime-node'
import { expect, it } from 'vitest'
import { inspect } from '../../src/api/inspect.js'
import { LoraAdapter, loadModel, MemoryDirectory, saveAdapter } from '../../src/api/node.js'
import { NodeDirectory } from '../../src/files/io/node/files.js'
import { merge } from '../../src/merge/merge.js'
import { ModelSession } from '../../src/run/model-session.js'

const runtime = { module: ort }
const classifier = new NodeDirectory('tests/golden/image-classification/vit-classifier')
const encoder = new NodeDirectory('tests/golden/image-classification/vit')
const feeds = {
  pixel_values: {
    type: 'float32',
    data: Float32Array.from({ length: 192 }, (_, i) => Math.sin(i)),
    dims: [1, 3, 8, 8],
  },
} as const

/** Makes an adapter for layers with the names of transformers 5. */
function adapterOf(...modules: string[]) {
  const adapter = new LoraAdapter({ rank: 2, alpha: 4 })
  for (const [n, module] of modules.entries()) {
    const values = (length: number) => Float32Array.from({ length }, (_, i) => Math.cos(i + n))
    adapter.addFactors(module, { data: values(32), shape: [2, 16] }, { data: values(32), shape: [16, 2] })
  }
  return adapter
}
const own = ['layers.0.attention.q_proj', 'layers.1.attention.o_proj']

it('are run and merged without it, and it is told', async () => {
  const [plain, pooled] = [adapterOf(...own), adapterOf(...own, 'pooler.dense')]
  const model = await loadModel(classifier, { runtime })
  const left: unknown[] = []
  const session = await ModelSession.open(model, { adapters: { plain, pooled }, threads: 1 }, false, {
    onMissing: (name, layers) => left.push([name, layers]),
  })
  expect(left).toEqual([['pooled', ['pooler.dense']]])
  const [base, one, other] = await Promise.all(
    [null, 'plain', 'pooled'].map(async (adapter) => (await session.run(feeds, { adapter })).logits.data),
  )
  expect(other).toEqual(one)
  expect(one).not.toEqual(base)
  await session.dispose()
  await model.close()

  const outs = await Promise.all(
    [plain, pooled].map(async (adapter) => {
      const out = new MemoryDirectory()
      const { warnings } = await merge({ base: { directory: classifier }, adapters: adapter, out })
      return { warnings, bytes: out.files.get('onnx/model.onnx') }
    }),
  )
  expect(outs[1].bytes).toEqual(outs[0].bytes)
  expect(outs.map(({ warnings }) => warnings)).toEqual([
    [],
    ['left out, because the model has no module for it: pooler.dense'],
  ])
})

it('fit, with a note', async () => {
  const folder = new MemoryDirectory()
  await saveAdapter(adapterOf(...own, 'pooler.dense'), folder)
  expect(await inspect(folder, { base: classifier })).toMatchObject({
    fit: { fits: true, notes: [expect.stringMatching(/left out.*pooler\.dense/)] },
  })
})

it('are refused where the head may read it, and where any other layer is missing', async () => {
  const model = await loadModel(encoder, { runtime })
  const adapters = { pooled: adapterOf(...own, 'pooler.dense') }
  await expect(ModelSession.open(model, { adapters })).rejects.toThrow(/no module for pooler\.dense/)
  await model.close()
  const other = await loadModel(classifier, { runtime })
  const missing = { missing: adapterOf(...own, 'pooler.dense', 'layers.7.attention.q_proj') }
  await expect(ModelSession.open(other, { adapters: missing })).rejects.toThrow(/no module for layers\.7\./)
  await other.close()
})
