// Declarations of values: their types and shapes.

import { create } from '../format/protobuf.js'
import {
  DataType,
  TensorShapeProto_DimensionSchema,
  TensorShapeProtoSchema,
  TypeProto_TensorSchema,
  TypeProtoSchema,
  type ValueInfoProto,
  ValueInfoProtoSchema,
} from '../format/tensors.js'
import type { TensorData, TensorType } from '../runtime/runtime.js'

/** Declares a tensor. A dimension is a number or a symbol; without `dims` the tensor may have any rank. */
export function valueInfo(name: string, elemType: DataType, dims?: readonly (number | string)[]): ValueInfoProto {
  const dim = dims?.map((value) =>
    create(TensorShapeProto_DimensionSchema, {
      value: typeof value === 'number' ? { case: 'dimValue', value: BigInt(value) } : { case: 'dimParam', value },
    }),
  )
  const shape = dim && create(TensorShapeProtoSchema, { dim })
  const tensor = create(TypeProto_TensorSchema, { elemType, shape })
  return create(ValueInfoProtoSchema, {
    name,
    type: create(TypeProtoSchema, { value: { case: 'tensorType', value: tensor } }),
  })
}

/** Returns the declared shape and type of a value. Symbolic dimensions are undefined. */
export function declaredOf(info: ValueInfoProto | undefined) {
  const type = info?.type?.value
  if (type?.case !== 'tensorType') return undefined
  const { elemType, shape } = type.value
  const dims = shape?.dim.map(({ value: dim }) => (dim.case === 'dimValue' ? Number(dim.value) : undefined))
  return { elemType, dims }
}

/** Returns the shape of an input. Symbolic dimensions are undefined. */
export function dimsOfInput(input: ValueInfoProto): (number | undefined)[] {
  return declaredOf(input)?.dims ?? []
}

/** The name that ONNX Runtime gives each type of tensor, and the array that holds its elements. */
export const TYPES: Partial<Record<DataType, readonly [TensorType, new (length: number) => TensorData]>> = {
  [DataType.FLOAT]: ['float32', Float32Array],
  [DataType.FLOAT16]: ['float16', Uint16Array],
  [DataType.DOUBLE]: ['float64', Float64Array],
  [DataType.INT64]: ['int64', BigInt64Array],
  [DataType.INT32]: ['int32', Int32Array],
  [DataType.INT8]: ['int8', Int8Array],
  [DataType.UINT8]: ['uint8', Uint8Array],
  [DataType.BOOL]: ['bool', Uint8Array],
}

export function typeOf(input: ValueInfoProto): TensorType | undefined {
  return TYPES[declaredOf(input)?.elemType as DataType]?.[0]
}
