// Shapes without symbolic inference: the graph runs once at two tiny points, and a dimension that is equal at both is
// static. Small integer tensors (run-time shapes, starts of slices) are read at both points as well.

import type { Value } from './builder.js'

/** The dimensions of a value at two probe points; equal ones do not depend on batch and sequence. */
export interface ProbedShape {
  readonly dims: readonly number[]
  readonly other: readonly number[]
}

/** The content of a small integer (or bool) tensor at two probe points, flattened row-major. */
export interface ProbedValues {
  readonly values: readonly number[]
  readonly other: readonly number[]
}

/** Shapes of all values of a graph: inputs, initializers, node outputs. */
export interface ShapeMap extends ReadonlyMap<Value, ProbedShape> {
  /** Content of integer tensors of at most {@link MAX_PROBED_VALUES} elements. */
  readonly values: ReadonlyMap<Value, ProbedValues>
}

/** Run-time shapes, axes, pads and slice bounds have fewer elements; weights have more. */
export const MAX_PROBED_VALUES = 64

export function rank(shape: ProbedShape): number {
  return shape.dims.length
}

/** Whether a dimension is the same at both points. Negative axes count from the end. */
export function isStatic(shape: ProbedShape, axis: number): boolean {
  const at = axis < 0 ? axis + shape.dims.length : axis
  return shape.dims[at] === shape.other[at]
}

/** The dimensions, if all of them are static. */
export function staticDims(shape: ProbedShape): readonly number[] | undefined {
  return shape.dims.every((_, axis) => isStatic(shape, axis)) ? shape.dims : undefined
}

/** A probed integer tensor's content, if it is the same at both points. */
export function staticValues(shapes: ShapeMap, value: Value): readonly number[] | undefined {
  const probed = shapes.values.get(value)
  if (probed === undefined || probed.values.length !== probed.other.length) return undefined
  return probed.values.every((entry, i) => entry === probed.other[i]) ? probed.values : undefined
}
