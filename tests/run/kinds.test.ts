// Adapters in sessions with more than W + s·B·A: DoRA and biases of B, compared with PEFT's logits
// (tests/golden/onnx-kinds).

import { readFileSync } from 'node:fs'
import { afterEach, describe, expect, it } from 'vitest'
import {
  type Feeds,
  LoraAdapter,
  loadAdapter,
  MemoryDirectory,
  NumericError,
  UnsupportedError,
} from '../../src/api/node.js'
import { MemorySource } from '../../src/core/base/bytes.js'
import { Random } from '../../src/core/base/random.js'
import { parseSafetensorsHeader, readTensorF32 } from '../../src/files/safetensors.js'
import { findLinears } from '../../src/model/match/linears.js'
import { TensorProto_DataType as DataType, TensorProtoSchema } from '../../src/onnx/format/gen/onnx_pb.js'
import { loadOnnx, OnnxModel } from '../../src/onnx/format/model.js'
import { create } from '../../src/onnx/format/protobuf.js'
import { makeAttribute } from '../../src/onnx/view/attributes.js'
import { Builder } from '../../src/onnx/view/builder.js'
import { Graph } from '../../src/onnx/view/graph.js'
import { ModelSession } from '../../src/run/model-session.js'
import { mergeOnnx } from '../merge/toolkit.js'
import { some } from '../thorough.js'
import { directoryOf, feedsOf, inThread, makeAdapter, maxDifference, messageHost, openModel } from './models.js'

const FOLDER = 'tests/golden/onnx-kinds'
const TOLERANCE = 1e-5

interface Cases {
  inputs: Record<string, number[][]>
  cases: Record<string, { model: string; folder: string }>
  sums: Record<string, [name: string, weight: number][]>
}

const { inputs, cases, sums }: Cases = JSON.parse(readFileSync(`${directoryOf(FOLDER).name}/cases.json`, 'utf8'))
const golden = await parseSafetensorsHeader(
  new MemorySource(readFileSync(`${directoryOf(FOLDER).name}/logits.safetensors`)),
)
const logitsOf = async (name: string) => (await readTensorF32(golden, name)).data
const adapterOf = (name: string) => loadAdapter(directoryOf(`tests/golden/${cases[name].folder}`))

const opened: { dispose(): Promise<void>; onnx: OnnxModel }[] = []
afterEach(async () => {
  for (const { dispose, onnx } of opened.splice(0)) {
    await dispose()
    await onnx.close()
  }
})

async function open(onnx: OnnxModel, adapters: Record<string, LoraAdapter>, runtime = inThread) {
  const session = await ModelSession.open({ onnx, runtime }, { adapters })
  opened.push({ dispose: () => session.dispose(), onnx })
  return session
}

function feeds(session: ModelSession): Feeds {
  const all = Object.entries(inputs).map(([name, rows]): [string, Feeds[string]] => {
    return [name, { type: 'int64', data: BigInt64Array.from(rows.flat(), BigInt), dims: [2, rows[0].length] }]
  })
  return Object.fromEntries(all.filter(([name]) => session.inputNames.includes(name)))
}

async function error(session: ModelSession, adapter: string | undefined, expected: string) {
  const { logits } = await session.run(feeds(session), { adapter })
  return maxDifference(logits, await logitsOf(expected))
}

const REFUSED = /^conv(olution)?($|-(?!point))/
const exported = [
  'qwen2-ts',
  'qwen2-dynamo',
  'qwen2-tied-ts',
  'qwen2-tied-dynamo',
  'gpt2-ts',
  'gpt2-dynamo',
  'bert-ts',
  'bert-dynamo',
  'convolved-ts',
  'convolved-dynamo',
]
const casesOf = (model: string) =>
  Object.keys(cases).filter((name) => cases[name].model === model && !REFUSED.test(name))

