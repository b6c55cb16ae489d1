// Reads and makes the attributes of NodeProto.

import { create } from '../format/protobuf.js'
import {
  type AttributeProto,
  AttributeProtoSchema,
  AttributeType,
  DataType,
  type GraphProto,
  type NodeProto,
  type TensorProto,
  TensorProtoSchema,
} from '../format/tensors.js'

/** number → INT, number[] → INTS, {float} → FLOAT, string → STRING, TensorProto → TENSOR, GraphProto → GRAPH. */
export type AttributeValue = number | readonly number[] | { readonly float: number } | string | TensorProto | GraphProto

export type Attributes = Readonly<Record<string, AttributeValue>>

export function makeAttribute(name: string, value: AttributeValue): AttributeProto {
  const made = (fields: Partial<Omit<AttributeProto, '$typeName'>>) => create(AttributeProtoSchema, { name, ...fields })
  if (typeof value === 'number') return made({ type: AttributeType.INT, i: BigInt(value) })
  if (typeof value === 'string') return made({ type: AttributeType.STRING, s: new TextEncoder().encode(value) })
  if ('length' in value) return made({ type: AttributeType.INTS, ints: value.map(BigInt) })
  if ('float' in value) return made({ type: AttributeType.FLOAT, f: value.float })
  if (value.$typeName === 'onnx.GraphProto') return made({ type: AttributeType.GRAPH, g: value })
  return made({ type: AttributeType.TENSOR, t: value })
}

export function setAttribute(node: NodeProto, name: string, value: AttributeValue): void {
  node.attribute = [...node.attribute.filter((entry) => entry.name !== name), makeAttribute(name, value)]
}

export function attribute(node: NodeProto, name: string): AttributeProto | undefined {
  return node.attribute.find((entry) => entry.name === name)
}

export function intAttribute(node: NodeProto, name: string, fallback: number): number {
  const entry = attribute(node, name)
  return entry === undefined ? fallback : Number(entry.i)
}

export function intsAttribute(node: NodeProto, name: string): number[] | undefined {
  return attribute(node, name)?.ints.map(Number)
}

export function floatAttribute(node: NodeProto, name: string, fallback: number): number {
  return attribute(node, name)?.f ?? fallback
}

export function stringAttribute(node: NodeProto, name: string, fallback: string): string {
  const entry = attribute(node, name)
  return entry === undefined ? fallback : new TextDecoder().decode(entry.s)
}

/** Returns the tensor of a Constant node, whichever attribute holds it. */
export function constantTensor(node: NodeProto): TensorProto | undefined {
  const [entry] = node.attribute
  if (entry?.name === 'value') return entry.t
  const [, kind, list] = /^value_(int|float)(s?)$/.exec(entry?.name ?? '') ?? []
  if (kind === undefined) return undefined
  const [integers, floats] = list === '' ? [[entry.i], [entry.f]] : [[...entry.ints], [...entry.floats]]
  const dims = list === '' ? [] : [BigInt(Math.max(entry.ints.length, entry.floats.length))]
  return create(TensorProtoSchema, {
    dims,
    ...(kind === 'int'
      ? { dataType: DataType.INT64, int64Data: integers }
      : { dataType: DataType.FLOAT, floatData: floats }),
  })
}
