// TensorProto: sizes, content, external ranges. Everything multi-byte is little-endian.
// Format: https://onnx.ai/onnx/repo-docs/IR.html, https://onnx.ai/onnx/repo-docs/ExternalData.html

import { counted, FormatError } from '../../core/base/errors.js'
import { elementCount, formatShape } from '../../core/base/tensor.js'
import {
  TensorProto_DataLocation as DataLocation,
  TensorProto_DataType as DataType,
  StringStringEntryProtoSchema,
  type TensorProto,
  TensorProtoSchema,
} from './gen/onnx_pb.js'
import { create } from './protobuf.js'

/** The messages of ONNX, with short names for the two that are used everywhere. */
export * from './gen/onnx_pb.js'
export { AttributeProto_AttributeType as AttributeType, TensorProto_DataType as DataType } from './gen/onnx_pb.js'

/** Most names of types tell the bits of an element, such as UINT8 and FLOAT8E4M3FN. These do not. */
const OTHER_BITS: Readonly<Record<string, number>> = { FLOAT: 32, DOUBLE: 64, BOOL: 8 }

/** The bits of an element by type; 0 for strings. */
const BITS = new Map<number, number>(
  Object.entries(DataType).map(([name, type]) => [type, OTHER_BITS[name] ?? Number(/\d+/.exec(name)?.[0] ?? 0)]),
)

/** Returns the name of a type for messages, such as 'FLOAT16'. */
export function dataTypeName(dataType: number): string {
  const [name] = Object.entries(DataType).find(([, type]) => type === dataType) ?? []
  return name ?? `type ${dataType}`
}

/** Returns undefined for strings, for unknown types, and if a dimension is negative. */
export function byteLengthOf(dataType: number, dims: readonly number[]): number | undefined {
  const bits = BITS.get(dataType) ?? 0
  return bits === 0 || dims.some((dim) => dim < 0) ? undefined : Math.ceil((elementCount(dims) * bits) / 8)
}

export function dimsOf(tensor: TensorProto): number[] {
  return tensor.dims.map(Number)
}

export function isExternal(tensor: TensorProto): boolean {
  return tensor.dataLocation === DataLocation.EXTERNAL
}

/** The file, offset and length of an external tensor's bytes. */
export interface WeightRange {
  readonly name: string
  /** The file, relative to the model's folder. */
  readonly location: string
  readonly offset: number
  readonly byteLength: number
  readonly dataType: DataType
  readonly dims: readonly number[]
}

/** Throws FormatError if an entry is not a number, a dimension is negative, or length and shape disagree. */
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
      expected: expected === undefined ? 'a type with a fixed size' : counted(expected, 'byte'),
      got: counted(byteLength ?? 0, 'byte'),
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
      got: bytes === undefined ? 'no bytes' : counted(bytes.byteLength, 'byte'),
    })
  }
  return bytes
}

type Typed = (tensor: TensorProto) => ArrayBufferView | undefined

const floats: Typed = ({ floatData }) => Float32Array.from(floatData)
const doubles: Typed = ({ doubleData }) => Float64Array.from(doubleData)
const halves: Typed = ({ int32Data }) => Uint16Array.from(int32Data)

/** The typed fields of TensorProto. Small types are stored in int32_data, one element in each entry. */
const TYPED: Partial<Record<DataType, Typed>> = {
  [DataType.FLOAT]: floats,
  [DataType.COMPLEX64]: floats,
  [DataType.DOUBLE]: doubles,
  [DataType.COMPLEX128]: doubles,
  [DataType.INT64]: ({ int64Data }) => BigInt64Array.from(int64Data),
  [DataType.UINT64]: ({ uint64Data }) => BigUint64Array.from(uint64Data),
  [DataType.UINT32]: ({ uint64Data }) => Uint32Array.from(uint64Data, Number),
  [DataType.INT32]: ({ int32Data }) => Int32Array.from(int32Data),
  [DataType.UINT16]: halves,
  [DataType.INT16]: halves,
  [DataType.FLOAT16]: halves,
  [DataType.BFLOAT16]: halves,
  [DataType.STRING]: () => undefined,
}

function typedBytes(tensor: TensorProto): Uint8Array | undefined {
  const make = TYPED[tensor.dataType as DataType] ?? (({ int32Data }) => Uint8Array.from(int32Data))
  const view = make(tensor)
  return view && bytesOf(view)
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

/** Returns undefined for tensors of another type, and for external tensors. */
export function integersOf(tensor: TensorProto): number[] | undefined {
  return numbersOf(tensor, INTEGERS)
}

/** Returns undefined for tensors of another type, and for external tensors. */
export function floatsOf(tensor: TensorProto): number[] | undefined {
  return numbersOf(tensor, FLOATS)
}

function numbersOf(tensor: TensorProto, arrays: typeof INTEGERS): number[] | undefined {
  const OwnArray = arrays[tensor.dataType as DataType]
  if (OwnArray === undefined || isExternal(tensor)) return undefined
  // Copied by a constructor and not by `slice`, which gives a view of the same memory for Node's Buffer.
  return Array.from(new OwnArray(new Uint8Array(inlineBytes(tensor, 'ONNX model')).buffer), Number)
}