/** Returns a row of logits with two rows. */
const rowOf = (logits: Float32Array, row: number) => {
  const size = logits.length / 2
  return logits.subarray(row * size, (row + 1) * size)
}

describe.each(some(exported, 2))('%s', (file) => {
  const model = file.replace(/-(ts|dynamo)$/, '')
  const names = casesOf(model)

  it('gives PEFT’s logits, whichever adapter a run names', async () => {
    const adapters: Record<string, LoraAdapter> = {}
    for (const name of names) adapters[name] = await adapterOf(name)
    const session = await open(await loadOnnx(directoryOf(FOLDER), `${file}.onnx`), adapters)
    expect(names.length).toBeGreaterThan(2)
    for (const name of [...names, ...names.toReversed()]) {
      expect(await error(session, name, name), name).toBeLessThan(TOLERANCE)
      expect(await error(session, undefined, `base.${model}`)).toBeLessThan(TOLERANCE)
    }
    // Each pair of adapters in a batch.
    for (const [i, first] of names.entries()) {
      for (const second of [names[(i + 1) % names.length], null]) {
        const { logits } = await session.run(feeds(session), { adapter: [first, second] })
        for (const [row, name] of [first, second].entries()) {
          const expected = rowOf(await logitsOf(name ?? `base.${model}`), row)
          const got = { ...logits, data: rowOf(logits.data as Float32Array, row) }
          expect(maxDifference(got, expected), `${first}, ${second}: row ${row}`).toBeLessThan(TOLERANCE)
        }
      }
    }
  })

  it.each(some(names))('%s alone gives PEFT’s logits', async (name) => {
    const onnx = await loadOnnx(directoryOf(FOLDER), `${file}.onnx`)
    const session = await open(onnx, { [name]: await adapterOf(name) })
    expect(await error(session, name, name)).toBeLessThan(TOLERANCE)
    expect(await error(session, undefined, `base.${model}`)).toBeLessThan(TOLERANCE)
  })
})

describe('mixes', () => {
  it.each(Object.keys(sums))('%s: gives the logits of the sum', async (name) => {
    const adapters: Record<string, LoraAdapter> = {}
    for (const [part] of sums[name]) adapters[part] = await adapterOf(part)
    const session = await open(await loadOnnx(directoryOf(FOLDER), 'qwen2-ts.onnx'), adapters)
    const { logits } = await session.run(feeds(session), { adapter: Object.fromEntries(sums[name]) })
    expect(maxDifference(logits, await logitsOf(name))).toBeLessThan(TOLERANCE)
  })

  it('takes what replaces values with weight 1, beside adapters that add', async () => {
    const onnx = await loadOnnx(directoryOf(FOLDER), 'gpt2-ts.onnx')
    const [bias, plain] = [await adapterOf('gpt2-bias-all'), await adapterOf('conv1d')]
    const out = new MemoryDirectory()
    await mergeOnnx(onnx, [{ adapter: bias }, { adapter: plain, weight: 0.5 }], out)
    const merged = await open(await loadOnnx(out, onnx.fileName), {})
    const session = await open(onnx, { bias, plain })
    const { logits } = await session.run(feeds(session), { adapter: { bias: 1, plain: 0.5 } })
    expect(maxDifference(logits, (await merged.run(feeds(merged))).logits)).toBeLessThan(TOLERANCE)
    expect(maxDifference(logits, await logitsOf('gpt2-bias-all'))).toBeGreaterThan(0.01)
  })

  it('refuses weights on what replaces values, and two that replace the same', async () => {
    const onnx = await loadOnnx(directoryOf(FOLDER), 'qwen2-tied-ts.onnx')
    const tokens = await adapterOf('tied-tokens')
    const session = await open(onnx, {
      tokens,
      again: await adapterOf('tied-tokens'),
      embedding: await adapterOf('tied-embedding'),
    })
    const run = (adapter: Record<string, number>) => session.run(feeds(session), { adapter })
    await expect(run({ tokens: 0.5 })).rejects.toThrow(
      /"tokens".*it replaces values of the base.*cannot be weighted.*tokens: 0.5/,
    )
    await expect(run({ tokens: 1, again: 1 })).rejects.toThrow(
      /"again".*"tokens" both replace (lm_head|model.embed_tokens)/,
    )
    await expect(run({ tokens: 1, embedding: 1 })).rejects.toThrow(/rows of model.embed_tokens.*"embedding" adds to/)
    await expect(run({ tokens: 0.5 })).rejects.toThrow(UnsupportedError)
  })
})

