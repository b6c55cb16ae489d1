// Matches small patterns of nodes.

import { DataType, floatsOf, integersOf, type NodeProto } from '../format/tensors.js'
import { intAttribute, intsAttribute } from './attributes.js'
import type { Value } from './builder.js'
import type { Graph } from './graph.js'

export function makerOf(graph: Graph, value: Value, opType: string): NodeProto | undefined {
  const node = graph.producer(value)
  return node?.opType === opType && (node.domain === '' || node.domain === 'ai.onnx') ? node : undefined
}

/** Returns the only reader of a value; undefined if there are more, or if the value is an output. */
export function onlyReader(graph: Graph, value: Value, opType: string): NodeProto | undefined {
  const [reader, ...others] = graph.consumers(value)
  const isOutput = graph.outputs.some(({ name }) => name === value)
  return reader?.opType === opType && others.length === 0 && !isOutput ? reader : undefined
}

export function scalarOf(graph: Graph, value: Value): number | undefined {
  const tensor = graph.constant(value)
  const elements = tensor && (floatsOf(tensor) ?? integersOf(tensor))
  return elements?.length === 1 ? elements[0] : undefined
}

export function transposed(graph: Graph, value: Value, perm: readonly number[]): Value | undefined {
  const node = makerOf(graph, value, 'Transpose')
  return node !== undefined && intsAttribute(node, 'perm')?.join() === perm.join() ? node.input[0] : undefined
}

export function unsqueezed(graph: Graph, value: Value, axis: number): Value | undefined {
  const node = makerOf(graph, value, 'Unsqueeze')
  if (node === undefined) return undefined
  const list = graph.integers(node.input[1]) ?? intsAttribute(node, 'axes')
  return list?.length === 1 && list[0] === axis ? node.input[0] : undefined
}

export function concatenated(graph: Graph, value: Value, axes: readonly number[]): readonly Value[] | undefined {
  const node = makerOf(graph, value, 'Concat')
  return node !== undefined && axes.includes(intAttribute(node, 'axis', 0)) ? node.input : undefined
}

/** Returns the two inputs of a commutative operator in both orders. */
export function bothWays(node: NodeProto | undefined): (readonly [Value, Value])[] {
  if (node?.input.length !== 2) return []
  const [a, b] = node.input
  return [
    [a, b],
    [b, a],
  ]
}

/** Finds Where(IsNaN(x), 0, x) among readers of x. Exporters put it after the softmax of attention. */
export function nanGuard(graph: Graph, x: Value, readers: readonly NodeProto[]): NodeProto | undefined {
  const guard = readers.find(({ opType, input }) => opType === 'Where' && input[2] === x)
  const test = guard && makerOf(graph, guard.input[0], 'IsNaN')
  return test?.input[0] === x && scalarOf(graph, guard!.input[1]) === 0 ? guard : undefined
}

/** Returns the value and axis whose length a scalar is, or undefined if it is not a length. */
export function dimensionOf(graph: Graph, value: Value): { of: Value; axis: number } | undefined {
  const node = graph.producer(value)
  if (node === undefined) return undefined
  if (['Unsqueeze', 'Squeeze', 'Cast'].includes(node.opType)) return dimensionOf(graph, node.input[0])
  if (node.opType === 'Gather') {
    const shape = makerOf(graph, node.input[0], 'Shape')
    const axis = scalarOf(graph, node.input[1])
    return shape === undefined || axis === undefined ? undefined : { of: shape.input[0], axis }
  }
  if (node.opType !== 'Shape') return undefined
  const start = intAttribute(node, 'start', 0)
  return intAttribute(node, 'end', start) === start + 1 ? { of: node.input[0], axis: start } : undefined
}

export const HANDS_ON: readonly string[] = ['Transpose', 'Cast', 'Identity']

export interface Source {
  readonly value: Value
  /** True if the axes of a matrix are swapped on the way. */
  readonly isSwapped: boolean
  /** The type after the last Cast, if there is any. */
  readonly castTo: DataType | undefined
}

export function sourceOf(graph: Graph, value: Value, through: readonly string[] = HANDS_ON): Source {
  const maker = graph.producer(value)
  if (maker === undefined || !through.includes(maker.opType)) return { value, isSwapped: false, castTo: undefined }
  const source = sourceOf(graph, maker.input[0], through)
  const isSwap = maker.opType === 'Transpose' && (intsAttribute(maker, 'perm') ?? [1, 0]).join() === '1,0'
  const castTo = maker.opType === 'Cast' ? intAttribute(maker, 'to', DataType.FLOAT) : source.castTo
  return { value: source.value, isSwapped: source.isSwapped !== isSwap, castTo }
}
