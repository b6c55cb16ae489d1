import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { UnsupportedError } from '../../src/base/errors.js'
import { Random } from '../../src/base/random.js'
import { loadOnnx } from '../../src/formats/onnx/model.js'
import { GRADIENTS, NON_DIFFERENTIABLE } from '../../src/graph/gradients/gradients.js'
import { LOWERINGS, lowerForTraining } from '../../src/graph/lower/lower.js'
import { sessionModel } from '../../src/graph/session-model.js'
import type { Attributes } from '../../src/graph/view/attributes.js'
import { Builder } from '../../src/graph/view/builder.js'
import { Graph } from '../../src/graph/view/graph.js'
import { operatorOf } from '../../src/graph/view/operators.js'
import { NodeDirectory } from '../../src/io/node/files.js'
import { loadNodeRuntime } from '../../src/runtime/node/runtime.js'
import type { Feeds, RuntimeTensor } from '../../src/runtime/runtime.js'
import { addInput, addOutput, DataType, emptyGraph, int32s, ints, normals, openGraph } from './toolkit.js'

const TYPES: Partial<Record<RuntimeTensor['type'], DataType>> = {
  float32: DataType.FLOAT,
  int64: DataType.INT64,
  int32: DataType.INT32,
  bool: DataType.BOOL,
}

interface LoweringCase {
  op: string
  note: string
  /** undefined: an optional input left out. */
  inputs: readonly (RuntimeTensor | undefined)[]
  /** What the fused operator gets where the runtime has no kernel for the form of `inputs`. */
  fusedInputs?: readonly RuntimeTensor[]
  attributes?: Attributes
  /** Which outputs to compare; the first by default. */
  outputs?: readonly number[]
  opset?: number
  /** Tokens of each row that are not padding: rows of (B, S, …) behind them may differ. */
  lengths?: readonly number[]
}

const random = new Random(3, 'lowering')
const x = (...dims: number[]) => normals(random, dims)
/** Weights of a norm. */
const gamma = (size: number) => ({
  ...x(size),
  data: Float32Array.from({ length: size }, () => 1 + 0.1 * random.normal()),
})
const float = (value: number) => ({ float: value })
const scalar32 = (value: number) => int32s([value], [])
const bools = (values: number[], dims: number[]): RuntimeTensor => ({
  type: 'bool',
  data: Uint8Array.from(values),
  dims,
})

/** GroupQueryAttention's inputs: rows of `lengths` tokens in a batch of `sequence`, an empty cache of `width` channels. */
const grouped = (
  [query, key, value]: readonly (RuntimeTensor | undefined)[],
  lengths: number[],
  sequence: number,
  [keyHeads, width]: number[],
  rest: readonly (RuntimeTensor | undefined)[] = [],
) => [
  query,
  key,
  value,
  x(lengths.length, keyHeads, 0, width),
  x(lengths.length, keyHeads, 0, width),
  int32s(
    lengths.map((length) => length - 1),
    [lengths.length],
  ),
  scalar32(sequence),
  ...rest,
]

const GQA = 'com.microsoft:GroupQueryAttention'
const SKIP = 'com.microsoft:SkipLayerNormalization'
const MHA = 'com.microsoft:MultiHeadAttention'
const caches = (rows: number, half: number) => [x(rows, half), x(rows, half)]

/** (B, S, heads·d) tensors as one (B, S, heads, parts, d): a form that the fused operator has on GPUs only. */
const pack = (parts: readonly RuntimeTensor[], heads: number): RuntimeTensor => {
  const [batch, sequence, width] = parts[0].dims
  const d = width / heads
  const dims = [batch, sequence, heads, parts.length, d]
  const data = Float32Array.from({ length: parts.length * parts[0].data.length }, (_, i) => {
    const part = Math.floor(i / d) % parts.length
    return Number(parts[part].data[Math.floor(i / (d * parts.length)) * d + (i % d)])
  })
  return { type: 'float32', data, dims }
}
const SKIPPED = [x(2, 3, 16), x(2, 3, 16), gamma(16)]
const PARTS = [x(2, 5, 32), x(2, 5, 32), x(2, 5, 32)]

