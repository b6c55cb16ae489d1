import { readFileSync } from 'node:fs'
import { cp, mkdtemp, readFile, rm, stat, truncate } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { inspect } from '../../src/api/inspect.js'
import {
  LoraAdapter,
  MemoryDirectory,
  merge,
  type OnnxContents,
  type OnnxModel,
  UnsupportedError,
} from '../../src/api/node.js'
import { NodeDirectory } from '../../src/files/io/node/files.js'
import { findLinears } from '../../src/model/match/linears.js'
import { findBranches } from '../../src/model/match/merged-branches.js'
import { TensorProto_DataType as DataType, TensorProtoSchema } from '../../src/onnx/format/gen/onnx_pb.js'
import { loadOnnx } from '../../src/onnx/format/model.js'
import { create } from '../../src/onnx/format/protobuf.js'
import { Graph } from '../../src/onnx/view/graph.js'
import { ModelSession } from '../../src/run/model-session.js'
import { deviation } from '../golden.js'
import {
  feedsOfForm,
  floatsOfOutput,
  formAdapter,
  formNumbers,
  GOLDEN_FORMS,
  isHalf,
  openForm,
} from '../model/match/golden-forms.js'
import { readWeight, weightOf } from '../onnx/format/onnx-models.js'
import { writeOnnx } from '../onnx/format/write-onnx.js'
import { directoryOf, feedsOf, inThread, makeAdapter, openModel } from '../run/models.js'
import { some } from '../thorough.js'
import { mergeOnnx } from './toolkit.js'

/** Merges in memory, and opens the result. */
async function merged(
  model: OnnxModel,
  adapters: Parameters<typeof mergeOnnx>[1],
  options: Parameters<typeof mergeOnnx>[3] = {},
  sign: 1 | -1 = 1,
) {
  const out = new MemoryDirectory()
  const report = await mergeOnnx(model, adapters, out, { ...options, sign })
  return { report, out, model: await loadOnnx(out, model.fileName) }
}

const opened: OnnxModel[] = []
afterAll(async () => {
  for (const model of opened) await model.close()
})

async function formOf(name: string): Promise<OnnxModel> {
  const model = await openForm(name)
  opened.push(model)
  return model
}

async function outputOf(onnx: OnnxModel, name: string, adapter?: LoraAdapter) {
  const session = await ModelSession.open({ onnx, runtime: inThread }, adapter ? { adapters: { adapter } } : {})
  const feeds = feedsOfForm(name, await formNumbers(name))
  const { y } = await session.run(feeds, adapter ? { adapter: 'adapter' } : {})
  await session.dispose()
  return floatsOfOutput(y)
}

describe.each(some(GOLDEN_FORMS, 2))('branches beside %s', (name) => {
  it('give what a session gives, and leave the weights', async () => {
    const [base, numbers] = [await formOf(name), await formNumbers(name)]
    const adapter = formAdapter(numbers)
    const { report, model } = await merged(base, adapter)
    expect(report).toMatchObject({ changed: 0, branches: 2, warnings: [] })
    const [y, session] = [await outputOf(model, name), await outputOf(base, name, adapter)]
    expect(deviation(y, session)).toBeLessThan(isHalf(name) ? 2e-3 : 1e-5)
    for (const { name: weight } of base.proto.graph!.initializer) {
      expect(await readWeight(model, weight)).toEqual(await readWeight(base, weight))
    }
    expect(report.layers).toEqual(['model.fc1', 'model.fc2'].map((layer) => ({ name: layer, relativeChange: null })))
    // The result is a base again, with the same names of layers.
    const linears = findLinears(new Graph(model.proto))
    expect(linears.map((linear) => [linear.name, linear.isHead])).toEqual([
      ['model.fc1', false],
      ['model.fc2', true],
    ])
    expect(findBranches(new Graph(model.proto)).map(({ module }) => module)).toEqual(['model.fc1', 'model.fc2'])
    await expect(merged(model, adapter, {}, -1)).rejects.toThrow(UnsupportedError)
  })
})

