// EmbeddingGemma: Gemma 3 with attention in both directions, and two Dense modules. They are in a folder of
// sentence-transformers, or inside the graph, as onnx-community publishes it (scripts/golden/sentence_decoders.py).

import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { inspectGraphs } from '../../../src/api/inspect-onnx.js'
import { loadAdapter, MemoryDirectory, type Model } from '../../../src/api/node.js'
import { merge } from '../../../src/merge/merge.js'
import { loadModel } from '../../../src/model/model-folder.js'
import { floatsOf } from '../../../src/onnx/runtime/runtime.js'
import { ModelSession } from '../../../src/run/model-session.js'
import { train } from '../../../src/train/train.js'
import { relativeError } from '../../model/golden.js'
import { inThread } from '../../run/models.js'
import { int64 } from '../../several-graphs.js'
import { checkEmbeddingRun, type GoldenLosses, lossCases, lossExamples } from './golden-embedding.js'

const FOLDER = 'tests/golden/sentence-decoders'
const folder = `${FOLDER}/gemma3-training`
const read = (path: string) => readFileSync(`${FOLDER}/${path}`)
const golden: GoldenLosses & { adapted: number[][] } = JSON.parse(read('gemma3-training/golden.json').toString())
const { texts, gemma3 } = JSON.parse(read('golden.json').toString()) as { texts: string[]; gemma3: number[][] }

const SETTINGS = ['config.json', 'config_sentence_transformers.json', 'tokenizer.json', 'tokenizer_config.json']
const MODULES = ['modules.json', '1_Pooling/config.json'].concat(
  ['2_Dense', '3_Dense'].flatMap((module) => [`${module}/config.json`, `${module}/model.safetensors`]),
)
const GRAPH = 'onnx/model.onnx'

const adapter = () => loadAdapter(`${folder}/adapter-init`)

describe.each([
  ['in the folder', [...SETTINGS, ...MODULES], 'gemma3'],
  ['in the graph', SETTINGS, 'gemma3-whole'],
])('with modules %s', (_, files, graph) => {
  const directory = () => {
    const entries = files.map((path) => [path, read(`gemma3/${path}`)])
    return new MemoryDirectory({ ...Object.fromEntries(entries), [GRAPH]: read(`${graph}/${GRAPH}`) })
  }
  let model: Model
  beforeAll(async () => {
    model = await loadModel(directory(), { runtime: inThread })
  })
  afterAll(() => model.close())

  it('gives the vectors of sentence-transformers, and each row its own adapter', async () => {
    const session = await ModelSession.open(model, { adapters: { own: await adapter() } })
    const [base, own]: Float32Array[][] = [await session.embed(texts), await session.embed(texts, { adapter: 'own' })]
    for (const i of texts.keys()) {
      expect(relativeError(base[i], gemma3[i])).toBeLessThan(1e-5)
      expect(relativeError(own[i], golden.adapted[i])).toBeLessThan(1e-5)
      expect(relativeError(own[i], gemma3[i])).toBeGreaterThan(0.1)
    }
    const ids = [2, 4, 5, 6, 7, 8, 9, 1]
    const tokens = async (rows: number, adapter: (string | null)[]) => {
      const feeds = { input_ids: int64(Array(rows).fill(ids).flat(), [rows, 8]) }
      return Array.from(floatsOf((await session.run(feeds, { adapter })).last_hidden_state))
    }
    const alone = [...(await tokens(1, ['own'])), ...(await tokens(1, [null]))]
    expect(relativeError(await tokens(2, ['own', null]), alone)).toBeLessThan(1e-6)
    await session.dispose()
  })

  it('gives them merged', async () => {
    const out = new MemoryDirectory({}, 'out')
    await merge({ base: { directory: directory() }, adapters: await adapter(), out })
    const merged = await loadModel(out, { runtime: inThread })
    const session = await ModelSession.open(merged, {})
    const vectors: Float32Array[] = await session.embed(texts)
    for (const [i, vector] of vectors.entries()) expect(relativeError(vector, golden.adapted[i])).toBeLessThan(1e-5)
    await session.dispose()
    await merged.close()
  })

  it.each(Object.keys(lossCases(golden)))(
    'has the losses, gradients and steps of sentence-transformers: %s',
    async (name) => {
      const [examples, { options }] = [await lossExamples(model, golden, name), lossCases(golden)[name]]
      const parts = [[0, 1, 2, 3]]
      await checkEmbeddingRun(model, examples, { folder, golden, name, options, parts })
    },
  )

  it('starts adapters of the layers that PEFT adapts, all of them trainable', async () => {
    const { linears } = await inspectGraphs(model.directory, [GRAPH], true)
    const names = (await adapter()).names()
    expect(linears.filter(({ name, train }) => train && names.includes(name))).toHaveLength(names.length)
    const data = [{ anchor: 'the sea', positive: 'a sea' }]
    const own = await train({ model, task: 'embedding', data, maxSteps: 1, threads: 1, config: { rank: 2 } })
    expect(own.adapter.names().sort()).toEqual(names.sort())
  })
})