const CASES: readonly LoweringCase[] = [
  {
    op: GQA,
    note: 'separate inputs, right padding',
    inputs: grouped([x(3, 5, 32), x(3, 5, 16), x(3, 5, 16)], [5, 2, 4], 5, [2, 8]),
    attributes: { num_heads: 4, kv_num_heads: 2, scale: float(0.3) },
    lengths: [5, 2, 4],
  },
  {
    op: GQA,
    note: 'packed, rotary by halves, present keys and values',
    inputs: grouped([x(2, 5, 128), undefined, undefined], [5, 5], 5, [2, 16], caches(9, 8)),
    attributes: { num_heads: 4, kv_num_heads: 2, do_rotary: 1 },
    outputs: [0, 1, 2],
  },
  {
    op: GQA,
    note: 'rotary by pairs, right padding, one key head',
    inputs: grouped([x(2, 4, 48), x(2, 4, 16), x(2, 4, 16)], [4, 3], 4, [1, 16], caches(9, 8)),
    attributes: { num_heads: 3, kv_num_heads: 1, do_rotary: 1, rotary_interleaved: 1 },
    lengths: [4, 3],
  },
  {
    op: GQA,
    note: 'part of a head rotated',
    inputs: grouped([x(2, 4, 128), x(2, 4, 64), x(2, 4, 64)], [4, 4], 4, [2, 32], caches(9, 8)),
    attributes: { num_heads: 4, kv_num_heads: 2, do_rotary: 1 },
  },
  {
    op: GQA,
    note: 'as many key heads, softcap',
    inputs: grouped([x(2, 5, 32), x(2, 5, 32), x(2, 5, 32)], [5, 4], 5, [4, 8]),
    attributes: { num_heads: 4, kv_num_heads: 4, softcap: float(1.5) },
    outputs: [0, 1, 2],
    lengths: [5, 4],
  },
  {
    op: GQA,
    note: 'positions and a bias',
    inputs: grouped(
      [x(2, 4, 64), x(2, 4, 32), x(2, 4, 32)],
      [4, 4],
      4,
      [2, 16],
      // Both rows alike: the CPU's kernel reads the first position of the first row and counts on.
      [...caches(9, 8), ints([2, 3, 4, 5, 2, 3, 4, 5], [2, 4]), x(2, 4, 4, 4)],
    ),
    attributes: { num_heads: 4, kv_num_heads: 2, do_rotary: 1 },
  },
  {
    op: GQA,
    note: 'softcap and a bias for all heads',
    inputs: grouped(
      [x(2, 4, 32), x(2, 4, 16), x(2, 4, 16)],
      [4, 4],
      4,
      [2, 8],
      [undefined, undefined, undefined, x(2, 1, 4, 4)],
    ),
    attributes: { num_heads: 4, kv_num_heads: 2, softcap: float(2) },
  },

  { op: MHA, note: 'plain', inputs: [x(2, 5, 32), x(2, 5, 32), x(2, 5, 32)], attributes: { num_heads: 4 } },
  {
    op: MHA,
    note: 'causal, scaled, biased',
    inputs: [x(2, 5, 32), x(2, 5, 32), x(2, 5, 32), x(96)],
    attributes: { num_heads: 4, unidirectional: 1, scale: float(0.2) },
  },
  {
    op: MHA,
    note: 'cross attention with padded keys and an attention bias',
    inputs: [
      x(2, 3, 32),
      x(2, 5, 32),
      x(2, 5, 32),
      undefined,
      int32s([1, 1, 1, 1, 1, 1, 1, 0, 0, 0], [2, 5]),
      x(1, 4, 3, 5),
    ],
    attributes: { num_heads: 4 },
  },
  {
    op: MHA,
    note: 'a mask for each query',
    inputs: [x(2, 2, 32), x(2, 3, 32), x(2, 3, 32), undefined, int32s([1, 0, 0, 1, 1, 0, 1, 1, 1, 0, 1, 1], [2, 2, 3])],
    attributes: { num_heads: 4 },
  },
  {
    op: MHA,
    note: 'numbers of keys',
    inputs: [...PARTS, undefined, int32s([5, 2], [2])],
    attributes: { num_heads: 4, mask_filter_value: float(-3.4028234663852886e38) },
  },
  {
    op: MHA,
    note: 'packed',
    inputs: [pack(PARTS, 4)],
    fusedInputs: PARTS,
    attributes: { num_heads: 4 },
  },
  {
    op: MHA,
    note: 'packed keys and values',
    inputs: [PARTS[0], pack(PARTS.slice(1), 4)],
    fusedInputs: PARTS,
    attributes: { num_heads: 4 },
  },
  {
    op: MHA,
    note: 'keys of cross attention',
    inputs: [x(2, 5, 32), x(2, 4, 3, 8), x(2, 4, 3, 8)],
    attributes: { num_heads: 4 },
  },
  {
    op: MHA,
    note: 'an empty cache',
    inputs: [x(2, 5, 32), x(2, 5, 32), x(2, 5, 32), undefined, undefined, undefined, x(2, 4, 0, 8), x(2, 4, 0, 8)],
    attributes: { num_heads: 4 },
    outputs: [0, 1, 2],
  },

  {
    op: 'com.microsoft:Attention',
    note: 'padded',
    inputs: [x(2, 4, 16), x(16, 48), x(48), int32s([1, 1, 1, 1, 1, 1, 0, 0], [2, 4])],
    attributes: { num_heads: 2 },
  },
  {
    op: 'com.microsoft:Attention',
    note: 'causal, with a bias',
    inputs: [x(2, 4, 16), x(16, 48), x(48), undefined, undefined, x(2, 2, 4, 4)],
    attributes: { num_heads: 2, unidirectional: 1, scale: float(0.4) },
  },

  {
    op: 'Attention',
    note: 'grouped and causal',
    inputs: [x(2, 5, 32), x(2, 5, 16), x(2, 5, 16)],
    attributes: { q_num_heads: 4, kv_num_heads: 2, is_causal: 1, scale: float(0.3) },
    opset: 23,
  },
  {
    op: 'Attention',
    note: 'four axes, a mask of truths',
    inputs: [x(2, 4, 3, 8), x(2, 2, 5, 8), x(2, 2, 5, 8), bools([1, 1, 0, 0, 1, 1, 1, 0, 1, 0, 1, 1, 1, 1, 1], [3, 5])],
    opset: 23,
  },
  {
    op: 'Attention',
    note: 'a float mask of four axes, an empty cache, softcap',
    inputs: [x(2, 5, 32), x(2, 5, 16), x(2, 5, 16), x(2, 4, 5, 5), x(2, 2, 0, 8), x(2, 2, 0, 8)],
    attributes: { q_num_heads: 4, kv_num_heads: 2, softcap: float(1.5) },
    outputs: [0, 1, 2],
    opset: 23,
  },

  {
    op: 'com.microsoft:SkipSimplifiedLayerNormalization',
    note: 'with the sum',
    inputs: [x(2, 3, 16), x(2, 3, 16), gamma(16)],
    attributes: { epsilon: float(1e-5) },
    outputs: [0, 3],
  },
  {
    op: 'com.microsoft:SkipSimplifiedLayerNormalization',
    note: 'with a bias, one skip for all',
    inputs: [x(2, 3, 16), x(3, 16), gamma(16), x(16)],
  },
  {
    op: 'com.microsoft:SkipLayerNormalization',
    note: 'with the sum',
    inputs: [x(2, 3, 16), x(2, 3, 16), gamma(16), x(16), x(16)],
    attributes: { epsilon: float(1e-5) },
    outputs: [0, 3],
  },
  { op: 'com.microsoft:SkipLayerNormalization', note: 'bare', inputs: [x(2, 3, 16), x(2, 3, 16), gamma(16)] },
  { op: 'com.microsoft:BiasGelu', note: 'plain', inputs: [x(2, 3, 16), x(16)] },
]

