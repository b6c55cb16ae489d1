import { describe, expect, it } from 'vitest'
import { findLinears } from '../../../src/model/match/linears.js'
import { NodeProtoSchema, type TensorProto, TensorProtoSchema } from '../../../src/onnx/format/gen/onnx_pb.js'
import { create } from '../../../src/onnx/format/protobuf.js'
import { type Attributes, makeAttribute } from '../../../src/onnx/view/attributes.js'
import { Graph } from '../../../src/onnx/view/graph.js'
import { addOutput, DataType, emptyGraph } from '../../onnx/toolkit.js'
import { MODELS, openModel, UNION } from '../golden.js'

const LLAMA = ['self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj', 'self_attn.o_proj'].concat([
  'mlp.gate_proj',
  'mlp.up_proj',
  'mlp.down_proj',
])
const GPT2 = ['attn.c_attn', 'attn.c_proj', 'mlp.c_fc', 'mlp.c_proj']

describe('module names of real exports', () => {
  it.each<[string, string[]]>([
    [UNION, [0, 1, 2, 3, 4, 5].flatMap((i) => LLAMA.map((name) => `model.layers.${i}.${name}`))],
    ...['llama-optimum', 'llama-genai', 'llama-genai-rotary', 'llama-dynamo', 'qwen2-optimum'].map(
      (name): [string, string[]] => [
        `${MODELS}/${name}`,
        [0, 1].flatMap((i) => LLAMA.map((part) => `model.layers.${i}.${part}`)),
      ],
    ),
    [`${MODELS}/gpt2-optimum`, [0, 1].flatMap((i) => GPT2.map((name) => `transformer.h.${i}.${name}`))],
    [`${MODELS}/llama-fp16`, LLAMA.map((name) => `model.layers.0.${name}`)],
    [`${MODELS}/llama-q4`, LLAMA.map((name) => `model.layers.0.${name}`)],
  ])('%s', async (folder, expected) => {
    const model = await openModel(folder)
    const linears = findLinears(new Graph(model.proto))
    expect(linears.map(({ name }) => name)).toEqual([...expected, 'lm_head'])
    expect(linears.filter(({ isHead }) => isHead).map(({ name }) => name)).toEqual(['lm_head'])
    await model.close()
  })

  it('splits a fused qkv_proj by the numbers of heads', async () => {
    const model = await openModel(`${MODELS}/llama-genai`)
    const parts = findLinears(new Graph(model.proto)).slice(0, 3)
    expect(parts.map(({ k, d, fused }) => [k, d, fused])).toEqual([
      [32, 64, { module: 'model.layers.0.self_attn.qkv_proj', start: 0, width: 128 }],
      [32, 32, { module: 'model.layers.0.self_attn.qkv_proj', start: 64, width: 128 }],
      [32, 32, { module: 'model.layers.0.self_attn.qkv_proj', start: 96, width: 128 }],
    ])
    await model.close()
  })
})

const weight = (dims: number[], dataType: number = DataType.FLOAT): Omit<TensorProto, '$typeName'> =>
  create(TensorProtoSchema, { dataType, dims: dims.map(BigInt) })

/** Makes a graph with one linear layer x → y and the weight `w` (4, 6) under some name. */
function single(options: {
  node?: string
  weight?: string
  op?: string
  attributes?: Attributes
  dims?: number[]
  metadata?: Record<string, string>
  bias?: string
}): Graph {
  const graph = emptyGraph(17)
  const name = options.weight ?? 'onnx::MatMul_1'
  graph.addInitializer({ ...(weight(options.dims ?? [4, 6]) as TensorProto), name })
  graph.add(
    create(NodeProtoSchema, {
      name: options.node ?? '',
      opType: options.op ?? 'MatMul',
      input: ['x', name],
      output: ['y'],
      attribute: Object.entries(options.attributes ?? {}).map(([key, value]) => makeAttribute(key, value)),
      metadataProps: Object.entries(options.metadata ?? {}).map(([key, value]) => ({ key, value })),
    }),
  )
  if (options.bias !== undefined) {
    graph.addInitializer({ ...(weight([6]) as TensorProto), name: options.bias })
    graph.add(create(NodeProtoSchema, { opType: 'Add', input: [options.bias, 'y'], output: ['z'] }))
  }
  addOutput(graph, options.bias === undefined ? 'y' : 'z', DataType.FLOAT)
  return graph
}

