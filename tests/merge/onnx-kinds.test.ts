// Adapters of every kind merged into exports of models of a few kB, against PEFT's logits (tests/golden/onnx-kinds).

import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { type Feeds, LoraAdapter, LowrankError, loadAdapter, MemoryDirectory } from '../../src/api/node.js'
import { MemorySource, readJson } from '../../src/core/base/bytes.js'
import { Random } from '../../src/core/base/random.js'
import { NodeDirectory } from '../../src/files/io/node/files.js'
import { parseSafetensorsHeader, readTensorF32 } from '../../src/files/safetensors.js'
import type { AdapterInput } from '../../src/merge/weighted.js'
import { findEmbeddings } from '../../src/model/match/forms/lookup.js'
import { findLinears } from '../../src/model/match/linears.js'
import { readTokenRows } from '../../src/model/match/read-base-tensor.js'
import { sessionModel } from '../../src/model/session-model.js'
import { copyMessage } from '../../src/onnx/format/messages.js'
import { loadOnnx, OnnxModel } from '../../src/onnx/format/model.js'
import { loadNodeRuntime } from '../../src/onnx/runtime/node/runtime.js'
import { Builder } from '../../src/onnx/view/builder.js'
import { Graph } from '../../src/onnx/view/graph.js'
import { ModelSession } from '../../src/run/model-session.js'
import { readWeight } from '../onnx/format/onnx-models.js'
import { feedsOf, inThread, maxDifference, openModel } from '../run/models.js'
import { some } from '../thorough.js'
import { mergeOnnx } from './toolkit.js'

const TOLERANCE = 1e-5

interface Cases {
  models: Record<string, string[]>
  inputs: Record<string, number[][]>
  cases: Record<string, { model: string; folder: string }>
  sums: Record<string, [name: string, weight: number][]>
}

const golden = fileURLToPath(new URL('../golden', import.meta.url))
const folder = new NodeDirectory(`${golden}/onnx-kinds`)
const { models, inputs, cases, sums }: Cases = JSON.parse(readFileSync(`${folder.name}/cases.json`, 'utf8'))
const logitsFile = await parseSafetensorsHeader(new MemorySource(readFileSync(`${folder.name}/logits.safetensors`)))
const runtime = await loadNodeRuntime()

const adapterOf = (name: string) => new NodeDirectory(`${golden}/${cases[name].folder}`)

async function expectedLogits(name: string): Promise<Float32Array> {
  return (await readTensorF32(logitsFile, name)).data
}

async function logitsOf(model: OnnxModel, tokenOf = (token: number) => token): Promise<Float32Array> {
  const session = await runtime.createSession(await sessionModel(model, model.proto), { threads: 1 })
  const feeds: Feeds = {}
  for (const [name, rows] of Object.entries(inputs)) {
    const values = name === 'input_ids' ? rows.flat().map(tokenOf) : rows.flat()
    feeds[name] = { type: 'int64', data: BigInt64Array.from(values, BigInt), dims: [rows.length, rows[0].length] }
  }
  const names = new Set(model.proto.graph?.input.map(({ name }) => name))
  const used = Object.fromEntries(Object.entries(feeds).filter(([name]) => names.has(name)))
  const { logits } = await session.run(used, ['logits'])
  await session.dispose()
  return logits.data as Float32Array
}

async function mergedLogits(file: string, adapters: AdapterInput | readonly AdapterInput[]) {
  const base = await loadOnnx(folder, file)
  const out = new MemoryDirectory()
  const report = await mergeOnnx(base, adapters, out)
  await base.close()
  return { report, logits: await logitsOf(await loadOnnx(out, file)) }
}

const exports = Object.entries(models).flatMap(([model, exporters]) =>
  exporters.map((exporter) => ({ model, file: `${model}-${exporter}.onnx` })),
)

describe.each(exports)('$file', ({ model, file }) => {
  const names = Object.keys(cases).filter((name) => cases[name].model === model)
  const isFirst = file === exports.find((one) => one.model === model)?.file

  it('gives PyTorch’s logits before anything is merged', async () => {
    const base = await loadOnnx(folder, file)
    expect(maxDifference(await logitsOf(base), await expectedLogits(`base.${model}`))).toBeLessThan(TOLERANCE)
    await base.close()
  })

  // The first export of a model is merged with all adapters. Other exporters write the same model in other ways, so
  // they get some of the adapters.
  it.each(isFirst ? names : some(names))('%s: gives PEFT’s logits', async (name) => {
    const { report, logits } = await mergedLogits(file, adapterOf(name))
    expect(maxDifference(logits, await expectedLogits(name))).toBeLessThan(TOLERANCE)
    expect(report.changed).toBeGreaterThan(0)
  })

  it.each(model === 'qwen2' ? Object.keys(sums) : [])('%s: gives the logits of the sum', async (name) => {
    const adapters = sums[name].map(([adapter, weight]) => ({ adapter: adapterOf(adapter), weight }))
    const { report, logits } = await mergedLogits(file, adapters)
    expect(maxDifference(logits, await expectedLogits(name))).toBeLessThan(TOLERANCE)
    expect(new Set(report.layers.map((layer) => layer.name)).size).toBe(report.layers.length)
  })
})

