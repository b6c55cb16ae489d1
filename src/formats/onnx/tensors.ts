// TensorProto: sizes, content, external ranges. Everything multi-byte is little-endian.
// Format: https://onnx.ai/onnx/repo-docs/IR.html, https://onnx.ai/onnx/repo-docs/ExternalData.html

import { FormatError } from '../../base/errors.js'
import { elementCount, formatShape } from '../../base/tensor.js'
import {
  TensorProto_DataLocation as DataLocation,
  TensorProto_DataType as DataType,
  StringStringEntryProtoSchema,
  type TensorProto,
  TensorProtoSchema,
} from './gen/onnx_pb.js'
import { create } from './protobuf.js'

/** Two messages that everything reads have short names. */
export * from './gen/onnx_pb.js'
export { AttributeProto_AttributeType as AttributeType, TensorProto_DataType as DataType } from './gen/onnx_pb.js'

const BITS: Partial<Record<DataType, number>> = {
  [DataType.FLOAT]: 32,
  [DataType.UINT8]: 8,
  [DataType.INT8]: 8,
  [DataType.UINT16]: 16,
  [DataType.INT16]: 16,
  [DataType.INT32]: 32,
  [DataType.INT64]: 64,
  [DataType.BOOL]: 8,
  [DataType.FLOAT16]: 16,
  [DataType.DOUBLE]: 64,
  [DataType.UINT32]: 32,
  [DataType.UINT64]: 64,
  [DataType.COMPLEX64]: 64,
  [DataType.COMPLEX128]: 128,
  [DataType.BFLOAT16]: 16,
  [DataType.FLOAT8E4M3FN]: 8,
  [DataType.FLOAT8E4M3FNUZ]: 8,
  [DataType.FLOAT8E5M2]: 8,
  [DataType.FLOAT8E5M2FNUZ]: 8,
  [DataType.UINT4]: 4,
  [DataType.INT4]: 4,
  [DataType.FLOAT4E2M1]: 4,
  [DataType.FLOAT8E8M0]: 8,
  [DataType.UINT2]: 2,
  [DataType.INT2]: 2,
}

/** 'FLOAT16', for messages. */
export function dataTypeName(dataType: number): string {
  const [name] = Object.entries(DataType).find(([, type]) => type === dataType) ?? []
  return name ?? `type ${dataType}`
}

/** Undefined for strings, types that this schema does not know, and negative dimensions. */
export function byteLengthOf(dataType: number, dims: readonly number[]): number | undefined {
  const bits = BITS[dataType as DataType]
  return bits === undefined || dims.some((dim) => dim < 0) ? undefined : Math.ceil((elementCount(dims) * bits) / 8)
}

export function dimsOf(tensor: TensorProto): number[] {
  return tensor.dims.map(Number)
}

export function isExternal(tensor: TensorProto): boolean {
  return tensor.dataLocation === DataLocation.EXTERNAL
}

/** The place of an external tensor's bytes. */
export interface WeightRange {
  readonly name: string
  /** The file, relative to the model's folder. */
  readonly location: string
  readonly offset: number
  readonly byteLength: number
  readonly dataType: DataType
  readonly dims: readonly number[]
}

/** Throws FormatError when an entry is no number, a dimension is negative, or length and shape disagree. */
export function weightRange(tensor: TensorProto, where: string): WeightRange {
  const entries = new Map(tensor.externalData.map(({ key, value }) => [key, value]))
  const dims = dimsOf(tensor)
  const what = `tensor ${JSON.stringify(tensor.name)}`
  const integer = (key: string): number | undefined => {
    const text = entries.get(key)
    if (text === undefined) return undefined
    const value = Number(text)
    if (!/^\d+$/.test(text) || !Number.isSafeInteger(value)) {
      throw new FormatError({
        where,
        what: `external ${key} of ${what} is not a number of bytes`,
        got: JSON.stringify(text),
      })
    }
    return value
  }
  const location = entries.get('location')
  if (location === undefined || location === '') {
    throw new FormatError({ where, what: `external ${what} names no file` })
  }
  if (dims.some((dim) => dim < 0)) {
    throw new FormatError({ where, what: `${what} has a negative dimension`, got: formatShape(dims) })
  }
  const expected = byteLengthOf(tensor.dataType, dims)
  const byteLength = integer('length') ?? expected
  if (byteLength === undefined || (expected !== undefined && byteLength !== expected)) {
    throw new FormatError({
      where,
      what: `external ${what} of type ${dataTypeName(tensor.dataType)}, shape ${formatShape(dims)} has another length`,
      expected: expected === undefined ? 'a type with a fixed size' : `${expected} bytes`,
      got: `${byteLength} bytes`,
    })
  }
  return { name: tensor.name, location, offset: integer('offset') ?? 0, byteLength, dataType: tensor.dataType, dims }
}