/** A graph of the case's node alone; outputs are named y0, y1, … */
function graphOf({ op, inputs, attributes, outputs = [0], opset = 17 }: LoweringCase): Graph {
  const graph = emptyGraph(opset)
  for (const [i, input] of inputs.entries()) {
    if (input !== undefined) addInput(graph, `x${i}`, TYPES[input.type] as DataType, input.dims)
  }
  const names = inputs.map((input, i) => (input === undefined ? '' : `x${i}`))
  const node = new Builder(graph, 'fused').node(op, names, attributes, Math.max(...outputs) + 1)
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

/** The values at tokens: those behind a row's length are left out. */
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

function expectDifferentiable(graph: Graph): void {
  const keys = [...new Set(graph.nodes.map(operatorOf))]
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
    lowerForTraining(graph)
    expectDifferentiable(graph)
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
    lowerForTraining(graph)
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
    ['a window', gqa({ local_window_size: 4 }, 'window'), 'local_window_size 4'],
    ['smooth softmax', gqa({ smooth_softmax: 1 }, 'smooth'), 'smooth_softmax'],
    [
      'an output of a statistic',
      { ...CASES[0], op: SKIP, inputs: SKIPPED, attributes: {}, outputs: [0, 2] },
      'its output 2',
    ],
    [
      'a mask of starts and ends',
      { op: MHA, note: '', inputs: [...PARTS, undefined, int32s([5, 2, 0, 1], [4])], attributes: { num_heads: 4 } },
      'a mask of 1 axis is only implemented where it has one number for each row',
    ],
  ] satisfies [string, LoweringCase, string][])('%s is refused by op and node', (_, spec, message) => {
    const graph = graphOf(spec)
    const [{ name, opType }] = graph.nodes
    expect(() => lowerForTraining(graph)).toThrow(UnsupportedError)
    expect(() => lowerForTraining(graphOf(spec))).toThrow(`${opType} ${name}: training with ${message}`)
  })

  it('all are named at once, and only where they are asked for', () => {
    const graph = graphOf(gqa({ local_window_size: 4 }, 'window'))
    const [first] = graph.nodes
    const second = new Builder(graph, 'second').node(GQA, first.input, { smooth_softmax: 1 })
    expect(() => lowerForTraining(graph)).toThrow(/fused.*local_window_size.*second.*smooth_softmax/)
    expect(() => lowerForTraining(graph, [])).not.toThrow()
    expect(() => lowerForTraining(graph, [second])).toThrow(/^(?!.*fused)/)
  })
})