/** Opens the golden model with an edited graph. */
async function edited(file: string, edit: (graph: Graph) => void): Promise<OnnxModel> {
  const base = await loadOnnx(folder, file)
  const graph = new Graph(base.proto)
  edit(graph)
  return new OnnxModel(base.name, base.fileName, graph.toModel(), base.files)
}

const nodeOf = (graph: Graph, name: string) => graph.nodes.find((node) => node.name === name)!

describe('tensors that two places share', () => {
  const embedding = '/model/embed_tokens/Gather'
  /** Makes the head read the embedding through a Transpose, as in small exports. */
  const share = (graph: Graph) => {
    const head = nodeOf(graph, '/lm_head/MatMul')
    const weight = nodeOf(graph, embedding).input[0]
    graph.setInputs(head, [head.input[0], new Builder(graph, 'test').transpose(weight, [1, 0])])
    graph.prune()
  }

  it('stay one where both change alike, and part where one changes', async () => {
    for (const [name, added] of [
      ['tied-tokens', 0],
      ['tied-embedding', 1],
      ['tied-head', 1],
    ] as const) {
      const base = await edited('qwen2-tied-ts.onnx', share)
      const out = new MemoryDirectory()
      const report = await mergeOnnx(base, adapterOf(name), out)
      expect(report.tensors - base.proto.graph!.initializer.length, name).toBe(added)
      const logits = await logitsOf(await loadOnnx(out, base.fileName))
      expect(maxDifference(logits, await expectedLogits(name)), name).toBeLessThan(TOLERANCE)
      await base.close()
    }
  })

  it('a norm that shares its weight with another gets its own', async () => {
    const norms = ['/model/norm/Mul_1', '/model/layers.0/input_layernorm/Mul_1'] as const
    const base = await edited('qwen2-ts.onnx', (graph) => {
      const [last, first] = norms.map((name) => nodeOf(graph, name))
      graph.setInputs(
        last,
        last.input.map((input) => (input === 'model.norm.weight' ? first.input[0] : input)),
      )
      graph.prune()
    })
    const out = new MemoryDirectory()
    const adapter = await loadAdapter(adapterOf('modules-to-save'))
    await mergeOnnx(base, adapter, out)
    const merged = await loadOnnx(out, base.fileName)
    const graph = new Graph(merged.proto)
    const [own, kept] = norms.map((name) => nodeOf(graph, name).input[0])
    expect(own).toBe('model.norm.weight')
    expect(await readWeight(merged, kept)).toEqual(await readWeight(base, kept))
    expect(await readWeight(merged, own)).toEqual(adapter.get('model.norm.weight', 'replacement')?.data)
    await base.close()
  })
})

describe('a weight that several layers share', () => {
  it('takes DoRA for each of them', async () => {
    const random = new Random(3, 'test')
    const values = (...shape: number[]) => Array.from({ length: shape.reduce((a, b) => a * b) }, () => random.normal())
    const matrix = (rows: number, columns: number) => ({
      data: Float32Array.from(values(rows, columns)),
      shape: [rows, columns] as const,
    })
    const fused = await openModel('tests/golden/models/llama-genai')
    const separate = await openModel('tests/golden/models/llama-optimum')
    const adapter = new LoraAdapter({ rank: 2, useDora: true })
    for (const [part, d] of [
      ['q', 64],
      ['v', 32],
    ] as const) {
      const magnitude = values(d).map((value) => 1.5 + 0.1 * value)
      adapter.addFactors(`model.layers.0.self_attn.${part}_proj`, matrix(2, 32), matrix(d, 2), { magnitude })
    }
    const logits: Float32Array[] = []
    for (const model of [fused, separate]) {
      const out = new MemoryDirectory()
      const report = await mergeOnnx(model.onnx, adapter, out)
      expect(report.layers.map(({ name }) => name)).toEqual(adapter.names())
      const session = await ModelSession.open({ onnx: await loadOnnx(out, 'model.onnx'), runtime: inThread })
      logits.push((await session.run(feedsOf(model, [[0, 54, 260, 1356]]))).logits.data as Float32Array)
      await session.dispose()
      await model.close()
    }
    expect(maxDifference(logits[0], logits[1])).toBeLessThan(1e-4)
  })
})

