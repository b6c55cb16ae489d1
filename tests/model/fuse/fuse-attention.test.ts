import { describe, expect, it, onTestFinished } from 'vitest'
import type { Feeds, OnnxModel, RuntimeTensor } from '../../../src/api/node.js'
import { fuseAttention } from '../../../src/model/fuse/attention.js'
import { tokenInputs } from '../../../src/model/inputs/tokens.js'
import { findLinears } from '../../../src/model/match/linears.js'
import { sessionModel } from '../../../src/model/session-model.js'
import { TensorProto_DataType as DataType } from '../../../src/onnx/format/gen/onnx_pb.js'
import { loadNodeRuntime } from '../../../src/onnx/runtime/node/runtime.js'
import type { RuntimeSession } from '../../../src/onnx/runtime/runtime.js'
import { Builder } from '../../../src/onnx/view/builder.js'
import { Graph } from '../../../src/onnx/view/graph.js'
import { floatTensor } from '../../onnx/toolkit.js'
import { MODELS, openModel, relativeError, UNION } from '../golden.js'

const runtime = await loadNodeRuntime()

/** The first run of two texts, the second padded on the left, and two runs that continue them. */
const RUNS = [
  { past: 0, inputIds: [3, 1, 4, 1, 5, 0, 0, 6, 5, 3], mask: [1, 1, 1, 1, 1, 0, 0, 1, 1, 1] },
  { past: 5, inputIds: [9, 2], mask: [1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1] },
  { past: 6, inputIds: [7, 8], mask: [1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1] },
]

async function open(model: OnnxModel, edit: (graph: Graph) => void): Promise<RuntimeSession> {
  const graph = new Graph(model.proto)
  edit(graph)
  return runtime.createSession(await sessionModel(model, graph.toModel()), { threads: 1 })
}

/** Returns the logits of real tokens, run by run. */
async function logits(session: RuntimeSession, model: OnnxModel): Promise<Float32Array[]> {
  const { feeds, emptyCache, cache } = tokenInputs(new Graph(model.proto))
  let pasts: Feeds = emptyCache(2)
  const rows: Float32Array[] = []
  for (const { past, inputIds, mask } of RUNS) {
    const sequence = inputIds.length / 2
    const outputs = await session.run({
      ...feeds({ batch: 2, sequence, past, inputIds, attentionMask: mask }),
      ...pasts,
    })
    pasts = Object.fromEntries(cache.map((entry) => [entry.past, outputs[entry.present]]))
    const { data, dims } = outputs.logits as RuntimeTensor
    for (let row = 0; row < 2 * sequence; row++) {
      const [text, place] = [Math.floor(row / sequence), row % sequence]
      const isReal = mask[text * (past + sequence) + past + place] === 1
      if (isReal) rows.push((data as Float32Array).subarray(row * dims[2], (row + 1) * dims[2]))
    }
  }
  return rows
}

/** Opens a model, which is closed after the test. */
async function opened(folder: string): Promise<OnnxModel> {
  const model = await openModel(folder)
  onTestFinished(() => model.close())
  return model
}

describe.each([
  [UNION, 6, 1e-5],
  [`${MODELS}/llama-optimum`, 2, 1e-5],
  [`${MODELS}/qwen2-optimum`, 2, 1e-5],
  [`${MODELS}/llama-q4`, 1, 1e-5],
  // Its products round to 8 bits by the largest number of the batch, which may be in the padding.
  [`${MODELS}/llama-q8`, 1, 0.01],
])('%s', (folder, layers, tolerance) => {
  it('gives the same logits with one node for each attention', async () => {
    const model = await opened(folder)
    let count = 0
    const fused = await open(model, (graph) => {
      count = fuseAttention(graph)
    })
    expect(count).toBe(layers)
    const expected = await logits(await open(model, () => {}), model)
    const actual = await logits(fused, model)
    expect(actual.length).toBe(expected.length)
    for (const [i, row] of actual.entries()) expect(relativeError(row, expected[i])).toBeLessThan(tolerance)
  })
})