export function externalTensor(
  tensor: TensorProto,
  range: { location: string; offset: number; byteLength: number },
): TensorProto {
  const { location, offset, byteLength } = range
  const entry = (key: string, value: string) => create(StringStringEntryProtoSchema, { key, value })
  return tensorMeta(tensor, {
    dataLocation: DataLocation.EXTERNAL,
    externalData: [entry('location', location), entry('offset', `${offset}`), entry('length', `${byteLength}`)],
  })
}

export function inlineTensor(tensor: TensorProto, rawData: Uint8Array): TensorProto {
  return tensorMeta(tensor, { rawData })
}

export function tensorMeta(
  { name, dataType, dims, docString, segment, metadataProps, $unknown }: TensorProto,
  content: Partial<Pick<TensorProto, 'dataLocation' | 'externalData' | 'rawData'>> = {},
): TensorProto {
  const result = create(TensorProtoSchema, { name, dataType, dims, metadataProps, ...content })
  if (docString !== '') result.docString = docString
  if (segment !== undefined) result.segment = segment
  if ($unknown !== undefined) result.$unknown = $unknown
  return result
}

/** Throws FormatError when content and shape disagree, or the tensor holds strings. */
export function inlineBytes(tensor: TensorProto, where: string): Uint8Array {
  const dims = dimsOf(tensor)
  const expected = byteLengthOf(tensor.dataType, dims)
  const bytes = tensor.rawData.byteLength > 0 ? tensor.rawData : typedBytes(tensor)
  if (bytes === undefined || bytes.byteLength !== expected) {
    throw new FormatError({
      where,
      what: `tensor ${JSON.stringify(tensor.name)} of type ${dataTypeName(tensor.dataType)} has other content than its shape says`,
      expected: `${expected ?? 'a fixed number of'} bytes for ${formatShape(dims)}`,
      got: `${bytes?.byteLength ?? 'no'} bytes`,
    })
  }
  return bytes
}

/** Small types share int32_data, one element an entry. */
function typedBytes(tensor: TensorProto): Uint8Array | undefined {
  switch (tensor.dataType) {
    case DataType.FLOAT:
    case DataType.COMPLEX64:
      return bytesOf(Float32Array.from(tensor.floatData))
    case DataType.DOUBLE:
    case DataType.COMPLEX128:
      return bytesOf(Float64Array.from(tensor.doubleData))
    case DataType.INT64:
      return bytesOf(BigInt64Array.from(tensor.int64Data))
    case DataType.UINT64:
      return bytesOf(BigUint64Array.from(tensor.uint64Data))
    case DataType.UINT32:
      return bytesOf(Uint32Array.from(tensor.uint64Data, Number))
    case DataType.INT32:
      return bytesOf(Int32Array.from(tensor.int32Data))
    case DataType.UINT16:
    case DataType.INT16:
    case DataType.FLOAT16:
    case DataType.BFLOAT16:
      return bytesOf(Uint16Array.from(tensor.int32Data))
    case DataType.STRING:
      return undefined
    default:
      return Uint8Array.from(tensor.int32Data)
  }
}

export function bytesOf(view: ArrayBufferView): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength)
}

type NumberArray = new (buffer: ArrayBuffer) => ArrayLike<number | bigint>

const INTEGERS: Partial<Record<DataType, NumberArray>> = {
  [DataType.INT64]: BigInt64Array,
  [DataType.INT32]: Int32Array,
  [DataType.UINT8]: Uint8Array,
  [DataType.BOOL]: Uint8Array,
}

const FLOATS: Partial<Record<DataType, NumberArray>> = {
  [DataType.FLOAT]: Float32Array,
  [DataType.DOUBLE]: Float64Array,
}

/** Undefined for other types and for external tensors. */
export function integersOf(tensor: TensorProto): number[] | undefined {
  return numbersOf(tensor, INTEGERS)
}

/** Undefined for other types and for external tensors. */
export function floatsOf(tensor: TensorProto): number[] | undefined {
  return numbersOf(tensor, FLOATS)
}

function numbersOf(tensor: TensorProto, arrays: typeof INTEGERS): number[] | undefined {
  const OwnArray = arrays[tensor.dataType as DataType]
  if (OwnArray === undefined || isExternal(tensor)) return undefined
  // A copy has a buffer of its own. Not by slice: that of Node's Buffer is a view of the same memory.
  return Array.from(new OwnArray(new Uint8Array(inlineBytes(tensor, 'ONNX model')).buffer), Number)
}
