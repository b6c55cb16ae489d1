// The context that a gradient rule gets, and helpers that several rules share.

import { StateError, UnsupportedError } from '../../core/base/errors.js'
import type { NodeProto } from '../format/tensors.js'
import { isStatic, type ProbedContent, type ProbedShape, type ShapeMap } from '../shapes/shapes.js'
import { intAttribute, intsAttribute } from '../view/attributes.js'
import type { Builder, Value } from '../view/builder.js'
import { labelOf } from '../view/operators.js'

export interface GradientContext {
  readonly g: Builder
  readonly node: NodeProto
  /** The node's inputs; '' if an optional input is missing. */
  readonly inputs: readonly Value[]
  readonly outputs: readonly Value[]
  /** The gradients of the outputs, in the shapes of the outputs; undefined if no gradient flows through an output. */
  readonly dys: readonly (Value | undefined)[]
  /** The same as `dys[0]`, for the usual node with a single output. */
  readonly dy: Value
  readonly shapes: ShapeMap
}

/**
 * Returns a function for each input, which appends the gradient of this input and returns its name, or undefined if the
 * input is not differentiable. The gradient has the input's shape; for operators in BROADCASTING, the output's.
 */
export type GradientRule = (context: GradientContext) => (undefined | (() => Value))[]

export function refuse({ node }: GradientContext, what: string, hint?: string): never {
  throw new UnsupportedError({ where: labelOf(node), what, ...(hint !== undefined && { hint }) })
}

export function shapeOf({ node, shapes }: GradientContext, value: Value): ProbedShape {
  const shape = shapes.get(value)
  if (shape === undefined) throw new StateError({ where: labelOf(node), what: `the shape of ${value} was not probed` })
  return shape
}

export function rankOf(context: GradientContext, value: Value): number {
  return shapeOf(context, value).dims.length
}

export function axisOf(context: GradientContext, fallback: number): number {
  const axis = intAttribute(context.node, 'axis', fallback)
  return axis < 0 ? axis + rankOf(context, context.inputs[0]) : axis
}

/** Reads the axes, which are an attribute or an input, depending on the opset. Default: all axes. */
export function axesOf(context: GradientContext): number[] {
  const { node, inputs } = context
  const rank = rankOf(context, inputs[0])
  const axes = intsAttribute(node, 'axes') ?? (inputs[1] ? intsOf(context, inputs[1]) : undefined) ?? []
  if (axes.length === 0 && intAttribute(node, 'noop_with_empty_axes', 0) === 1) return []
  return axes.length === 0 ? range(rank) : axes.map((axis) => (axis < 0 ? axis + rank : axis))
}

/** https://onnx.ai/onnx/operators/onnx__Slice.html */
export function clampStart(start: number, length: number, step: number): number {
  return Math.min(Math.max(start < 0 ? start + length : start, 0), step > 0 ? length : length - 1)
}

export function intsOf(context: GradientContext, value: Value): readonly number[] | undefined {
  const content = contentOf(context, value)
  return content?.value.join() === content?.second.join() ? content?.value : undefined
}

export function contentOf({ g, shapes }: GradientContext, value: Value): ProbedContent | undefined {
  const probed = shapes.contents.get(value)
  if (probed !== undefined) return probed
  const integers = g.graph.integers(value)
  return integers && { value: integers, second: integers }
}

/**
 * Reshapes a value to the shape of `target`. The shape is a constant if each axis is static or keeps its place, and at
 * most one axis is left to infer.
 */
export function reshapeLike(context: GradientContext, value: Value, from: ProbedShape, target: Value): Value {
  const { g } = context
  const to = shapeOf(context, target)
  if (sameShape(from, to)) return value
  let inferred = 0
  const dims = to.dims.map((dim, axis) => {
    const isKept = dim === from.dims[axis] && to.second[axis] === from.second[axis]
    if (isStatic(to, axis)) return dim
    if (!isKept) inferred++
    return isKept ? 0 : -1
  })
  const isKnown = inferred < 2 && !to.dims.includes(0)
  const reshaped = g.reshape(value, isKnown ? g.int(dims) : g.shape(target))
  context.shapes.set(reshaped, to)
  return reshaped
}

/** Expands the gradient of a reduction along some axes to the shape of `target`, the reduction's input. */
export function spread(context: GradientContext, value: Value, axes: readonly number[], target: Value): Value {
  const { g } = context
  const shape = shapeOf(context, target)
  const dims = shape.dims.map((dim, axis) => (axes.includes(axis) ? dim : 1))
  return g.expand(value, axes.every((axis) => isStatic(shape, axis)) ? g.int(dims) : g.shape(target))
}

/** Sums `value`, whose shape is `from`, down to the shape `to` that was broadcast to it. */
export function sumTo(g: Builder, value: Value, from: ProbedShape, to: ProbedShape): Value {
  const extra = from.dims.length - to.dims.length
  const stretched = range(to.dims.length).filter(
    (axis) => isOne(to, axis) && !isOne(from, axis + extra), // a batch of 1 at run time sums over one element
  )
  const flat = extra > 0 ? g.reduceSum(value, range(extra), 0) : value
  return stretched.length > 0 ? g.reduceSum(flat, stretched) : flat
}

function isOne(shape: ProbedShape, axis: number): boolean {
  return shape.dims[axis] === 1 && shape.second[axis] === 1
}

export function sameShape(a: ProbedShape, b: ProbedShape): boolean {
  const same = (x: readonly number[], y: readonly number[]) =>
    x.length === y.length && x.every((dim, i) => dim === y[i])
  return same(a.dims, b.dims) && same(a.second, b.second)
}

export function range(length: number): number[] {
  return Array.from({ length }, (_, i) => i)
}

/** Returns a function that calls `make` only the first time, for values that several gradients share. */
export function once<T>(make: () => T): () => T {
  let made: { value: T } | undefined
  return () => {
    made ??= { value: make() }
    return made.value
  }
}
