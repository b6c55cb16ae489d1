import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { type Feeds, type RuntimeTensor, UnsupportedError } from '../../src/api/node.js'
import { Random } from '../../src/core/base/random.js'
import { NodeDirectory } from '../../src/files/io/node/files.js'
import { sessionModel } from '../../src/model/session-model.js'
import { loadOnnx } from '../../src/onnx/format/model.js'
import type { CustomGradients } from '../../src/onnx/gradients/backward.js'
import { GRADIENTS, NON_DIFFERENTIABLE } from '../../src/onnx/gradients/gradients.js'
import { LOWERINGS, lowerFused } from '../../src/onnx/lower/lower.js'
import { suitWebgpu } from '../../src/onnx/lower/webgpu.js'
import { loadNodeRuntime } from '../../src/onnx/runtime/node/runtime.js'
import type { Attributes } from '../../src/onnx/view/attributes.js'
import { Builder } from '../../src/onnx/view/builder.js'
import { Graph } from '../../src/onnx/view/graph.js'
import { operatorOf } from '../../src/onnx/view/operators.js'
import { CASES, GQA, grouped, type LoweringCase, MHA, PARTS, SKIP, SKIPPED, x } from './lowering-cases.js'
import { addInput, addOutput, DataType, emptyGraph, int32s, ints, normals, openGraph, valuesOf } from './toolkit.js'

const TYPES: Partial<Record<RuntimeTensor['type'], DataType>> = {
  float32: DataType.FLOAT,
  int64: DataType.INT64,
  int32: DataType.INT32,
  bool: DataType.BOOL,
  uint8: DataType.UINT8,
}

/** Makes a graph with only the case's node. Its outputs are y0, y1, … */
function graphOf({ op, inputs, attributes, outputs = [0], opset = 17 }: LoweringCase): Graph {
  const graph = emptyGraph(opset)
  for (const [i, input] of inputs.entries()) {
    if (input !== undefined) addInput(graph, `x${i}`, TYPES[input.type] as DataType, input.dims)
  }
  const names = inputs.map((input, i) => (input === undefined ? '' : `x${i}`))
  const count = /WithState|LinearAttention$/.test(op) ? 2 : Math.max(...outputs) + 1
  const node = new Builder(graph, 'fused').node(op, names, attributes, count)
  node.output = node.output.map((_, i) => (outputs.includes(i) || i === 1 || i === 2 ? graph.freshName(`y${i}`) : ''))
  if (/Skip/.test(op)) node.output = node.output.map((name, i) => (outputs.includes(i) ? name : ''))
  graph.invalidate()
  for (const i of outputs) addOutput(graph, `y${i}`, DataType.FLOAT)
  return graph
}

async function runGraph(graph: Graph, spec: LoweringCase): Promise<Record<string, RuntimeTensor>> {
  const session = await openGraph(graph)
  try {
    const fed = spec.inputs.flatMap((input, i) => (input === undefined ? [] : [[`x${i}`, input] as const]))
    return await session.run(Object.fromEntries(fed))
  } finally {
    await session.dispose()
  }
}

/** Returns the values at tokens, without the padding after each row. */
function atTokens({ data, dims }: RuntimeTensor, lengths?: readonly number[]): number[] {
  const width = dims.slice(2).reduce((product, dim) => product * dim, 1)
  return Array.from(data as Float32Array).filter((_, i) => {
    const row = Math.floor(i / width)
    return lengths === undefined || row % dims[1] < lengths[Math.floor(row / dims[1])]
  })
}

function largestDifference(a: readonly number[], b: readonly number[]): number {
  expect(a.length).toBe(b.length)
  return a.reduce((worst, value, i) => Math.max(worst, Math.abs(value - b[i])), 0)
}

function expectDifferentiable(graph: Graph, custom: CustomGradients): void {
  const nodes = graph.nodes.filter(({ output }) => !custom.has(output[0]))
  const keys = [...new Set(nodes.map(operatorOf))]
  expect(keys.filter((key) => !(key in GRADIENTS) && !NON_DIFFERENTIABLE.has(key))).toEqual([])
}

describe('a lowered operator equals the fused one', () => {
  it('has a case for every lowering', () => {
    expect([...new Set(CASES.map(({ op }) => op))].sort()).toEqual(Object.keys(LOWERINGS).sort())
  })

  it.each(CASES.map((spec) => [`${spec.op}: ${spec.note}`, spec] as const))('%s', async (_, spec) => {
    const comparable = { ...spec, inputs: spec.fusedInputs ?? spec.inputs }
    const fused = await runGraph(graphOf(comparable), comparable)
    const graph = graphOf(spec)
    const custom: CustomGradients = new Map()
    lowerFused(graph, custom)
    expectDifferentiable(graph, custom)
    const lowered = await runGraph(graph, spec)
    for (const i of spec.outputs ?? [0]) {
      const [got, wanted] = [lowered[`y${i}`], fused[`y${i}`]]
      expect(got.dims).toEqual(wanted.dims)
      const lengths = i === 0 ? spec.lengths : undefined
      const isCache = i > 0 && spec.lengths !== undefined // its padding may hold anything
      if (!isCache) expect(largestDifference(atTokens(got, lengths), atTokens(wanted, lengths))).toBeLessThan(1e-5)
    }
  })
})

