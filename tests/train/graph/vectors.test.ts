// Norms whose weight and bias are graph inputs, compared with ONNX Runtime's norms with the same values.

import { describe, expect, it } from 'vitest'
import type { Feeds, RuntimeTensor } from '../../../src/api/node.js'
import { f32ToF16 } from '../../../src/core/base/dtype.js'
import { Random } from '../../../src/core/base/random.js'
import { injectVectors } from '../../../src/model/inject/other-sites.js'
import { siteInput } from '../../../src/model/inject/sites.js'
import { checkVector, NORMS } from '../../../src/model/match/parameters.js'
import {
  TensorProto_DataType as DataType,
  GraphProtoSchema,
  ModelProtoSchema,
  OperatorSetIdProtoSchema,
  TensorProtoSchema,
} from '../../../src/onnx/format/gen/onnx_pb.js'
import { serializeModel } from '../../../src/onnx/format/model.js'
import { create } from '../../../src/onnx/format/protobuf.js'
import { loadNodeRuntime } from '../../../src/onnx/runtime/node/runtime.js'
import { Builder } from '../../../src/onnx/view/builder.js'
import { Graph } from '../../../src/onnx/view/graph.js'
import { valueInfo } from '../../../src/onnx/view/value-info.js'
import { maxDifference } from '../../run/models.js'

const [ROWS, LENGTH, WIDTH] = [2, 3, 8]
const runtime = await loadNodeRuntime()
const random = new Random(4, 'test')
const normal = (count: number) => Float32Array.from({ length: count }, () => random.normal())
const [X, SKIP] = [normal(ROWS * LENGTH * WIDTH), normal(ROWS * LENGTH * WIDTH)]

/** Makes a graph with a norm of x, or of x + skip if the norm has a residual. */
function normGraph(operator: string, isHalf: boolean, vectors: Record<string, Float32Array>): Graph {
  const opsetImport = [
    create(OperatorSetIdProtoSchema, { domain: '', version: operator === 'RMSNormalization' ? 23n : 17n }),
    create(OperatorSetIdProtoSchema, { domain: 'com.microsoft', version: 1n }),
  ]
  const dataType = isHalf ? DataType.FLOAT16 : DataType.FLOAT
  const graph = new Graph(
    create(ModelProtoSchema, { irVersion: 8n, opsetImport, graph: create(GraphProtoSchema, { name: 'norm' }) }),
  )
  const isSkip = operator.startsWith('Skip')
  const g = new Builder(graph, 'test')
  graph.inputs = (isSkip ? ['x', 'skip'] : ['x']).map((name) => valueInfo(name, DataType.FLOAT, ['n', 's', WIDTH]))
  const places = NORMS[operator]
  const inputs = isSkip ? ['x', 'skip'] : ['x']
  for (const [i, name] of inputs.entries()) if (isHalf) inputs[i] = g.cast(name, dataType)
  for (const [role, values] of Object.entries(vectors)) {
    const bytes = isHalf ? f32ToF16(values) : values
    const rawData = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    inputs[places[role]] = graph.addInitializer(
      create(TensorProtoSchema, { name: role, dataType, dims: [BigInt(WIDTH)], rawData }),
    )
  }
  const domain = isSkip ? 'com.microsoft:' : ''
  const node = g.node(
    `${domain}${operator}`,
    inputs,
    isSkip ? { epsilon: { float: 1e-5 } } : { axis: -1, epsilon: { float: 1e-5 } },
  )
  node.name = '/norm/Norm'
  graph.outputs = [valueInfo('y', DataType.FLOAT, ['n', 's', WIDTH])]
  graph.rename(g.cast(node.output[0], DataType.FLOAT), 'y')
  return graph
}

async function run(graph: Graph, vectors: Feeds): Promise<RuntimeTensor> {
  const session = await runtime.createSession({ graph: serializeModel(graph.toModel()) }, { threads: 1 })
  const all = { x: X, skip: SKIP } as const
  const feeds: Feeds = { ...vectors }
  for (const { name } of graph.inputs) {
    if (name === 'x' || name === 'skip') feeds[name] = { type: 'float32', data: all[name], dims: [ROWS, LENGTH, WIDTH] }
  }
  const { y } = await session.run(feeds)
  await session.dispose()
  return y
}

/**
 * Norms of values. EmbedLayerNormalization takes tokens; tests/run/fused-attention.test.ts tests it in whole models.
 */
const OF_VALUES = Object.keys(NORMS).filter((operator) => operator !== 'EmbedLayerNormalization')

describe.each(OF_VALUES)('%s', (operator) => {
  const roles = Object.keys(NORMS[operator])
  const sets = [...roles.map((role) => [role]), roles]

  it.each(sets)('with its %s replaced, for all rows and for each', async (...replaced) => {
    const base = Object.fromEntries(roles.map((role) => [role, normal(WIDTH)]))
    const others = [0, 1].map(() => Object.fromEntries(replaced.map((role) => [role, normal(WIDTH)])))
    for (const isHalf of [false, true]) {
      const graph = normGraph(operator, isHalf, base)
      const node = graph.nodes.find(({ name }) => name === '/norm/Norm')!
      const vectors = replaced.map((role) => ({
        name: `norm.${role}`,
        places: [{ node, input: NORMS[operator][role] }],
      }))
      for (const { name, places } of vectors) checkVector(name, places[0])
      injectVectors(graph, vectors)
      const feedsOf = (role: string, data: Float32Array, dims: number[]): Feeds => {
        return { [siteInput(`norm.${role}`, 'values')]: { type: 'float32', data, dims } }
      }
      const tolerance = isHalf ? 0.02 : 1e-5
      const expected: Float32Array[] = []
      for (const own of [base, ...others]) {
        const plain = (await run(normGraph(operator, isHalf, { ...base, ...own }), {})).data as Float32Array
        const feeds = Object.assign({}, ...replaced.map((role) => feedsOf(role, own[role], [WIDTH])))
        expect(maxDifference(await run(graph, feeds), plain)).toBeLessThan(tolerance)
        expected.push(plain)
      }
      expect(maxDifference(expected[0], expected[1])).toBeGreaterThan(0.1)
      const rows = replaced.map((role) => {
        const data = Float32Array.from([...others[0][role], ...others[1][role]])
        return feedsOf(role, data, [ROWS, 1, WIDTH])
      })
      const { data } = await run(graph, Object.assign({}, ...rows))
      const half = X.length / 2
      expect(maxDifference((data as Float32Array).slice(0, half), expected[1].slice(0, half))).toBeLessThan(tolerance)
      expect(maxDifference((data as Float32Array).slice(half), expected[2].slice(half))).toBeLessThan(tolerance)
    }
  })
})

it('refuses what reads a tensor in another way', () => {
  const graph = normGraph('LayerNormalization', false, { weight: normal(WIDTH) })
  const [node] = graph.nodes
  node.opType = 'Conv'
  expect(() => checkVector('norm.weight', { node, input: 1 })).toThrow(/norm\.weight.*\(Conv\).*Merge the adapter/)
})
