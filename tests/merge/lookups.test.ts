// Adapters of quantized embeddings in sessions and merges, compared with PyTorch (tests/golden/lookups).

import { describe, expect, it } from 'vitest'
import { type Feeds, inspect, LoraAdapter, MemoryDirectory, type OnnxModel } from '../../src/api/node.js'
import { NodeDirectory } from '../../src/files/io/node/files.js'
import { findEmbeddings } from '../../src/model/match/forms/lookup.js'
import { loadOnnx } from '../../src/onnx/format/model.js'
import { Graph } from '../../src/onnx/view/graph.js'
import { ModelSession } from '../../src/run/model-session.js'
import { asMatrix, deviation, goldenPath, readJson, tensorsOf, type Values } from '../golden.js'
import { inThread } from '../run/models.js'
import { mergeOnnx } from './toolkit.js'

const GOLDEN = readJson(goldenPath('lookups', 'golden.json')) as { forms: string[]; scaling: number; tokens: number[] }
const MODULE = 'model.embed_tokens'

const open = (name: string) => loadOnnx(new NodeDirectory(goldenPath('lookups', name)), 'model.onnx')
const numbersOf = (name: string) => tensorsOf(goldenPath('lookups', name, 'numbers.safetensors'))
const dataOf = (numbers: Values, tensor: string) => numbers.get(tensor)!.data as Float32Array

/**
 * The weight W (32, 12) of the layer after the embedding. Only the embeddings are quantized, so all graphs have W in
 * floats, and it can be read from any graph.
 */
const model = await open('int8')
const W = new Float32Array((await model.readTensor(new Graph(model.proto).initializers.get('w')!)).slice().buffer)
await model.close()

function feedsOf(numbers: Values): Feeds {
  const { data, shape } = numbers.get('ids')!
  return { ids: { type: 'int64', data: BigInt64Array.from(data, (id) => BigInt(id)), dims: shape } }
}

function lora(numbers: Values, useDora = false): LoraAdapter {
  const adapter = new LoraAdapter({ rank: 3, alpha: 3 * GOLDEN.scaling, useDora })
  const [a, b] = ['A', 'B'].map((part) => asMatrix(numbers.get(part)!))
  const magnitude = Float32Array.from({ length: 32 }, (_, i) => 4 + i / 8)
  adapter.addEmbedding(MODULE, a, b, useDora ? { magnitude } : {})
  return adapter
}

function rows(numbers: Values): LoraAdapter {
  const adapter = new LoraAdapter({ rank: 3 })
  const { data, shape } = numbers.get('rows')!
  const bytes = new Uint8Array(Float32Array.from(data).buffer)
  adapter.addTokenRows(MODULE, GOLDEN.tokens, { dtype: 'fp32', shape, data: bytes })
  return adapter
}

async function outputOf(onnx: OnnxModel, feeds: Feeds, adapters: Record<string, LoraAdapter> = {}) {
  const session = await ModelSession.open({ onnx, runtime: inThread }, { adapters, threads: 1 })
  const result: Record<string, Float32Array> = {}
  for (const name of [null, ...Object.keys(adapters)]) {
    result[name ?? 'base'] = (await session.run(feeds, { adapter: name })).y.data as Float32Array
  }
  await session.dispose()
  return result
}

/** Computes y with DoRA on the embedding, by the formula in float64. */
function doraOf(numbers: Values, base: Float32Array): Float32Array {
  const [table, a, b, ids] = ['table', 'A', 'B', 'ids'].map((name) => dataOf(numbers, name))
  const [v, k] = numbers.get('table')!.shape
  const changed = Float64Array.from({ length: v * k }, (_, i) => {
    const [token, feature] = [Math.floor(i / k), i % k]
    let value = table[i]
    for (let r = 0; r < 3; r++) value += GOLDEN.scaling * b[feature * 3 + r] * a[r * v + token]
    return value
  })
  const scales = Float64Array.from({ length: k }, (_, feature) => {
    let squares = 0
    for (let token = 0; token < v; token++) squares += changed[token * k + feature] ** 2
    return (4 + feature / 8) / Math.sqrt(squares)
  })
  // y is linear in the rows: the change of each feature's row passes W, which the changes of the plain adapter tell.
  return Float32Array.from(base, (y, i) => {
    const [at, output] = [Math.floor(i / 12), i % 12]
    const token = ids[at]
    let sum = y
    for (let feature = 0; feature < k; feature++) {
      sum += (scales[feature] * changed[token * k + feature] - table[token * k + feature]) * W[feature * 12 + output]
    }
    return sum
  })
}