describe('a graph with branches', () => {
  const name = 'nbits-4-16-zeros'

  /** Makes an adapter with only the first layer and other values. */
  async function another(): Promise<LoraAdapter> {
    const numbers = await formNumbers(name)
    const adapter = new LoraAdapter({ rank: 4, alpha: 2 })
    const layer = formAdapter(numbers).layer('model.fc1')
    adapter.addFactors('model.fc1', layer.weightA, { ...layer.weightB, data: layer.weightB.data.map((x) => -3 * x) })
    return adapter
  }

  it('takes a second adapter', async () => {
    const base = await formOf(name)
    const [first, second] = [formAdapter(await formNumbers(name)), await another()]
    const one = await merged(base, first)
    const both = await merged(one.model, { adapter: second, weight: 0.5 })
    const together = await merged(base, [first, { adapter: second, weight: 0.5 }])
    const expected = await outputOf(together.model, name)
    expect(deviation(await outputOf(both.model, name), expected)).toBeLessThan(1e-6)
    expect(deviation(expected, await outputOf(one.model, name))).toBeGreaterThan(0.1)
    // A session can add an adapter to the merged model.
    const scaled = new LoraAdapter({ rank: 4, alpha: 1 })
    scaled.addFactors('model.fc1', second.layer('model.fc1').weightA, second.layer('model.fc1').weightB)
    expect(deviation(await outputOf(one.model, name, scaled), expected)).toBeLessThan(1e-6)
  })

  it('has DoRA’s scales, and refuses what would change their norm', async () => {
    const [base, numbers] = [await formOf(name), await formNumbers(name)]
    const dora = new LoraAdapter({ rank: 4, alpha: 8, useDora: true })
    const { weightA, weightB } = formAdapter(numbers).layer('model.fc2')
    const magnitude = Float32Array.from({ length: 24 }, (_, i) => 1 + i / 24)
    dora.addFactors('model.fc2', weightA, weightB, { magnitude })
    const result = await merged(base, dora)
    const y = await outputOf(result.model, name)
    expect(deviation(y, await outputOf(base, name, dora))).toBeLessThan(1e-6)
    const plain = (await merged(base, formAdapter(numbers))).model
    await expect(merged(plain, dora)).rejects.toThrow(/fc2.*DoRA.*without other adapters/s)
    await expect(merged(base, [dora, formAdapter(numbers)])).rejects.toThrow(UnsupportedError)
  })
})

describe('data files', () => {
  const PATH = 'tests/golden/models/llama-genai-int4'

  it('stay beside the graph, and what is new follows under the next number', async () => {
    const base = await loadOnnx(directoryOf(`${PATH}/onnx`), 'model.onnx')
    const graph = new Graph(base.proto)
    const added = new Float32Array(1000).fill(0.5)
    for (const name of ['one', 'two']) {
      const tensor = { name, dataType: DataType.FLOAT, dims: [1000n], rawData: new Uint8Array(added.buffer) }
      graph.addInitializer(create(TensorProtoSchema, tensor))
    }
    const out = new MemoryDirectory()
    const written = await writeOnnx(base, graph.toModel(), out, 'onnx/model_q4.onnx', {
      keepsFiles: true,
      maxAddedBytes: 5000,
    })
    const files = ['onnx/model_q4.onnx_data', 'onnx/model_q4.onnx_data_1']
    expect(written).toEqual([...files, 'onnx/model_q4.onnx'])
    expect([...out.files.keys()].sort()).toEqual(['onnx/model_q4.onnx', ...files])
    expect(out.files.get(files[0])).toEqual(new Uint8Array(readFileSync(`${PATH}/onnx/model.onnx.data`)))
    const result = await loadOnnx(out, 'onnx/model_q4.onnx')
    for (const { name } of base.proto.graph!.initializer) {
      expect(await readWeight(result, name)).toEqual(await readWeight(base, name))
    }
    for (const name of ['one', 'two']) {
      expect(weightOf(result, name)?.location).toBe('model_q4.onnx_data_1')
      expect([...new Float32Array((await readWeight(result, name)).slice().buffer)]).toEqual([...added])
    }
    await base.close()
  })

  it('come along with a merge, whose config.json tells transformers.js of them', async () => {
    const out = new MemoryDirectory()
    const base = await loadOnnx(directoryOf(PATH), 'onnx/model.onnx')
    const model = await openModel(PATH)
    const baseFiles = directoryOf(PATH)
    const adapter = makeAdapter(model, /o_proj$/)
    const report = await mergeOnnx(base, adapter, out, { path: 'onnx/model_q4.onnx', baseFiles })
    expect(report).toMatchObject({ branches: 1, copied: expect.arrayContaining(['config.json']) })
    const config = JSON.parse(new TextDecoder().decode(out.files.get('config.json')))
    expect(config['transformers.js_config']).toEqual({
      use_external_data_format: { 'model_q4.onnx': 1 },
      dtype: 'q4',
    })
    const before = JSON.parse(readFileSync(`${PATH}/config.json`, 'utf8'))
    expect({ ...config, 'transformers.js_config': undefined }).toEqual({
      ...before,
      'transformers.js_config': undefined,
    })
    await base.close()
    await model.close()
  })
})

