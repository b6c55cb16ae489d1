// Adapters that replace norms, on graphs of onnxruntime-genai's builder, in sessions, merges and further training,
// compared with PEFT (tests/golden/genai-norms).

import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { LoraAdapter, loadAdapter, MemoryDirectory, type RuntimeTensor, UnsupportedError } from '../../src/api/node.js'
import { NodeDirectory } from '../../src/files/io/node/files.js'
import { parseSafetensorsHeader, readTensorF32 } from '../../src/files/safetensors.js'
import { loadOnnx } from '../../src/onnx/format/model.js'
import { ModelSession } from '../../src/run/model-session.js'
import { addWhole, placeInBase, savedTensors } from '../../src/train/engine/whole-tensors.js'
import { causalLm } from '../../src/train/tasks/causal-lm.js'
import { train } from '../../src/train/train.js'
import { mergeOnnx } from '../merge/toolkit.js'
import { feedsOf, inThread, maxDifference, openModel } from '../run/models.js'
import { checkGoldenRun, type GoldenRun } from '../train/tasks/golden-run.js'

const FOLDER = 'tests/golden/genai-norms'
/** Name of an adapter in tests/golden/genai-norms → folder of the graph that it is for. */
const CASES = {
  llama: 'tests/golden/models/llama-genai',
  gemma: `${FOLDER}/gemma`,
  qwen3: `${FOLDER}/qwen3`,
}

type Golden = GoldenRun & { readonly inputIds: number[][] }
const goldenOf = (name: string): Golden => JSON.parse(readFileSync(`${FOLDER}/${name}/golden/golden.json`, 'utf8'))

async function logitsOf(name: string, key: string): Promise<Float32Array> {
  const source = await new NodeDirectory(`${FOLDER}/${name}/golden`).open('logits.safetensors')
  const { data } = await readTensorF32(await parseSafetensorsHeader(source), key)
  await source.close()
  return data
}

/** Returns the logits at the last token of each row. */
function lastOf({ data, dims: [rows, tokens, vocabulary] }: RuntimeTensor): Float32Array {
  return Float32Array.from({ length: rows * vocabulary }, (_, i) => {
    const row = Math.floor(i / vocabulary)
    return Number(data[((row + 1) * tokens - 1) * vocabulary + (i % vocabulary)])
  })
}

describe.each(Object.entries(CASES))('replaced norms of %s', (name, folder) => {
  const golden = goldenOf(name)
  const adapterFolder = new NodeDirectory(`${FOLDER}/${name}/golden/adapter-init`)

  it('give PEFT’s logits in sessions, also in one row alone, and merged', async () => {
    const model = await openModel(folder)
    const adapter = await loadAdapter(adapterFolder)
    const [base, adapted] = [await logitsOf(name, 'base'), await logitsOf(name, 'adapted')]
    const session = await ModelSession.open(model, { adapters: { own: adapter } })
    const feeds = feedsOf(model, golden.inputIds)
    const run = async (own?: string | (string | null)[]) => lastOf((await session.run(feeds, { adapter: own })).logits)
    expect(maxDifference(await run(), base)).toBeLessThan(2e-5)
    expect(maxDifference(await run('own'), adapted)).toBeLessThan(2e-5)
    const half = adapted.length / 2
    const mixed = Float32Array.of(...adapted.subarray(0, half), ...base.subarray(half))
    expect(maxDifference(await run(['own', null]), mixed)).toBeLessThan(2e-5)
    const out = new MemoryDirectory()
    await mergeOnnx(model.onnx, adapter, out, { baseFiles: new NodeDirectory(folder) })
    const merged = await loadOnnx(out, 'model.onnx')
    const alone = await ModelSession.open({ onnx: merged, runtime: inThread })
    expect(maxDifference(lastOf((await alone.run(feeds)).logits), adapted)).toBeLessThan(2e-5)
    for (const opened of [session, alone]) await opened.dispose()
    for (const opened of [merged, model]) await opened.close()
  })

  it('have PEFT’s gradients and steps, and a new adapter starts with the base’s own', async () => {
    const model = await openModel(folder)
    const examples = golden.inputIds.map((ids) => ({ inputIds: Int32Array.from(ids), labels: Int32Array.from(ids) }))
    const open = causalLm.open(model, examples)
    await checkGoldenRun(model, open, examples, { folder: `${FOLDER}/${name}/golden`, golden, length: 6 })

    const config = { rank: 1, modulesToSave: ['input_layernorm', 'post_attention_layernorm', 'model.norm'] }
    const [fresh, context] = [new LoraAdapter(config), { model, open: open as never, modules: undefined }]
    await addWhole(fresh, context, savedTensors(context, fresh.config))
    expect(fresh.parts('replacement')).toHaveLength(name === 'qwen3' ? 3 : 5)
    const session = await ModelSession.open(model, { adapters: { fresh } })
    const { logits } = await session.run(feedsOf(model, golden.inputIds), { adapter: 'fresh' })
    expect(maxDifference(lastOf(logits), await logitsOf(name, 'base'))).toBeLessThan(2e-5)
    await session.dispose()
    await model.close()
  })
})

describe('replaced norms of a graph in 4 bits', () => {
  it('give the same in a session and merged, and are trained further', async () => {
    const folder = 'tests/golden/models/llama-genai-int4'
    const model = await openModel(folder)
    const adapter = await loadAdapter('tests/golden/replaced/adapter-norms')
    const session = await ModelSession.open(model, { adapters: { own: adapter } })
    const feeds = feedsOf(model, [[5, 17, 40, 3, 99, 64]])
    const { logits } = await session.run(feeds, { adapter: 'own' })
    expect(maxDifference(logits, (await session.run(feeds)).logits)).toBeGreaterThan(0.05)
    const out = new MemoryDirectory()
    await mergeOnnx(model.onnx, adapter, out, { baseFiles: new NodeDirectory(folder) })
    const merged = await loadOnnx(out, 'model.onnx')
    const alone = await ModelSession.open({ onnx: merged, runtime: inThread })
    expect(maxDifference((await alone.run(feeds)).logits, logits)).toBeLessThan(1e-4)
    const data = [{ text: 'the king of the sea' }, { text: 'call me' }]
    const { report } = await train({ model, adapter, data, maxSteps: 3, learningRate: 1e-3, threads: 1 })
    expect(report.trainLoss[2]).toBeLessThan(report.trainLoss[0])
    for (const opened of [session, alone]) await opened.dispose()
    for (const opened of [merged, model]) await opened.close()
  })
})

describe('replaced norms of a type of model that is not known', () => {
  it.each([['other'], [undefined]])('are refused by name before anything is written: %s', async (type) => {
    const model = await openModel(CASES.llama)
    const unknown = { ...model, config: { ...model.config, model_type: type } }
    const adapter = await loadAdapter(`${FOLDER}/llama/golden/adapter-init`)
    const message =
      /input_layernorm\.weight: .*not known whether onnxruntime-genai has added 1.*got (other|no model_type)/
    const opening = ModelSession.open(unknown, { adapters: { adapter } })
    await expect(opening).rejects.toThrow(UnsupportedError)
    await expect(opening).rejects.toThrow(message)
    const out = new MemoryDirectory()
    await expect(mergeOnnx(model.onnx, adapter, out)).rejects.toThrow(message)
    expect(out.files.size).toBe(0)
    const context = { model: unknown, open: causalLm.open(model, []) as never, modules: undefined }
    await expect(placeInBase(adapter, context)).rejects.toThrow(
      /cannot be trained whole.*not known whether onnxruntime-genai/,
    )
    await model.close()
  })
})
