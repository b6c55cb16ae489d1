import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  FileError,
  LoraAdapter,
  loadAdapter,
  MemoryDirectory,
  MismatchError,
  type Model,
  NumericError,
} from '../../src/api/node.js'
import { readJson } from '../../src/core/base/bytes.js'
import { decodeFloats } from '../../src/core/base/dtype.js'
import { NodeDirectory } from '../../src/files/io/node/files.js'
import { findLinears } from '../../src/model/match/linears.js'
import { NodeProtoSchema } from '../../src/onnx/format/gen/onnx_pb.js'
import { copyMessage } from '../../src/onnx/format/messages.js'
import { loadOnnx, OnnxModel } from '../../src/onnx/format/model.js'
import { create } from '../../src/onnx/format/protobuf.js'
import { makeAttribute } from '../../src/onnx/view/attributes.js'
import { Graph } from '../../src/onnx/view/graph.js'
import { ModelSession } from '../../src/run/model-session.js'
import { readWeight } from '../onnx/format/onnx-models.js'
import { directoryOf, feedsOf, inThread, makeAdapter, maxDifference, openModel, rowOf } from '../run/models.js'
import { cases } from '../thorough.js'
import { mergeOnnx } from './toolkit.js'

const UNION = 'models/union-3m'
const ROWS = [
  [0, 54, 260, 1356, 270, 262],
  [0, 43, 80, 262, 1833, 1528],
]

let union: Model
let optimum: Model
let temporary: string
beforeAll(async () => {
  union = await openModel(UNION)
  optimum = await openModel('tests/golden/models/llama-optimum')
  temporary = await mkdtemp(path.join(tmpdir(), 'lowrank-'))
})
afterAll(async () => {
  await union.close()
  await optimum.close()
  await rm(temporary, { recursive: true })
})

async function logitsOf(model: Model, onnx: OnnxModel, adapter?: LoraAdapter) {
  const adapters = adapter === undefined ? undefined : { adapter }
  const session = await ModelSession.open({ onnx, runtime: inThread }, { ...(adapters && { adapters }) })
  const { logits } = await session.run(feedsOf(model, ROWS), { adapter: adapter && 'adapter' })
  await session.dispose()
  return logits
}

/** Compares the logits of the merged model with those of a session with the adapter. */
async function compare(model: Model, onnx: OnnxModel, adapter: LoraAdapter) {
  const out = new MemoryDirectory({}, 'out')
  const report = await mergeOnnx(onnx, adapter, out)
  const merged = await loadOnnx(out, onnx.fileName)
  const [adapted, base] = [await logitsOf(model, onnx, adapter), await logitsOf(model, onnx)]
  const result = await logitsOf(model, merged)
  return { report, out, merged, error: maxDifference(result, adapted), change: maxDifference(result, base) }
}

const everyLinear = /_proj$|c_attn$|c_fc$|c_proj$|lm_head$/

