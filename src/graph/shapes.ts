// Shapes of a graph's values, measured: the graph runs at two small (batch, sequence) points, and what is equal in both
// is static. It needs no shape inference, and it evaluates the small integer tensors that steer Slice and Reshape.

import type { Value } from './builder.js'

/** A value's dimensions at the two probe points. */
export interface ProbedShape {
  readonly dims: readonly number[]
  readonly other: readonly number[]
}

/** A small int64 tensor's content at the two probe points. */
export interface ProbedValue {
  readonly value: readonly number[]
  readonly other: readonly number[]
}

export class ShapeMap extends Map<Value, ProbedShape> {
  /** Content of small int64 tensors. */
  readonly values = new Map<Value, ProbedValue>()
}

/** Whether an axis has the same length at both points. */
export function isStatic(shape: ProbedShape, axis: number): boolean {
  return shape.dims.at(axis) === shape.other.at(axis)
}
