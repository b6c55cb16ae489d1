// Measures the shapes of a graph's values with two small feeds; dimensions that are equal in both are static. This
// needs no shape rules, and also gives the small integer tensors that steer Slice and Reshape. The whole graph only
// runs if shapes depend on values computed from weights.

import type { Feeds } from '../../runtime/runtime.js'
import type { Value } from '../view/builder.js'
import type { Graph } from '../view/graph.js'
import { isFloatType, type OpenModel, shapesByOperator, shapesByRunning } from './by-operator.js'

export interface ProbedShape {
  readonly dims: readonly number[]
  readonly other: readonly number[]
}

export interface ProbedContent {
  readonly value: readonly number[]
  readonly other: readonly number[]
}

/** Shapes, axes, pads and slice bounds have fewer elements; weights have more. */
const MAX_PROBED_ELEMENTS = 64

/** Shapes of inputs, initializers and outputs of nodes. */
export class ShapeMap extends Map<Value, ProbedShape> {
  /** Integer and bool tensors of at most {@link MAX_PROBED_ELEMENTS} elements. */
  readonly contents = new Map<Value, ProbedContent>()
}

/** Changes a shape alike at both points. */
export function mapShape({ dims, other }: ProbedShape, change: (dims: readonly number[]) => number[]): ProbedShape {
  return { dims: change(dims), other: change(other) }
}

/** Whether an axis has the same length at both points. Negative axes count from the end. */
export function isStatic(shape: ProbedShape, axis: number): boolean {
  return shape.dims.at(axis) === shape.other.at(axis)
}

export function staticContent(shapes: ShapeMap, value: Value): readonly number[] | undefined {
  const content = shapes.contents.get(value)
  if (content === undefined || content.value.length !== content.other.length) return undefined
  return content.value.every((entry, i) => entry === content.other[i]) ? content.value : undefined
}

/** Measures shapes at two points that differ in all symbolic dimensions. `wanted`: outputs of nodes, by default all. */
export async function probeShapes(
  graph: Graph,
  open: OpenModel,
  points: readonly [Feeds, Feeds],
  wanted?: ReadonlySet<Value>,
): Promise<ShapeMap> {
  const outputs = graph.nodes.flatMap((node) => node.output.filter((output) => output !== ''))
  const values = wanted === undefined ? outputs : outputs.filter((output) => wanted.has(output))
  const known = new Map(await shapesByOperator(graph, open, points))
  const missing = values.filter((value) => !known.has(value))
  if (missing.length > 0) {
    for (const [value, entry] of await shapesByRunning(graph, open, points, missing)) known.set(value, entry)
  }
  const shapes = new ShapeMap()
  for (const value of [...graph.initializers.keys(), ...graph.inputs.map(({ name }) => name), ...values]) {
    const { elemType, points } = known.get(value) ?? {}
    if (points === undefined) continue
    const [{ dims, data }, other] = points
    shapes.set(value, { dims, other: other.dims })
    if (elemType === undefined || isFloatType(elemType) || data === undefined || other.data === undefined) continue
    if (Math.max(data.length, other.data.length) > MAX_PROBED_ELEMENTS) continue
    shapes.contents.set(value, { value: Array.from(data, Number), other: Array.from(other.data, Number) })
  }
  return shapes
}