describe('the merged model', () => {
  it.each(
    cases(
      ['llama-dynamo', 'phi3-genai', 'llama-fp16'],
      [
        'llama-genai',
        'gpt2-optimum',
        'llama-optimum',
        'llama-genai-rotary',
        'qwen2-optimum',
        'qwen3-genai',
        '../../../models/union-3m',
      ],
    ),
  )('%s: has the adapted session’s logits', async (name) => {
    const model = await openModel(`tests/golden/models/${name}`)
    // The runtime rounds each product to f16.
    const tolerance = name === 'llama-fp16' ? 0.02 : 1e-4
    const adapter = makeAdapter(model, everyLinear)
    const { report, error, change, out } = await compare(model, model.onnx, adapter)
    expect(error).toBeLessThan(tolerance)
    expect(change).toBeGreaterThan(0.1)
    expect(report.layers.map(({ name }) => name)).toEqual(adapter.names())
    expect(report.bytes).toBe([...out.files.values()].reduce((sum, { byteLength }) => sum + byteLength, 0))
    expect(report).toMatchObject({ out: 'out', seconds: expect.any(Number) })
    await model.close()
  })

  it.each(cases(['patterns-rslora'], ['f32', 'high-rank']))('has PEFT’s logits with the adapter %s', async (name) => {
    const folder = directoryOf(`tests/golden/peft/${name}`)
    const expected = (await readJson(folder, 'expected.json')) as {
      prompts: { inputIds: number[]; logitIds: number[]; logits: number[] }[]
    }
    const out = new MemoryDirectory()
    await mergeOnnx(union.onnx, await loadAdapter(folder), out)
    const session = await ModelSession.open({ onnx: await loadOnnx(out, 'model.onnx'), runtime: inThread })
    for (const { inputIds, logitIds, logits } of expected.prompts) {
      const row = rowOf((await session.run(feedsOf(union, [inputIds]))).logits)
      const got = logitIds.map((id) => row[id])
      expect(maxDifference(got, logits)).toBeLessThan(1e-4)
    }
    await session.dispose()
  })

  it.each(['qwen3-genai', 'phi3-genai'])('has PEFT’s logits where %s packs or splits its modules', async (name) => {
    const folder = directoryOf(`tests/golden/models/${name}`)
    const { adapted } = (await readJson(folder, 'golden/golden.json')) as {
      adapted: { inputIds: number[]; logitIds: number[]; logits: number[] }
    }
    const model = await openModel(`tests/golden/models/${name}`)
    const adapter = await loadAdapter(directoryOf(`tests/golden/models/${name}/golden/adapter-init`))
    const out = new MemoryDirectory()
    const { layers } = await mergeOnnx(model.onnx, adapter, out)
    const parts = name === 'phi3-genai' ? ['mlp.gate_proj', 'mlp.up_proj', 'self_attn.qkv_proj'] : ['self_attn.k_proj']
    for (const part of parts) expect(layers.map((layer) => layer.name)).toContain(`model.layers.0.${part}`)
    const session = await ModelSession.open({ onnx: await loadOnnx(out, 'model.onnx'), runtime: inThread })
    const row = rowOf((await session.run(feedsOf(model, [adapted.inputIds]))).logits)
    expect(
      maxDifference(
        adapted.logitIds.map((id) => row[id]),
        adapted.logits,
      ),
    ).toBeLessThan(1e-4)
    await session.dispose()
    await model.close()
  })

  it('differs in the adapted weights alone, and the report says by how much', async () => {
    const adapter = makeAdapter(union, /layers\.[24]\.mlp\.up_proj$/)
    const { report, merged } = await compare(union, union.onnx, adapter)
    const linears = findLinears(new Graph(union.onnx.proto))
    const weights = new Map(
      adapter.names().map((name) => [linears.find((linear) => linear.name === name)?.weight, name]),
    )
    const names = (model: OnnxModel) => model.proto.graph?.initializer.map(({ name }) => name)
    expect(names(merged)).toEqual(names(union.onnx))
    expect(report).toMatchObject({ tensors: names(merged)?.length, changed: 2 })
    for (const name of names(merged) ?? []) {
      const [before, after] = [await readWeight(union.onnx, name), await readWeight(merged, name)]
      const layerName = weights.get(name)
      if (layerName === undefined) {
        expect(Buffer.compare(before, after), name).toBe(0)
        continue
      }
      const weight = decodeFloats(before, 'fp32') // (k, d)
      const { d, k } = adapter.layer(layerName)
      const delta = adapter.layer(layerName).delta().data // (d, k)
      const expected = weight.map((value, i) => value + delta[(i % d) * k + Math.floor(i / d)])
      expect(maxDifference(decodeFloats(after, 'fp32'), expected)).toBeLessThan(1e-6)
      const relative = Math.hypot(...delta) / Math.hypot(...weight)
      expect(report.layers.find((entry) => entry.name === layerName)?.relativeChange).toBeCloseTo(relative, 5)
    }
    expect(merged.proto.opsetImport).toEqual(union.onnx.proto.opsetImport)
  })
})

