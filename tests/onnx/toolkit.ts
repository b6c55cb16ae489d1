// Makes small graphs for tests, and runs them with onnxruntime-node.

import type { RuntimeTensor, SessionOptions } from '../../src/api/node.js'
import type { Random } from '../../src/core/base/random.js'
import {
  TensorProto_DataType as DataType,
  ModelProtoSchema,
  type TensorProto,
  TensorProtoSchema,
  ValueInfoProtoSchema,
} from '../../src/onnx/format/gen/onnx_pb.js'
import { serializeModel } from '../../src/onnx/format/model.js'
import { create } from '../../src/onnx/format/protobuf.js'
import { loadNodeRuntime } from '../../src/onnx/runtime/node/runtime.js'
import type { RuntimeSession } from '../../src/onnx/runtime/runtime.js'
import { Graph } from '../../src/onnx/view/graph.js'

export { DataType }

export type FloatType = typeof DataType.FLOAT | typeof DataType.DOUBLE

/** Makes a graph without nodes that imports these operator sets. */
export function emptyGraph(opset: number): Graph {
  const opsetImport = [
    { domain: '', version: BigInt(opset) },
    { domain: 'com.microsoft', version: 1n },
  ]
  return new Graph(create(ModelProtoSchema, { irVersion: 8n, opsetImport, graph: { name: 'test' } }))
}

/** Adds a graph input of any shape, or with `dims`, in which names are symbolic. */
export function addInput(graph: Graph, name: string, elemType: DataType, dims?: readonly (number | string)[]): string {
  const dim = dims?.map((entry) => ({
    value:
      typeof entry === 'number'
        ? { case: 'dimValue' as const, value: BigInt(entry) }
        : { case: 'dimParam' as const, value: entry },
  }))
  const value = { elemType, shape: dim === undefined ? undefined : { dim } }
  graph.inputs.push(create(ValueInfoProtoSchema, { name, type: { value: { case: 'tensorType', value } } }))
  return graph.freshName(name)
}

/** Adds a graph output of any shape. The runtime infers its type if `elemType` is left out. */
export function addOutput(graph: Graph, name: string, elemType: DataType): void {
  graph.outputs.push(
    create(ValueInfoProtoSchema, { name, type: { value: { case: 'tensorType', value: { elemType } } } }),
  )
}

export function floatTensor(
  name: string,
  type: FloatType,
  values: ArrayLike<number>,
  dims: readonly number[],
): TensorProto {
  const key = type === DataType.DOUBLE ? 'doubleData' : 'floatData'
  return create(TensorProtoSchema, { name, dataType: type, dims: dims.map(BigInt), [key]: Array.from(values) })
}

const runtime = await loadNodeRuntime()

export function openGraph(graph: Graph, options?: SessionOptions): Promise<RuntimeSession> {
  return runtime.createSession({ graph: serializeModel(graph.toModel()) }, { threads: 1, ...options })
}

export function floats(type: FloatType, values: readonly number[], dims: readonly number[]): RuntimeTensor {
  return type === DataType.DOUBLE
    ? { type: 'float64', data: Float64Array.from(values), dims }
    : { type: 'float32', data: Float32Array.from(values), dims }
}

export function ints(values: readonly number[], dims: readonly number[]): RuntimeTensor {
  return { type: 'int64', data: BigInt64Array.from(values, BigInt), dims }
}

export function int32s(values: readonly number[], dims: readonly number[]): RuntimeTensor {
  return { type: 'int32', data: Int32Array.from(values), dims }
}

export function sizeOf(dims: readonly number[]): number {
  return dims.reduce((product, dim) => product * dim, 1)
}

export function normals(random: Random, dims: readonly number[], scale = 1): RuntimeTensor {
  return { type: 'float32', data: Float32Array.from({ length: sizeOf(dims) }, () => scale * random.normal()), dims }
}

export function valuesOf(tensor: RuntimeTensor): number[] {
  return Array.from(tensor.data as ArrayLike<number | bigint>, Number)
}
