// The stored tensor behind a value, which nodes may hand on in another type or with its axes swapped.

import { DataType } from '../../formats/onnx/tensors.js'
import { intAttribute, intsAttribute } from './attributes.js'
import type { Value } from './builder.js'
import type { Graph } from './graph.js'

export const HANDS_ON: readonly string[] = ['Transpose', 'Cast', 'Identity']

/** An initializer's name, or a node's output. */
export interface Source {
  /** True if the two axes of a matrix are swapped on the way. */
  readonly value: Value
  readonly isSwapped: boolean
  /** The type in which it arrives; undefined where nothing casts it. */
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