describe('weights that several nodes share', () => {
  const names = ['model.layers.0.mlp.gate_proj', 'model.layers.0.mlp.up_proj']

  /** Makes gate_proj of llama-optimum read up_proj's weight, as exporters do if two weights are equal. */
  function sharing(change: (graph: Graph, weight: string, gate: string) => void): OnnxModel {
    const graph = new Graph(optimum.onnx.proto)
    const [gate, up] = names.map((name) => findLinears(graph).find((linear) => linear.name === name))
    if (gate === undefined || up === undefined) throw new Error('no such layers')
    change(graph, up.weight, gate.weight)
    return new OnnxModel('shared', optimum.onnx.fileName, graph.toModel(), optimum.onnx.files)
  }
  const directly = (graph: Graph, weight: string, gate: string) => graph.replaceUses(gate, weight)
  const throughIdentity = (graph: Graph, weight: string, gate: string) => {
    const output = graph.freshName('same')
    graph.add(create(NodeProtoSchema, { name: 'same', opType: 'Identity', input: [weight], output: [output] }))
    graph.replaceUses(gate, output)
  }
  const asConstant = (graph: Graph, weight: string, gate: string) => {
    const output = graph.freshName('constant')
    const value = graph.initializers.get(weight)
    if (value === undefined) throw new Error('no such weight')
    const attribute = [makeAttribute('value', copyMessage(value))]
    graph.add(create(NodeProtoSchema, { name: 'constant', opType: 'Constant', output: [output], attribute }))
    graph.replaceUses(gate, output)
  }

  it.each([
    ['one initializer', directly],
    ['an Identity', throughIdentity],
    ['a Constant node', asConstant],
  ])('%s: only the adapted node’s changes', async (_, change) => {
    const onnx = sharing(change)
    for (const pattern of [/0\.mlp\.up_proj$/, /0\.mlp\.gate_proj$/]) {
      const { error, change: difference, report } = await compare(optimum, onnx, makeAdapter(optimum, pattern))
      expect(error).toBeLessThan(1e-4)
      expect(difference).toBeGreaterThan(1e-3)
      expect(report.changed).toBe(1)
    }
  })

  it('both adapted: each gets its own', async () => {
    const onnx = sharing(throughIdentity)
    const { error, report } = await compare(optimum, onnx, makeAdapter(optimum, /0\.mlp\.(up|gate)_proj$/))
    expect(error).toBeLessThan(1e-4)
    expect(report.changed).toBe(2)
  })

  it('a head that is the transposed embedding: the embedding stays', async () => {
    const { error, merged, report } = await compare(optimum, optimum.onnx, makeAdapter(optimum, /lm_head$/))
    expect(error).toBeLessThan(1e-4)
    expect(report.changed).toBe(1)
    const embedding = 'model.embed_tokens.weight'
    expect(Buffer.compare(await readWeight(merged, embedding), await readWeight(optimum.onnx, embedding))).toBe(0)
    expect(report.tensors).toBe((optimum.onnx.proto.graph?.initializer.length ?? 0) + 1)
  })

  it('one module called by two nodes changes once', async () => {
    const graph = new Graph(optimum.onnx.proto)
    const up = graph.nodes.find(({ name }) => name === '/model/layers.0/mlp/up_proj/MatMul')
    const gate = graph.nodes.find(({ name }) => name === '/model/layers.0/mlp/gate_proj/MatMul')
    if (up === undefined || gate === undefined) throw new Error('no such nodes')
    gate.name = '/model/layers.0/mlp/up_proj/MatMul_1'
    gate.input[1] = up.input[1]
    const onnx = new OnnxModel('twice', optimum.onnx.fileName, graph.toModel(), optimum.onnx.files)
    const { error, report } = await compare(optimum, onnx, makeAdapter(optimum, /0\.mlp\.up_proj$/))
    expect(error).toBeLessThan(1e-4)
    expect(report).toMatchObject({ changed: 1, layers: [{ name: names[1] }] })
  })
})