describe.each(GOLDEN.forms)('an embedding as %s', (name) => {
  it('is found, and read', async () => {
    const [onnx, numbers] = [await open(name), await numbersOf(name)]
    const graph = new Graph(onnx.proto)
    const [found] = findEmbeddings(graph)
    expect(found).toMatchObject({ name: MODULE, k: 40, d: 32, transposed: false })
    const read = await found.form.openLines(onnx, graph, found)
    const values = Float32Array.from([...(await read(0, 7)), ...(await read(7, 33))])
    expect(deviation(values, dataOf(numbers, 'table'))).toBeLessThan(1e-6)
    await onnx.close()
  })

  it('runs with an adapter, with DoRA, and with trained rows', async () => {
    const [onnx, numbers] = [await open(name), await numbersOf(name)]
    const adapters = { adapted: lora(numbers), trained: rows(numbers), dora: lora(numbers, true) }
    const outputs = await outputOf(onnx, feedsOf(numbers), adapters)
    for (const kind of ['base', 'adapted', 'trained']) {
      expect(deviation(outputs[kind], dataOf(numbers, kind)), kind).toBeLessThan(1e-5)
    }
    expect(deviation(outputs.dora, doraOf(numbers, dataOf(numbers, 'base')))).toBeLessThan(1e-5)
    expect(deviation(outputs.adapted, outputs.base)).toBeGreaterThan(0.1)
    await onnx.close()
  })

  it.each(['adapted', 'dora'])('%s: merges as a branch beside it', async (kind) => {
    const [onnx, numbers] = [await open(name), await numbersOf(name)]
    const [out, twice] = ['out', 'twice'].map((folder) => new MemoryDirectory({}, folder))
    const adapter = lora(numbers, kind === 'dora')
    const report = await mergeOnnx(onnx, adapter, out)
    expect(report).toMatchObject({ branches: 1, changed: 0 })
    expect(report.layers[0].relativeChange).toBeNull()
    const merged = await loadOnnx(out, 'model.onnx')
    const expected = kind === 'dora' ? doraOf(numbers, dataOf(numbers, 'base')) : dataOf(numbers, 'adapted')
    expect(deviation((await outputOf(merged, feedsOf(numbers))).base, expected)).toBeLessThan(1e-5)
    if (kind === 'adapted') {
      await mergeOnnx(merged, adapter, twice)
      const both = await loadOnnx(twice, 'model.onnx')
      const [base, once] = ['base', 'adapted'].map((tensor) => dataOf(numbers, tensor))
      const sum = once.map((value, i) => 2 * value - base[i])
      expect(deviation((await outputOf(both, feedsOf(numbers))).base, sum)).toBeLessThan(1e-5)
      await both.close()
    }
    for (const opened of [merged, onnx]) await opened.close()
  })

  it('becomes a table of floats in a merge of trained rows, with a warning', async () => {
    const [onnx, numbers] = [await open(name), await numbersOf(name)]
    const out = new MemoryDirectory()
    const report = await mergeOnnx(onnx, rows(numbers), out)
    expect(report.warnings).toEqual([expect.stringMatching(/embed_tokens: .*stored as floats/)])
    const merged = await loadOnnx(out, 'model.onnx')
    expect(deviation((await outputOf(merged, feedsOf(numbers))).base, dataOf(numbers, 'trained'))).toBeLessThan(1e-5)
    for (const model of [merged, onnx]) await model.close()
  })

  it('is told by inspect', async () => {
    const report = await inspect(`${goldenPath('lookups', name)}/model.onnx`)
    const { embeddings } = report as Extract<typeof report, { kind: 'onnx' }>
    expect(embeddings).toMatchObject([
      { name: MODULE, graph: 'model', vocabulary: 40, features: 32, merge: ['branches'], problem: null },
    ])
    const [{ form, layout }] = embeddings
    expect(form).toBe(name === 'int8' ? 'DequantizeLinear' : 'GatherBlockQuantized')
    expect(layout).toMatch(name === 'int8' ? /^uint8, one scale$/ : /^4 bits, blocks of 16(, zero points)?$/)
  })
})