describe('a head with quantized weights', () => {
  const FILE = 'qwen2-tied-q4head.onnx'

  it('gives PEFT’s logits where it is replaced, and its own elsewhere', async () => {
    const session = await open(await loadOnnx(directoryOf(FOLDER), FILE), { head: await adapterOf('tied-head') })
    expect(await error(session, 'head', 'tied-head')).toBeLessThan(TOLERANCE)
    const base = await error(session, undefined, 'base.qwen2-tied')
    expect(base).toBeGreaterThan(0.01)
    const plain = await open(await loadOnnx(directoryOf(FOLDER), FILE), {})
    expect(await error(plain, undefined, 'base.qwen2-tied')).toBeCloseTo(base, 5)
  })

  it('is tied to an embedding of about its values: trained tokens are PEFT’s in both', async () => {
    const name = 'tied-tokens'
    const session = await open(await loadOnnx(directoryOf(FOLDER), FILE), { [name]: await adapterOf(name) })
    const { logits } = await session.run(feeds(session), { adapter: [name, null] })
    const expected = await logitsOf(name)
    const tokens = [31, 2, 17]
    const vocabulary = logits.dims[2]
    for (const token of tokens) {
      for (let position = 0; position < logits.dims[1]; position++) {
        const at = position * vocabulary + token
        expect(Math.abs((logits.data as Float32Array)[at] - expected[at])).toBeLessThan(TOLERANCE)
      }
    }
    const base = await logitsOf('base.qwen2-tied')
    expect(Math.abs(expected[31] - base[31])).toBeGreaterThan(0.05)
  })

  it('is merged as floats, whose size a warning tells', async () => {
    const onnx = await loadOnnx(directoryOf(FOLDER), FILE)
    const out = new MemoryDirectory()
    const { warnings } = await mergeOnnx(onnx, await adapterOf('tied-tokens'), out)
    expect(warnings.join()).toMatch(/stored as floats \([\d.]+ MB instead of [\d.]+ MB\)/)
    const merged = await loadOnnx(out, FILE)
    const isQuantized = ({ proto }: OnnxModel) => {
      return findLinears(new Graph(proto)).flatMap(({ isHead, form }) => (isHead ? [form.isQuantized] : []))
    }
    expect([isQuantized(onnx), isQuantized(merged)]).toEqual([[true], [false]])
    for (const model of [merged, onnx]) await model.close()
  })
})

const values = (random: Random, count: number) => Float32Array.from({ length: count }, () => random.normal())

/** Makes DoRA layers for the modules whose names match, with magnitudes that differ from the norms. */
function makeDora(onnx: OnnxModel, modules: RegExp): LoraAdapter {
  const adapter = new LoraAdapter({ rank: 2, alpha: 4, useDora: true })
  const random = new Random(11, 'test')
  for (const { name, d, k } of findLinears(new Graph(onnx.proto))) {
    if (!modules.test(name) || adapter.has(name)) continue
    const a = { data: values(random, 2 * k).map((value) => value / Math.sqrt(k)), shape: [2, k] as const }
    const b = { data: values(random, 2 * d).map((value) => 0.2 * value), shape: [d, 2] as const }
    const magnitude = values(random, d).map((value) => 1.5 + 0.2 * value)
    adapter.addFactors(name, a, b, { magnitude })
  }
  return adapter
}

