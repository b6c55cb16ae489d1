// Graphs that only run on another execution provider: the error names the operator, its node and the providers that
// have it, before anything is written.

import { describe, expect, it } from 'vitest'
import { LoraAdapter, MemoryDirectory, UnsupportedError } from '../../../src/api/node.js'
import { loadOnnx, OnnxModel, serializeModel } from '../../../src/onnx/format/model.js'
import { Builder } from '../../../src/onnx/view/builder.js'
import { Graph } from '../../../src/onnx/view/graph.js'
import { ModelSession } from '../../../src/run/model-session.js'
import { train } from '../../../src/train/train.js'
import { mergeOnnx } from '../../merge/toolkit.js'
import { inThread, openModel } from '../../run/models.js'
import { addInput, addOutput, DataType, emptyGraph, floatTensor } from '../toolkit.js'

/** Makes a model of y = operator(x @ w): a linear layer named fc, and an operator that only some providers have. */
async function modelWith(operator: (g: Builder, x: string) => string): Promise<OnnxModel> {
  const graph = emptyGraph(17)
  const g = new Builder(graph, '/tail')
  addInput(graph, 'x', DataType.FLOAT, ['batch', 2, 2, 4])
  graph.addInitializer(floatTensor('fc.weight', DataType.FLOAT, Array(16).fill(0.5), [4, 4]))
  addOutput(graph, operator(g, new Builder(graph, '/fc').matmul('x', 'fc.weight')), DataType.FLOAT)
  return loadOnnx(new MemoryDirectory({ 'model.onnx': serializeModel(graph.toModel()) }), 'model.onnx')
}

function vectors(graph: Graph, count: number): string[] {
  return Array.from({ length: count }, (_, i) => {
    return graph.addInitializer(floatTensor(`vector${i}`, DataType.FLOAT, [1, 1, 1, 1], [4]))
  })
}

const groupNorm = (g: Builder, x: string) =>
  g.op('com.microsoft:GroupNorm', [x, ...vectors(g.graph, 2)], { groups: 2, activation: 0, channels_last: 1 })
const compiled = (g: Builder, x: string) =>
  g.op('com.microsoft:EPContext', [x], { main_context: 1, embed_mode: 1, source: 'QNNExecutionProvider' })

function adapterOf(module: string): LoraAdapter {
  const adapter = new LoraAdapter({ rank: 1 })
  adapter.addFactors(module, [[1, 2, 3, 4]], [[1], [2], [3], [4]])
  return adapter
}

describe('a session', () => {
  it.each<[string, (g: Builder, x: string) => string, RegExp]>([
    [
      'GroupNorm',
      groupNorm,
      /^node \/tail\/GroupNorm: the execution providers of this session have no GroupNorm .*expected a provider that has it.*, got a session on the CPU/,
    ],
    [
      'a graph in bfloat16',
      (g, x) => {
        const half = g.cast(x, DataType.BFLOAT16)
        return g.cast(g.matmul(half, g.transpose(half, [0, 1, 3, 2])), DataType.FLOAT)
      },
      /have no MatMul for these types; expected a provider that has it, such as cuda/,
    ],
    [
      'what a provider has compiled',
      compiled,
      /^node \/tail\/EPContext: the graph is compiled for another execution provider.*expected QNNExecutionProvider.*export that it was compiled from/,
    ],
    [
      'an operator that no one knows',
      (g, x) => g.op('com.microsoft:NoSuchOperator', [x]),
      /does not know the operator com\.microsoft:NoSuchOperator.*custom operators/,
    ],
  ])('says of %s where it runs', async (_, operator, message) => {
    const onnx = await modelWith(operator)
    const opening = ModelSession.open({ onnx, runtime: inThread })
    await expect(opening).rejects.toThrow(UnsupportedError)
    await expect(opening).rejects.toThrow(message)
  })

  it('has its adapters refused where a provider has compiled the layers', async () => {
    const onnx = await modelWith(compiled)
    const opening = ModelSession.open(
      { onnx, runtime: inThread },
      { adapters: { one: adapterOf('model.layers.0.up_proj') } },
    )
    await expect(opening).rejects.toThrow(/in a form that cannot be adapted.*EPContext by QNNExecutionProvider/)
  })
})

describe('a merge', () => {
  it('needs no provider: its result runs where the base does', async () => {
    const [onnx, out] = [await modelWith(groupNorm), new MemoryDirectory()]
    expect((await mergeOnnx(onnx, adapterOf('fc'), out)).changed).toBe(1)
  })

  it('is refused where a provider has compiled the layers, and writes nothing', async () => {
    const [onnx, out] = [await modelWith(compiled), new MemoryDirectory()]
    const merging = mergeOnnx(onnx, adapterOf('model.layers.0.up_proj'), out)
    await expect(merging).rejects.toThrow(UnsupportedError)
    await expect(merging).rejects.toThrow(/\/tail\/EPContext \(EPContext by QNNExecutionProvider\)/)
    expect(out.files.size).toBe(0)
  })
})

describe('training', () => {
  it.each<[string, (g: Builder, x: string) => string, RegExp]>([
    ['GroupNorm', groupNorm, /GroupNorm/],
    ['what a provider has compiled', compiled, /not through EPContext.*export that the graph was compiled from/],
  ])('refuses %s by name, and writes nothing', async (_, operator, message) => {
    const read = await openModel('tests/golden/models/llama-optimum')
    const graph = new Graph(read.onnx.proto)
    const g = new Builder(graph, '/tail')
    const logits = graph.outputs.find(({ name }) => name === 'logits')!
    const before = graph.freshName('logits')
    graph.rename('logits', before)
    graph.rename(operator(g, before), 'logits')
    expect(logits.name).toBe('logits')
    const { name, fileName, files } = read.onnx
    const [model, out] = [
      { ...read, onnx: new OnnxModel(name, fileName, graph.toModel(), files) },
      new MemoryDirectory(),
    ]
    const training = train({ model, data: [{ text: 'In the beginning' }], maxSteps: 1, threads: 1, out })
    await expect(training).rejects.toThrow(UnsupportedError)
    await expect(training).rejects.toThrow(message)
    expect(out.files.size).toBe(0)
    await read.onnx.close()
  })
})