describe('merging into a folder of Node', () => {
  const BASE = 'tests/golden/models/llama-genai-int4'

  it('copies data files', async () => {
    const work = await mkdtemp(path.join(tmpdir(), 'lowrank-quantized-'))
    try {
      await cp(BASE, path.join(work, 'base'), { recursive: true })
      const model = await openModel(BASE)
      const adapters = makeAdapter(model, /q_proj$/)
      await model.close()
      const data = path.join(work, 'base/onnx/model.onnx.data')
      const out = path.join(work, 'copy')
      const report = await merge({ threads: 1, base: path.join(work, 'base'), adapters, out })
      expect(report).toMatchObject({ format: 'onnx', branches: 1, changed: 0, warnings: [] })
      const written = path.join(out, 'onnx/model.onnx_data')
      expect(await readFile(written)).toEqual(await readFile(data))
      const { linears } = (await inspect(new NodeDirectory(out))) as unknown as OnnxContents
      const beside = linears.filter(({ branches }) => branches > 0).map(({ name, branches }) => [name, branches])
      expect(beside).toEqual([['model.layers.0.self_attn.q_proj', 1]])
    } finally {
      await rm(work, { recursive: true })
    }
  })

  it('refuses a data file that is missing or too short, and writes nothing', async () => {
    const work = await mkdtemp(path.join(tmpdir(), 'lowrank-quantized-'))
    try {
      await cp(BASE, path.join(work, 'base'), { recursive: true })
      const model = await openModel(BASE)
      const adapters = makeAdapter(model, /q_proj$/)
      await model.close()
      const data = path.join(work, 'base/onnx/model.onnx.data')
      const out = path.join(work, 'out')
      await truncate(data, 20_000)
      await expect(merge({ threads: 1, base: path.join(work, 'base'), adapters, out })).rejects.toThrow(
        /model\.onnx\.data.*past the end/,
      )
      await rm(data)
      await expect(merge({ threads: 1, base: path.join(work, 'base'), adapters, out })).rejects.toThrow(
        /model\.onnx\.data, which is not/,
      )
      await expect(stat(out)).rejects.toThrow(/ENOENT/)
    } finally {
      await rm(work, { recursive: true })
    }
  })
})

it('q, k and v in one packed node get branches that give what a session gives', async () => {
  const model = await openModel('tests/golden/models/llama-genai-int4')
  const adapter = makeAdapter(model, /(q|v)_proj$|o_proj$/)
  const result = await merged(model.onnx, adapter)
  const feeds = feedsOf(model, [[0, 54, 260, 1356]])
  const session = await ModelSession.open({ onnx: model.onnx, runtime: inThread }, { adapters: { adapter } })
  const own = await ModelSession.open({ onnx: result.model, runtime: inThread })
  const [a, b] = [await session.run(feeds, { adapter: 'adapter' }), await own.run(feeds)]
  expect(deviation(floatsOfOutput(b.logits), floatsOfOutput(a.logits))).toBeLessThan(1e-5)
  await session.dispose()
  await own.dispose()
  await model.close()
})