describe('the merged model and the session agree', () => {
  it.each([
    ['llama-genai', /(q|v)_proj$/, 1e-4],
    ['llama-genai', /(q|k|v|o|down)_proj$/, 1e-4],
    ['llama-optimum', /_proj$|lm_head$/, 1e-4],
    ['gpt2-optimum', /c_attn$|c_proj$|c_fc$/, 1e-4],
    // The runtime rounds each product to f16.
    ['llama-fp16', /(q|down)_proj$/, 0.02],
  ] as const)('%s, DoRA on %s', async (name, modules, tolerance) => {
    const model = await openModel(`tests/golden/models/${name}`)
    const adapter = makeDora(model.onnx, modules)
    const out = new MemoryDirectory()
    await mergeOnnx(model.onnx, adapter, out)
    const run = feedsOf(model, [[0, 54, 260, 1356, 270, 262]])
    const merged = await open(await loadOnnx(out, model.onnx.fileName), {})
    const session = await open(model.onnx, { dora: adapter })
    const [one, other, base] = [
      (await merged.run(run)).logits,
      (await session.run(run, { adapter: 'dora' })).logits,
      (await session.run(run)).logits,
    ]
    expect(maxDifference(one, other)).toBeLessThan(tolerance)
    expect(maxDifference(other, base)).toBeGreaterThan(0.1)
  })

  it('layers that share a weight and a bias, with biases of B', async () => {
    const model = await openModel('tests/golden/models/llama-genai')
    const graph = new Graph(model.onnx.proto)
    const matmul = graph.nodes.find(({ name }) => name === '/model/layers.0/attn/qkv_proj/MatMul')!
    const [output] = matmul.output
    const g = new Builder(graph, 'test')
    graph.setOutput(matmul, 0, 'test/product')
    const bias = g.float(Array.from(values(new Random(5, 'test'), 128)))
    graph.setOutput(g.node('Add', ['test/product', bias]), 0, output)
    const onnx = new OnnxModel(model.onnx.name, model.onnx.fileName, graph.toModel(), model.onnx.files)
    const random = new Random(6, 'test')
    const adapter = new LoraAdapter({ rank: 2, loraBias: true })
    for (const [part, d] of [
      ['q', 64],
      ['v', 32],
    ] as const) {
      const a = { data: values(random, 64), shape: [2, 32] as const }
      const b = { data: values(random, 2 * d).map((value) => 0.2 * value), shape: [d, 2] as const }
      adapter.addFactors(`model.layers.0.self_attn.${part}_proj`, a, b, { biasB: values(random, d) })
    }
    const out = new MemoryDirectory()
    expect(await mergeOnnx(onnx, adapter, out)).toMatchObject({ changed: 2 })
    const run = feedsOf(model, [[0, 54, 260, 1356, 270, 262]])
    const merged = await open(await loadOnnx(out, onnx.fileName), {})
    const session = await open(onnx, { adapter })
    const [one, other, base] = [
      (await merged.run(run)).logits,
      (await session.run(run, { adapter: 'adapter' })).logits,
      (await session.run(run)).logits,
    ]
    expect(maxDifference(one, other)).toBeLessThan(1e-4)
    expect(maxDifference(other, base)).toBeGreaterThan(0.1)
  })

  it.each(['ts', 'dynamo'])('a classifier by %s, with biases of B', async (exporter) => {
    const onnx = await loadOnnx(directoryOf(FOLDER), `bert-${exporter}.onnx`)
    const adapter = await adapterOf('bert-lora-bias')
    // PEFT also saves the classifier's head, which sessions refuse here.
    for (const { name } of adapter.parts('replacement')) adapter.remove(name)
    const out = new MemoryDirectory()
    await mergeOnnx(onnx, adapter, out)
    const merged = await open(await loadOnnx(out, onnx.fileName), {})
    const session = await open(onnx, { adapter })
    const [one, other] = [
      (await merged.run(feeds(merged))).logits,
      (await session.run(feeds(session), { adapter: 'adapter' })).logits,
    ]
    expect(maxDifference(one, other)).toBeLessThan(TOLERANCE)
    expect(maxDifference(one, await logitsOf('base.bert'))).toBeGreaterThan(0.05)
  })
})