/** Packs query, key and value into one product with Slices (as in Phi-3) or a Split (as in GPT-BigCode). */
async function pack(
  graph: Graph,
  model: OnnxModel,
  module: string,
  cut: 'Slice' | 'Split' | 'computed',
): Promise<void> {
  const linears = findLinears(graph)
  for (const query of linears.filter(({ name }) => name.endsWith('.q_proj'))) {
    const at = query.name.slice(0, -'q_proj'.length)
    const parts = ['q', 'k', 'v'].map((part) => linears.find(({ name }) => name === `${at}${part}_proj`)!)
    const { k } = query
    const width = parts.reduce((sum, { d }) => sum + d, 0)
    const weight = new Float32Array(k * width)
    let start = 0
    const cuts = []
    for (const part of parts) {
      const values = await (await part.form.openLines(model, graph, part))(0, part.transposed ? part.d : k)
      for (let i = 0; i < k; i++) {
        for (let j = 0; j < part.d; j++) {
          weight[i * width + start + j] = part.transposed ? values[j * k + i] : values[i * part.d + j]
        }
      }
      cuts.push([start, start + part.d])
      start += part.d
    }
    const g = new Builder(graph, `${at.replaceAll('.', '/')}${module}`)
    const tensor = floatTensor(graph.freshName('packed'), DataType.FLOAT, [...weight], [k, width])
    const whole = g.op('MatMul', [query.input, graph.addInitializer(tensor)])
    const outputs = parts.map(({ output }) => output)
    graph.nodes = graph.nodes.filter((node) => !parts.some((part) => part.node === node))
    graph.invalidate()
    if (cut === 'Split') {
      const split = g.node('Split', [whole, g.int(parts.map(({ d }) => d))], { axis: 2 }, 3)
      for (const [i, output] of outputs.entries()) graph.setOutput(split, i, output)
      continue
    }
    for (const [i, [from, to]] of cuts.entries()) {
      const end = cut === 'Slice' ? g.int([to]) : g.op('Neg', [g.int([-to])])
      graph.setOutput(g.node('Slice', [whole, g.int([from]), end, g.int([2])]), 0, outputs[i])
    }
  }
  graph.sort()
}

describe('a product that packs query, key and value', () => {
  it.each([
    ['qkv_proj', 'Slice', 2],
    ['c_attn', 'Slice', 2],
    ['c_attn', 'Split', 2],
    ['c_attn', 'computed', 0],
  ] as const)('%s, cut by %s: the heads of its parts count', async (module, cut, layers) => {
    const model = await opened(`${MODELS}/llama-optimum`)
    const graph = new Graph(model.proto)
    await pack(graph, model, module, cut)
    const packed = graph.toModel()
    const fused = new Graph(packed)
    expect(fuseAttention(fused)).toBe(layers)
    const run = async (own: Graph) => {
      const session = await runtime.createSession(await sessionModel(model, own.toModel()), { threads: 1 })
      return logits(session, model)
    }
    const [expected, actual] = [await run(new Graph(packed)), await run(fused)]
    for (const [i, row] of actual.entries()) expect(relativeError(row, expected[i])).toBeLessThan(1e-5)
  })
})

describe('attention stays as it is written', () => {
  it.each(['merged-if', 'llama-fp16', 'llama-genai', 'llama-dynamo'])('in %s', async (name) => {
    const graph = new Graph((await opened(`${MODELS}/${name}`)).proto)
    const before = [...graph.nodes]
    expect(fuseAttention(graph)).toBe(0)
    expect(graph.nodes).toEqual(before)
  })

  it.each([
    ['compares no places', (graph: Graph) => change(graph, 'LessOrEqual', 'Equal')],
    ['depends on what text a token is of', (graph: Graph) => rename(graph, 'attention_mask', 'token_type_ids')],
    ['depends on an input of unknown meaning', (graph: Graph) => rename(graph, 'attention_mask', 'image_mask')],
  ])('where the mask %s', async (_, edit) => {
    const graph = new Graph((await opened(UNION)).proto)
    edit(graph)
    expect(fuseAttention(graph)).toBe(0)
  })

  it('where another node reads the probabilities', async () => {
    const graph = new Graph((await opened(UNION)).proto)
    const [softmax] = graph.nodes.filter(({ opType }) => opType === 'Softmax')
    const [product] = graph.consumers(softmax.output[0])
    graph.add({ ...product, name: 'other', output: ['other'] })
    graph.outputs.push({ ...graph.outputs[0], name: 'other' })
    expect(fuseAttention(graph)).toBe(5)
  })
})

/** Replaces all operators of a kind by another operator. */
function change(graph: Graph, from: string, to: string): void {
  graph.nodes = graph.nodes.map((node) => (node.opType === from ? { ...node, opType: to } : node))
  graph.invalidate()
}

function rename(graph: Graph, from: string, to: string): void {
  graph.inputs = graph.inputs.map((input) => (input.name === from ? { ...input, name: to } : input))
  graph.replaceUses(from, to)
}
