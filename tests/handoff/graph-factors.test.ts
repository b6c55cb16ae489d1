// .onnx_adapter files for graphs that rename or split the adapter's modules. The test feeds their tensors in the same
// way as ONNX Runtime's LoraAdapter, which scripts/golden/lora_inputs.py runs.

import { describe, expect, it } from 'vitest'
import { addLoraInputs } from '../../src/index/export/lora-inputs.js'
import { usePlatform } from '../../src/index/platform/platform.js'
import { convertAdapter } from '../../src/index/tools.js'
import { ModelSession } from '../../src/infer/model-session.js'
import { nodePlatform } from '../../src/node/platform.js'
import { type Feeds, loadAdapter, loadModel, MemoryDirectory } from '../../src/node.js'
import { readOnnxAdapter } from '../exchange/readers.js'
import { goldenPath } from '../golden.js'
import { feedsOf, inThread, makeAdapter, maxDifference, openModel } from '../infer/models.js'

usePlatform(nodePlatform)

const IDS = [5, 17, 40, 3, 59, 33]
const load = (path: string) => loadAdapter(goldenPath(path))

/** Opens an adapter, and fills in B. */
async function withB(path: string) {
  const adapter = await load(path)
  for (const { weightB } of adapter.parts('linear')) {
    for (const i of weightB.data.keys()) weightB.data[i] = 0.1 * Math.sin(i + 1)
  }
  return adapter
}

function tensorsOf(out: MemoryDirectory) {
  const tensors = [...readOnnxAdapter(out.files.get('adapter.onnx_adapter')!)].map(([name, { shape, type, bytes }]) => {
    const data = type === 'fp32' ? new Float32Array(bytes.buffer) : new Uint16Array(bytes.buffer)
    return [name, { type: type === 'fp32' ? 'float32' : 'float16', data, dims: shape }] as const
  })
  return Object.fromEntries(tensors)
}

describe.each([
  ['Phi-3, whose packed layers the graph splits', 'models/phi3-genai', 'models/phi3-genai/golden/adapter-init'],
  ['LFM2, whose modules have other names', 'genai-decoders/lfm2', 'genai-decoders/lfm2/golden/adapter'],
  ['a graph in fp16', 'models/llama-fp16', undefined],
])('%s', (_, model, folder) => {
  it('takes the adapter under its own names and in its own type', async () => {
    const opened = await openModel(`tests/golden/${model}`)
    const adapter = folder === undefined ? makeAdapter(opened, /(q|down)_proj$/, { std: 0.3 }) : await withB(folder)
    const session = await ModelSession.open(opened, { adapters: { adapter } })
    const feeds = feedsOf(opened, [IDS])
    const [wanted, plain] = [await session.run(feeds, { adapter: 'adapter' }), await session.run(feeds)]
    expect(maxDifference(plain.logits, wanted.logits)).toBeGreaterThan(0.1)
    await session.dispose()
    const graph = new MemoryDirectory()
    await addLoraInputs(goldenPath(model), { out: graph })
    for (const base of [graph, goldenPath(model)]) {
      const out = new MemoryDirectory()
      await convertAdapter(adapter, { to: 'onnx-adapter', base, out })
      const tensors = tensorsOf(out)
      const open = await loadModel(graph, { runtime: inThread })
      // ONNX Runtime for Node cannot override inputs with a default, so the defaults are removed.
      const proto = open.onnx.proto.graph!
      proto.initializer = proto.initializer.filter(({ name }) => tensors[name] === undefined)
      const run = await ModelSession.open(open)
      const got = await run.run({ ...feeds, ...tensors } as Feeds)
      expect(maxDifference(got.logits, wanted.logits)).toBeLessThan(model.includes('fp16') ? 0.02 : 1e-4)
      await run.dispose()
    }
    await opened.close()
  })
})

const PHI3 = goldenPath('models/phi3-genai')

it.each([
  ['models/phi3-genai/golden/adapter-init', /(qkv|gate_up)_proj/],
  ['genai-decoders/lfm2/golden/adapter', /feed_forward\.w1|out_proj/],
])('asks for the graph where names differ: %s', async (folder, part) => {
  const out = new MemoryDirectory()
  const error = await convertAdapter(goldenPath(folder), { to: 'onnx-adapter', out }).catch((thrown: Error) => thrown)
  expect(error).toMatchObject({ code: 'CONFIG', where: 'base', message: expect.stringMatching(part) })
  expect(out.files.size).toBe(0)
})

it('refuses a graph without the inputs, with others, or for another rank', async () => {
  const adapter = await load('models/phi3-genai/golden/adapter-init')
  const graphs = await Promise.all(
    [{ targetModules: ['o_proj'] }, { rank: 3 }].map(async (options) => {
      const out = new MemoryDirectory()
      await addLoraInputs(PHI3, { out, ...options })
      return out
    }),
  )
  const convert = (base: string | MemoryDirectory) =>
    convertAdapter(adapter, { to: 'onnx-adapter', base, out: new MemoryDirectory() })
  await expect(convert(graphs[0])).rejects.toThrow(/no such input.*(q|gate|down)_proj/s)
  await expect(convert(graphs[1])).rejects.toThrow(/another rank.*expected rank 3, got rank/s)
  await expect(convert(goldenPath('genai-decoders/lfm2'))).rejects.toThrow(/does not fit this model/)
})
