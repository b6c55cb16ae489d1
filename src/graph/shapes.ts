// Shapes of a graph's values, measured: the graph runs at two small (batch, sequence) points, and what is equal in both
// is static. It needs no shape inference, and it evaluates the small integer tensors that steer Slice and Reshape.

import type { Value } from './builder.js'

/** A value's dimensions at the two probe points. */
export interface ProbedShape {
  readonly dims: readonly number[]
  readonly other: readonly number[]
}

/** A small integer tensor's content at the two probe points. */
export interface ProbedContent {
  readonly value: readonly number[]
  readonly other: readonly number[]
}

/** Run-time shapes, axes, pads and slice bounds have fewer elements; weights have more. */
export const MAX_PROBED_ELEMENTS = 64

/** Shapes of all values of a graph: inputs, initializers, outputs of nodes. */
export class ShapeMap extends Map<Value, ProbedShape> {
  /** Content of integer and bool tensors of at most {@link MAX_PROBED_ELEMENTS} elements. */
  readonly contents = new Map<Value, ProbedContent>()
}

/** Whether an axis has the same length at both points; negative axes count from the end. */
export function isStatic(shape: ProbedShape, axis: number): boolean {
  return shape.dims.at(axis) === shape.other.at(axis)
}

/** The dimensions, if all of them are static. */
export function staticDims(shape: ProbedShape): readonly number[] | undefined {
  return shape.dims.every((dim, axis) => dim === shape.other[axis]) ? shape.dims : undefined
}

/** A probed tensor's content, if it is the same at both points. */
export function staticContent(shapes: ShapeMap, value: Value): readonly number[] | undefined {
  const content = shapes.contents.get(value)
  if (content === undefined || content.value.length !== content.other.length) return undefined
  return content.value.every((entry, i) => entry === content.other[i]) ? content.value : undefined
}