describe('beside plain adapters', () => {
  it('changes nothing for them, nor for the base, and comes and goes', async () => {
    const model = await openModel('tests/golden/models/llama-optimum')
    const plain = makeAdapter(model, /q_proj$|down_proj$/)
    const run = feedsOf(model, [[0, 54, 260, 1356, 270, 262]])
    const session = await open(model.onnx, { plain }, messageHost().host)
    const before = [(await session.run(run, { adapter: 'plain' })).logits, (await session.run(run)).logits]
    await session.add('dora', makeDora(model.onnx, /(q|o)_proj$/))
    const after = [(await session.run(run, { adapter: 'plain' })).logits, (await session.run(run)).logits]
    before.forEach((logits, i) => void expect(maxDifference(logits, after[i])).toBeLessThan(1e-5))
    const dora = (await session.run(run, { adapter: 'dora' })).logits
    expect(maxDifference(dora, after[1])).toBeGreaterThan(0.1)
    await session.remove('dora')
    expect(maxDifference((await session.run(run, { adapter: 'plain' })).logits, after[0])).toBe(0)
  })
})

describe('what is refused', () => {
  it('DoRA on weights that cannot be read, and what is no linear layer', async () => {
    const quantized = await openModel('tests/golden/models/llama-q4')
    const dora = makeDora(quantized.onnx, /0\.self_attn\.q_proj$/)
    const graph = new Graph(quantized.onnx.proto)
    const { node } = findLinears(graph).find(({ name }) => name === dora.names()[0])!
    const groups = create(TensorProtoSchema, { name: 'groups', dataType: DataType.INT32, dims: [32n] })
    groups.int32Data = Array(32).fill(0)
    node.input = [...node.input.slice(0, 3), '', graph.addInitializer(groups)]
    const { name: file, fileName, files } = quantized.onnx
    const session = await open(new OnnxModel(file, fileName, graph.toModel(), files), {})
    await expect(session.add('dora', dora)).rejects.toThrow(UnsupportedError)
    await expect(session.add('dora', dora)).rejects.toThrow(
      /q_proj.*cannot be read: rows in another order \(g_idx\).*MatMulNBits/,
    )
    await expect(session.add('conv', await adapterOf('conv'))).rejects.toThrow(/no module for logits/)
    expect(session.adapters).toEqual([])
  })

  it('convolutions of a larger kernel', async () => {
    const session = await open(await loadOnnx(directoryOf(FOLDER), 'convolved-ts.onnx'), {})
    await expect(session.add('conv', await adapterOf('conv'))).rejects.toThrow(
      /near: a session cannot adapt this convolution; expected a convolution of kernel 1.*got kernel 3, 1 groups.*Merge/,
    )
  })

  it('scales that are not finite, and a Gemm’s own factor', async () => {
    const onnx = await loadOnnx(directoryOf(FOLDER), 'gpt2-ts.onnx')
    const adapter = await adapterOf('conv1d-dora')
    const [name] = adapter.names()
    adapter.layer(name).magnitude![0] = Number.NaN
    const session = await open(onnx, {})
    await expect(session.add('dora', adapter)).rejects.toThrow(NumericError)
    const graph = new Graph(onnx.proto)
    const { node } = findLinears(graph).find((linear) => linear.name === name)!
    node.attribute = [...node.attribute.filter((entry) => entry.name !== 'alpha'), makeAttribute('alpha', { float: 2 })]
    const changed = new OnnxModel(onnx.name, onnx.fileName, graph.toModel(), onnx.files)
    const other = await open(changed, {})
    await expect(other.add('dora', adapter)).rejects.toThrow(/alpha 2/)
  })
})
