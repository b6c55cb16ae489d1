// The graphs with which a device changes what is trained, as one vector: AdamW as optimizer.ts computes it, and the sum
// of gradients.

import { elementCount } from '../../base/tensor.js'
import { serializeModel } from '../../formats/onnx/model.js'
import { create } from '../../formats/onnx/protobuf.js'
import { DataType, ModelProtoSchema, OperatorSetIdProtoSchema } from '../../formats/onnx/tensors.js'
import { valueInfo } from '../../graph/inject/inject.js'
import { PACKED, PACKED_GRADIENT } from '../../graph/training/forward.js'
import { Builder, type Value } from '../../graph/view/builder.js'
import { Graph } from '../../graph/view/graph.js'
import type { SessionModel, SessionOptions } from '../../runtime/runtime.js'
import { ADAMW_DEFAULTS, NORM_EPSILON } from '../optimizer.js'
import type { DeviceSetup, EngineSetup } from './held.js'

/** The squares of so many values are summed first: a sum of all, one after the other, is slow, and rounds more. */
const ROW = 1024

/** `options`: how the engine opens these graphs. */
export function deviceSetup(
  { parameters, optimizer, maxGradNorm }: Omit<EngineSetup, 'device'>,
  options: SessionOptions,
): DeviceSetup {
  const { beta1, beta2, epsilon, weightDecay, rates } = { ...ADAMW_DEFAULTS, ...optimizer }
  const lengths = parameters.map(({ shape }) => elementCount(shape))
  const total = lengths.reduce((sum, length) => sum + length, 0)
  const vector = [total]

  const update = (g: Builder) => {
    const zeros = g.float(Array(ROW - (total % ROW)).fill(0))
    const rows = g.reshape(g.concat(['gradient', zeros], 0), g.int([-1, ROW]))
    const squares = g.op('ReduceSumSquare', [rows], { axes: [1], keepdims: 0 })
    const norm = g.op('Sqrt', [g.reduceSum(squares, [0], 0)])
    const most = g.div(g.float(maxGradNorm), g.add(norm, g.float(NORM_EPSILON)))
    const gradient = maxGradNorm === 0 ? 'gradient' : g.mul('gradient', g.op('Clip', [most, '', g.float(1)]))
    const rated = (rate: Value) => {
      if (rates === undefined || rates.every((factor) => factor === 1)) return rate
      const pieces = rates.map((factor, i) => g.expand(g.float(factor), g.int([lengths[i]])))
      return g.mul(rate, g.concat(pieces, 0))
    }
    const newFirst = g.add('first', g.mul(g.sub(gradient, 'first'), g.float(1 - beta1)))
    const square = g.mul(g.mul(gradient, gradient), g.float(1 - beta2))
    const newSecond = g.add(g.mul('second', g.float(beta2)), square)
    const size = g.add(g.mul(g.op('Sqrt', [newSecond]), 'correction'), g.float(epsilon))
    const kept = weightDecay === 0 ? 'trained' : g.sub('trained', g.mul('trained', rated('decay')))
    return { norm, newTrained: g.sub(kept, g.div(g.mul(newFirst, rated('step')), size)), newFirst, newSecond }
  }
  const vectors = { trained: vector, first: vector, second: vector, gradient: vector }
  return {
    update: modelOf({ ...vectors, step: [], decay: [], correction: [] }, update),
    add: modelOf({ a: vector, b: vector }, (g) => ({ sum: g.add('a', 'b') })),
    input: PACKED,
    gradient: PACKED_GRADIENT,
    options,
  }
}

function modelOf(
  inputs: Readonly<Record<string, readonly number[]>>,
  build: (g: Builder) => Record<string, Value>,
): SessionModel {
  const opsetImport = [create(OperatorSetIdProtoSchema, { version: 17n })]
  const graph = new Graph(create(ModelProtoSchema, { irVersion: 8n, opsetImport, graph: { name: 'optimizer' } }))
  graph.inputs = Object.entries(inputs).map(([name, dims]) => valueInfo(name, DataType.FLOAT, dims))
  for (const [name, value] of Object.entries(build(new Builder(graph, 'optimizer')))) {
    graph.rename(value, name)
    graph.outputs.push(valueInfo(name, DataType.FLOAT))
  }
  graph.prune()
  return { graph: serializeModel(graph.toModel()) }
}