describe('where a name comes from', () => {
  it.each<[string, Parameters<typeof single>[0], string]>([
    [
      'the node',
      { node: '/bert/encoder/layer.0/attention/self/query/MatMul' },
      'bert.encoder.layer.0.attention.self.query',
    ],
    ['the node, numbered', { node: '/model/q_proj/MatMul_2' }, 'model.q_proj'],
    ['the node of a Gemm', { node: '/classifier/Gemm', op: 'Gemm' }, 'classifier'],
    [
      'the node, with genai shortening',
      { node: '/model/layers.3/attn/k_proj/MatMul' },
      'model.layers.3.self_attn.k_proj',
    ],
    [
      'GPT-2, which really has attn',
      { node: '/transformer/h.0/attn/c_attn/Gemm', op: 'Gemm' },
      'transformer.h.0.attn.c_attn',
    ],
    [
      'metadata of dynamo',
      { node: 'node_MatMul_7', metadata: { 'pkg.torch.onnx.name_scopes': "['', 'model', 'model.fc', 'linear']" } },
      'model.fc',
    ],
    ['the weight, when the node has none', { node: 'MatMul_12', weight: 'model.fc.weight' }, 'model.fc'],
    ['the weight of genai', { weight: 'model.layers.0.attn.o_proj.MatMul.weight' }, 'model.layers.0.self_attn.o_proj'],
    ['the bias that follows', { node: 'MatMul_12', bias: 'model.fc.bias' }, 'model.fc'],
    ['the node as it is', { node: 'MatMul_12' }, 'MatMul_12'],
    ['the output', {}, 'y'],
  ])('%s', (_, options, expected) => {
    expect(findLinears(single(options)).map(({ name }) => name)).toEqual([expected])
  })

  it.each([
    ['the same weight', 'fc/MatMul', 'w', undefined, 'fc'],
    ['another weight and the same bias', 'fc/MatMul', 'v', 'fc.bias', 'fc'],
    ['another weight', 'fc/MatMul', 'v', undefined, 'fc_1'],
    ['the same weight, where no other layer has the name', 'gc/MatMul', 'w', undefined, 'fc_1'],
  ])('the first call, for a layer with a number behind it and %s', (_, node, second, bias, expected) => {
    const graph = single({ node, weight: 'w' })
    if (second !== 'w') graph.addInitializer({ ...(weight([4, 6]) as TensorProto), name: second })
    const add = (fields: object) => void graph.add(create(NodeProtoSchema, fields))
    add({ name: 'fc_1/MatMul', opType: 'MatMul', input: ['other', second], output: ['product'] })
    if (bias !== undefined) {
      graph.addInitializer({ ...(weight([6]) as TensorProto), name: bias })
      add({ opType: 'Add', input: [bias, 'product'], output: ['sum'] })
    }
    expect(findLinears(graph).map(({ name }) => name)).toEqual([node.split('/')[0], expected])
  })

  it('the user, by node or by weight, before all others', () => {
    const options = { node: '/a/b/MatMul', weight: 'w.weight' }
    for (const target of ['/a/b/MatMul', 'w.weight']) {
      expect(findLinears(single(options), { 'my.module': target })[0].name).toBe('my.module')
    }
  })
})

describe('sizes', () => {
  it.each<[string, Parameters<typeof single>[0], [number, number, boolean]]>([
    ['MatMul (k, d)', {}, [4, 6, false]],
    ['Gemm (k, d)', { op: 'Gemm' }, [4, 6, false]],
    ['Gemm with transB (d, k)', { op: 'Gemm', attributes: { transB: 1 } }, [6, 4, true]],
  ])('%s', (_, options, [k, d, transposed]) => {
    expect(findLinears(single(options))[0]).toMatchObject({ k, d, transposed })
  })

  it('are those of the weight behind Transpose and Cast', () => {
    const graph = emptyGraph(17)
    graph.addInitializer({ ...(weight([6, 4], DataType.FLOAT16) as TensorProto), name: 'fc.weight' })
    for (const [opType, input, output, attribute] of [
      ['Cast', 'fc.weight', 'cast', [makeAttribute('to', DataType.FLOAT)]],
      ['Transpose', 'cast', 'turned', [makeAttribute('perm', [1, 0])]],
    ] as const) {
      graph.add(create(NodeProtoSchema, { opType, input: [input], output: [output], attribute: [...attribute] }))
    }
    graph.add(create(NodeProtoSchema, { opType: 'MatMul', input: ['x', 'turned'], output: ['y'] }))
    expect(findLinears(graph)[0]).toMatchObject({
      name: 'fc',
      weight: 'fc.weight',
      k: 4,
      d: 6,
      transposed: true,
      dataType: DataType.FLOAT,
    })
  })
})

describe('what is no linear layer', () => {
  it.each<[string, Parameters<typeof single>[0]]>([
    ['a product with a batch of matrices', { dims: [2, 4, 6] }],
    ['a product with a vector', { dims: [4] }],
    ['a Gemm that transposes its input', { op: 'Gemm', attributes: { transA: 1 } }],
    ['another op', { op: 'Add' }],
  ])('%s', (_, options) => {
    expect(findLinears(single(options))).toEqual([])
  })
})