describe('what is refused, by name', () => {
  it.each<[string, string, AdapterInput[], RegExp, ((graph: Graph) => void)?]>([
    [
      'a weight on DoRA',
      'qwen2-ts',
      [{ adapter: adapterOf('dora'), weight: 2 }],
      /down_proj: a DoRA layer cannot be merged with a weight/,
    ],
    [
      'a weight on a DoRA embedding',
      'qwen2-ts',
      [{ adapter: adapterOf('embedding-dora'), weight: 2 }],
      /a DoRA layer cannot be merged with a weight/,
    ],
    [
      'a weight on what is replaced',
      'qwen2-ts',
      [{ adapter: adapterOf('modules-to-save'), weight: 0.5 }],
      /what replaces the base’s values cannot/,
    ],
    [
      'DoRA and another layer',
      'qwen2-ts',
      [adapterOf('dora'), adapterOf('linear')],
      /weight: a DoRA layer and another adapter’s layer/,
    ],
    [
      'two replacements',
      'qwen2-ts',
      [adapterOf('modules-to-save'), adapterOf('modules-to-save')],
      /lm_head\.weight: two parts/,
    ],
    [
      'rows and a layer',
      'qwen2-ts',
      [adapterOf('tokens'), adapterOf('embedding')],
      /embed_tokens\.weight: replaced rows/,
    ],
    ['no adapter', 'qwen2-ts', [], /there is no layer to merge/],
    [
      'a bias of B without a bias',
      'qwen2-ts',
      [adapterOf('lora-bias')],
      /q_proj: the adapter has a bias of B .*no bias here to add it to/,
      (graph) => {
        const add = nodeOf(graph, '/model/layers.0/self_attn/q_proj/Add')
        graph.replaceUses(add.output[0], nodeOf(graph, '/model/layers.0/self_attn/q_proj/MatMul').output[0])
        graph.prune()
      },
    ],
    [
      'an embedding that is no Gather',
      'qwen2-ts',
      [adapterOf('embedding')],
      /model\.embed_tokens: the graph has no embedding of this name, or not in a form that lowrank reads.* got GatherElements/,
      (graph) => {
        nodeOf(graph, '/model/embed_tokens/Gather').opType = 'GatherElements'
      },
    ],
    [
      'a norm whose weight an exporter has changed',
      'qwen2-ts',
      [adapterOf('modules-to-save')],
      /model\.norm\.weight: the graph has no tensor that is certain to be this one/,
      (graph) => {
        const mul = nodeOf(graph, '/model/norm/Mul_1')
        const tensor = graph.initializers.get('model.norm.weight')!
        graph.initializers.delete(tensor.name)
        const name = graph.addInitializer(copyMessage(tensor, { name: 'onnx::Mul_1' }))
        graph.setInputs(
          mul,
          mul.input.map((input) => (input === tensor.name ? name : input)),
        )
      },
    ],
    [
      'a bias that another module adds',
      'qwen2-ts',
      [adapterOf('bias-lora-only')],
      /q_proj\.bias: the linear layer has no bias that is certain to be this one/,
      (graph) => {
        const add = nodeOf(graph, '/model/layers.0/self_attn/q_proj/Add')
        const tensor = graph.initializers.get('model.layers.0.self_attn.q_proj.bias')!
        add.name = '/model/layers.0/Add_7'
        const name = graph.addInitializer(copyMessage(tensor, { name: 'onnx::Add_1' }))
        graph.setInputs(
          add,
          add.input.map((input) => (input === tensor.name ? name : input)),
        )
        graph.prune()
      },
    ],
    [
      'a vocabulary of another size',
      'gpt2-ts',
      [anEmbedding('transformer.wte', 40)],
      /transformer\.wte: .*expected \(32, 12\), as in the graph, got \(40, 12\)/,
    ],
    [
      'a dilated convolution',
      'convolved-ts',
      [aConvolution('far', 6, 6)],
      /far: a dilated convolution cannot be merged/,
    ],
    [
      'a convolution of another shape',
      'convolved-ts',
      [aConvolution('near', 6, 7)],
      /near: .*expected \(8, 6, 3\), as in the graph, got \(7, 6, 3\)/,
    ],
    [
      'a convolution that is not there',
      'convolved-ts',
      [aConvolution('nowhere', 6, 8)],
      /nowhere: the graph has no convolution of this name/,
    ],
    [
      'an embedding that is not there',
      'gpt2-ts',
      [anEmbedding('transformer.wtf', 32)],
      /transformer\.wtf: .*Did you mean transformer\.wte/,
    ],
  ])('%s', async (_, file, adapters, message, edit = () => {}) => {
    const base = await edited(`${file}.onnx`, edit)
    const out = new MemoryDirectory()
    const error = await mergeOnnx(base, adapters, out).catch((reason: unknown) => reason)
    expect(error).toBeInstanceOf(LowrankError)
    expect((error as Error).message).toMatch(message)
    expect(out.files.size).toBe(0)
    await base.close()
  })
})