describe('models of onnxruntime-genai', () => {
  it.each(['llama-genai', 'llama-genai-rotary'])('%s gives the same logits lowered', async (name) => {
    const folder = new NodeDirectory(fileURLToPath(new URL(`../golden/models/${name}`, import.meta.url)))
    const model = await loadOnnx(folder, 'onnx/model.onnx')
    const runtime = await loadNodeRuntime()
    const logitsOf = async (graph: Graph) => {
      graph.outputs = graph.outputs.filter((output) => output.name === 'logits')
      graph.prune({ inputs: true })
      const session = await runtime.createSession(await sessionModel(model, graph.toModel()), { threads: 1 })
      const all: Feeds = {
        input_ids: ints([5, 17, 260, 9, 31, 8, 1200, 77, 0, 0], [2, 5]),
        attention_mask: ints([1, 1, 1, 1, 1, 1, 1, 1, 0, 0], [2, 5]),
        position_ids: ints([0, 1, 2, 3, 4, 0, 1, 2, 3, 4], [2, 5]),
      }
      for (const input of session.inputNames) all[input] ??= { ...x(2, 2, 0, 16), dims: [2, 2, 0, 16] }
      const { logits } = await session.run(Object.fromEntries(session.inputNames.map((input) => [input, all[input]])))
      await session.dispose()
      return logits
    }
    const graph = new Graph(model.proto)
    lowerFused(graph)
    const left = graph.nodes.filter(({ domain }) => domain === 'com.microsoft').map(operatorOf)
    expect(left.filter((key) => !(key in GRADIENTS))).toEqual([])
    const wanted = atTokens(await logitsOf(new Graph(model.proto)), [5, 3])
    expect(largestDifference(atTokens(await logitsOf(graph), [5, 3]), wanted)).toBeLessThan(1e-5)
    await model.close()
  })
})

describe('what cannot be lowered', () => {
  const gqa = (attributes: Attributes, name: string): LoweringCase => ({
    op: GQA,
    note: name,
    inputs: grouped([x(1, 2, 32), x(1, 2, 16), x(1, 2, 16)], [2], 2, [2, 8]),
    attributes: { num_heads: 4, kv_num_heads: 2, ...attributes },
  })

  it.each([
    ['smooth softmax', gqa({ smooth_softmax: 1 }, 'smooth'), 'smooth_softmax'],
    [
      'an output of a statistic',
      { ...CASES[0], op: SKIP, inputs: SKIPPED, attributes: {}, outputs: [0, 2] },
      'its output 2',
    ],
    [
      'a decay for each dimension of the keys',
      {
        op: 'com.microsoft:LinearAttention',
        note: '',
        inputs: [x(1, 2, 4), x(1, 2, 4), x(1, 2, 6), x(1, 1, 4, 6), x(1, 2, 4)],
        attributes: { q_num_heads: 1, kv_num_heads: 1, update_rule: 'gated' },
      },
      'a decay for each dimension of the keys is not implemented; one for each head is',
    ],
    [
      'a mask of starts and ends',
      { op: MHA, note: '', inputs: [...PARTS, undefined, int32s([5, 2, 0, 1], [4])], attributes: { num_heads: 4 } },
      'a mask of 1 axis is only implemented where it has one number for each row',
    ],
  ] satisfies [string, LoweringCase, string][])('%s is refused by op and node', (_, spec, message) => {
    const graph = graphOf(spec)
    const [{ name, opType }] = graph.nodes
    expect(() => lowerFused(graph)).toThrow(UnsupportedError)
    expect(() => lowerFused(graphOf(spec))).toThrow(`node ${name} (${opType}): training with ${message}`)
  })

  it('all are named at once', () => {
    const graph = graphOf(gqa({ smooth_softmax: 1 }, 'smooth'))
    new Builder(graph, 'second').node(GQA, graph.nodes[0].input, { num_heads: 3, kv_num_heads: 2 })
    expect(() => lowerFused(graph)).toThrow(/fused.*smooth_softmax.*second.*no attention/)
  })
})

it('says in other words what WebGPU lacks or computes otherwise, with the same values', async () => {
  const graph = emptyGraph(17)
  const [x, gamma] = [normals(new Random(1, 'test'), [2, 3, 5]), normals(new Random(2, 'test'), [5])]
  addInput(graph, 'x', DataType.FLOAT, x.dims)
  addInput(graph, 'gamma', DataType.FLOAT, gamma.dims)
  addInput(graph, 'mask', DataType.FLOAT, [5])
  const g = new Builder(graph, 'test')
  const [y, deviation] = g.node(
    'SimplifiedLayerNormalization',
    ['x', 'gamma'],
    { axis: -1, epsilon: { float: 1e-3 } },
    2,
  ).output
  const p = g.op('Softmax', [g.add(y, 'mask')], { axis: -1 })
  const sum = g.add(g.where(g.op('IsNaN', [p]), g.float(0), p), deviation)
  addOutput(graph, graph.producer(sum)!.output[0], DataType.FLOAT)
  const mask = { type: 'float32' as const, data: Float32Array.of(0, 0, Number.NEGATIVE_INFINITY, 0, 0), dims: [5] }
  const valuesIn = async () => valuesOf((await (await openGraph(graph)).run({ x, gamma, mask }))[sum])
  const expected = await valuesIn()
  suitWebgpu(graph)
  expect(graph.nodes.filter(({ opType, output }) => opType === 'IsNaN' || output.length > 1)).toEqual([])
  for (const [i, value] of (await valuesIn()).entries()) expect(value).toBeCloseTo(expected[i], 6)
})
