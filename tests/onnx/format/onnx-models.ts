// Small ONNX models for tests, and a source that records which ranges are read.

import type { ByteSource, Directory, OnnxModel, WeightRange } from '../../../src/api/node.js'
import {
  AttributeProto_AttributeType as AttributeType,
  TensorProto_DataType as DataType,
  type ModelProto,
  ModelProtoSchema,
  StringStringEntryProtoSchema,
  type TensorProto,
  TensorProto_DataLocation,
  TensorProtoSchema,
} from '../../../src/onnx/format/gen/onnx_pb.js'
import { create } from '../../../src/onnx/format/protobuf.js'
import { isExternal, weightRange } from '../../../src/onnx/format/tensors.js'

export function weights(length: number, seed = 1): Float32Array {
  return Float32Array.from({ length }, (_, i) => Math.sin(seed + i))
}

export function rawTensor(name: string, data: Float32Array, dims: readonly number[]): TensorProto {
  const rawData = new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
  return create(TensorProtoSchema, { name, dataType: DataType.FLOAT, dims: dims.map(BigInt), rawData })
}

export function linkedTensor(name: string, dims: readonly number[], entries: Record<string, string>): TensorProto {
  return create(TensorProtoSchema, {
    name,
    dataType: DataType.FLOAT,
    dims: dims.map(BigInt),
    dataLocation: TensorProto_DataLocation.EXTERNAL,
    externalData: Object.entries(entries).map(([key, value]) => create(StringStringEntryProtoSchema, { key, value })),
  })
}

const float = (dims: readonly (number | string)[]) => ({
  value: {
    case: 'tensorType' as const,
    value: {
      elemType: DataType.FLOAT,
      shape: {
        dim: dims.map((dim) => ({
          value:
            typeof dim === 'number'
              ? { case: 'dimValue' as const, value: BigInt(dim) }
              : { case: 'dimParam' as const, value: dim },
        })),
      },
    },
  },
})

/** y = (x @ w + c) @ v, where w is an initializer, v is the attribute of a Constant node, and c is small. */
export function linearModel(w: TensorProto, v: TensorProto): ModelProto {
  const c = create(TensorProtoSchema, { name: 'c', dataType: DataType.FLOAT, dims: [1n], floatData: [0.5] })
  return create(ModelProtoSchema, {
    irVersion: 8n,
    producerName: 'tests',
    opsetImport: [{ domain: '', version: 17n }],
    graph: {
      name: 'linear',
      input: [{ name: 'x', type: float(['n', 16]) }],
      output: [{ name: 'y', type: float(['n', 16]) }],
      initializer: [w, c],
      node: [
        {
          name: 'v',
          opType: 'Constant',
          output: ['v'],
          attribute: [{ name: 'value', type: AttributeType.TENSOR, t: v }],
        },
        { name: 'first', opType: 'MatMul', input: ['x', 'w'], output: ['a'] },
        { name: 'bias', opType: 'Add', input: ['a', 'c'], output: ['b'] },
        { name: 'second', opType: 'MatMul', input: ['b', 'v'], output: ['y'] },
      ],
    },
  })
}

/** Passes reads on and keeps their ranges. */
export function counting(directory: Directory): { directory: Directory; ranges: [number, number][] } {
  const ranges: [number, number][] = []
  const counted: Directory = {
    name: directory.name,
    list: () => directory.list(),
    has: (path) => directory.has(path),
    create: (path) => directory.create(path),
    remove: (path) => directory.remove(path),
    open: async (path) => {
      const source = await directory.open(path)
      const result: ByteSource = {
        name: source.name,
        byteLength: source.byteLength,
        read: (offset, byteLength) => {
          ranges.push([offset, byteLength])
          return source.read(offset, byteLength)
        },
        close: () => source.close(),
      }
      return result
    },
  }
  return { directory: counted, ranges }
}

function initializerOf({ proto, name: where }: OnnxModel, name: string): TensorProto {
  const tensor = proto.graph?.initializer.find((one) => one.name === name)
  if (tensor === undefined) throw new Error(`${where} has no initializer ${name}`)
  return tensor
}

/** Returns the place of an initializer's bytes, or undefined if they are inside the graph. */
export function weightOf(onnx: OnnxModel, name: string): WeightRange | undefined {
  const tensor = initializerOf(onnx, name)
  return isExternal(tensor) ? weightRange(tensor, onnx.name) : undefined
}

export async function readWeight(onnx: OnnxModel, name: string): Promise<Uint8Array> {
  return onnx.readTensor(initializerOf(onnx, name))
}