function anEmbedding(name: string, vocabulary: number): LoraAdapter {
  const adapter = new LoraAdapter({ rank: 1 })
  adapter.addEmbedding(name, [new Array(vocabulary).fill(1)], new Array(12).fill([1]))
  return adapter
}

function aConvolution(name: string, channels: number, d: number): LoraAdapter {
  const adapter = new LoraAdapter({ rank: 1 })
  const ones = (...shape: number[]) => ({ data: new Float32Array(shape.reduce((a, b) => a * b)).fill(1), shape })
  adapter.addConvolution(name, ones(1, channels, 3), ones(d, 1, 1))
  return adapter
}

describe('a vocabulary that grows by copies of three tokens (add_tokens, resize_token_embeddings)', () => {
  /** Makes an adapter with the embeddings as PEFT saves them, with three more rows. */
  async function grown(base: OnnxModel, hasHead: boolean) {
    const graph = new Graph(base.proto)
    const embedding = findEmbeddings(graph).find(({ name }) => name === 'model.embed_tokens')!
    const head = findLinears(graph).find(({ isHead }) => isHead)!
    const { k: vocabulary } = embedding
    const copies = [...new Set(inputs.input_ids.flat())].slice(0, 3)
    const tokens = [...Array(vocabulary).keys(), ...copies]
    const lora = new LoraAdapter({ rank: 1 })
    for (const [name, place] of [['model.embed_tokens', embedding] as const, ['lm_head', head] as const]) {
      if (place === head && !hasHead) continue
      const data = await readTokenRows(base, graph, place, tokens)
      const values = { data, shape: [tokens.length, data.length / tokens.length] }
      lora.addReplacement(`${name}.weight`, values, { isTrained: false })
    }
    return { lora, copies, vocabulary }
  }

  it.each([
    ['qwen2-ts.onnx', true],
    ['qwen2-dynamo.onnx', true],
    ['qwen2-tied-ts.onnx', false],
    ['qwen2-tied-dynamo.onnx', false],
    ['qwen2-tied-dynamo.onnx', true],
  ])('%s: the new tokens do what the old ones do (head saved too: %s)', async (file, hasHead) => {
    const base = await loadOnnx(folder, file)
    const { lora, copies, vocabulary } = await grown(base, hasHead)
    const config = { model_type: 'qwen2', vocab_size: vocabulary }
    const baseFiles = new MemoryDirectory({ 'config.json': JSON.stringify(config) })
    const out = new MemoryDirectory()
    await mergeOnnx(base, lora, out, { baseFiles })
    const merged = await loadOnnx(out, file)
    const want = await logitsOf(base)
    for (const isNew of [false, true]) {
      const got = await logitsOf(merged, (token) => {
        return isNew && copies.includes(token) ? vocabulary + copies.indexOf(token) : token
      })
      const texts = Array.from({ length: want.length / vocabulary }, (_, i) => {
        const row = want.subarray(i * vocabulary, (i + 1) * vocabulary)
        return [...row, ...copies.map((token) => row[token])]
      })
      expect(maxDifference(got, Float32Array.from(texts.flat()))).toBeLessThan(TOLERANCE)
    }
    expect(await readJson(out, 'config.json')).toMatchObject({ vocab_size: vocabulary + 3 })
    await base.close()
  })

  it('without the head of an untied model it is refused, and told what to save', async () => {
    const base = await loadOnnx(folder, 'qwen2-ts.onnx')
    const { lora } = await grown(base, false)
    const hint = expect.stringMatching(/save_embedding_layers/)
    const expected = { code: 'MISMATCH', where: 'lm_head', hint }
    await expect(mergeOnnx(base, lora, new MemoryDirectory())).rejects.toMatchObject(expected)
    await base.close()
  })
})