describe('the output folder', () => {
  it('gets the model, its external data and its baseFiles, but no other weights', async () => {
    const model = await openModel('tests/golden/models/llama-genai')
    const folder = path.join(temporary, 'genai')
    const progress: number[] = []
    await mergeOnnx(model.onnx, makeAdapter(model, /q_proj$/), new NodeDirectory(folder), {
      path: 'onnx/model.onnx',
      baseFiles: model.directory,
      on: { progress: ({ writtenBytes, totalBytes }) => progress.push(writtenBytes / totalBytes) },
    })
    const baseFiles = ['config.json', 'genai_config.json', 'generation_config.json', 'tokenizer.json']
    expect(await readdir(folder)).toEqual([...baseFiles, 'onnx', 'tokenizer_config.json'].sort())
    expect((await readdir(path.join(folder, 'onnx'))).sort()).toEqual(['model.onnx', 'model.onnx.data'])
    expect(progress).toEqual([...progress].sort((a, b) => a - b))
    expect(progress.at(-1)).toBeGreaterThan(0.99)
    await model.close()
    const out = new MemoryDirectory()
    await mergeOnnx(union.onnx, makeAdapter(union, /q_proj$/), out, { baseFiles: union.directory })
    expect([...out.files.keys()]).toContain('tokenizer.json')
    expect([...out.files.keys()].filter((name) => /\.(safetensors|onnx)/.test(name))).toEqual(['model.onnx'])
  })

  it.each<[string, (model: Model) => { adapter: LoraAdapter; signal?: AbortSignal }, RegExp]>([
    [
      'a result that is not finite',
      (model) => ({ adapter: makeAdapter(model, /q_proj$/, { std: 1e38 }) }),
      /not finite/,
    ],
    [
      'a signal',
      (model) => ({ adapter: makeAdapter(model, /q_proj$/), signal: AbortSignal.abort(new Error('stop')) }),
      /stop/,
    ],
  ])('stays away when %s ends the merge', async (_, setup, message) => {
    const folder = path.join(temporary, 'none')
    const { adapter, signal } = setup(union)
    const merging = mergeOnnx(union.onnx, adapter, new NodeDirectory(folder), {
      baseFiles: union.directory,
      ...(signal && { signal }),
    })
    await expect(merging).rejects.toThrow(message)
    expect(await readdir(temporary)).not.toContain('none')
  })

  it('keeps what was there when the merge fails', async () => {
    const folder = new MemoryDirectory({ 'model.onnx': 'old' })
    const adapter = makeAdapter(union, /q_proj$/, { std: 1e38 })
    await expect(mergeOnnx(union.onnx, adapter, folder)).rejects.toThrow(NumericError)
    expect(new TextDecoder().decode(folder.files.get('model.onnx'))).toBe('old')
  })

  it('must not be the base’s own', async () => {
    const base = directoryOf(`${UNION}/onnx`)
    const merging = mergeOnnx(union.onnx, makeAdapter(union, /q_proj$/), base, { baseFiles: base })
    await expect(merging).rejects.toThrow(FileError)
  })
})

describe('what cannot be merged', () => {
  it('no layer matches: near misses are shown', async () => {
    const adapter = new LoraAdapter({ rank: 1 })
    adapter.addFactors('model.layers.0.self_attn.query_proj', [[1, 1]], [[1], [1]])
    const merging = mergeOnnx(union.onnx, adapter, new MemoryDirectory())
    await expect(merging).rejects.toThrow(MismatchError)
    await expect(merging).rejects.toThrow(/query_proj.*model\.layers\.0\.self_attn\.q_proj/)
  })
})
