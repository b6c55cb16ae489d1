// Measures the shapes of values with two small feeds: dimensions that are equal in both are static. The feeds also give
// the small integer tensors that steer Slice and Reshape. The whole graph only runs if shapes depend on values computed
// from weights.

import type { DataType } from '../format/tensors.js'
import type { Feeds } from '../runtime/runtime.js'
import type { Value } from '../view/builder.js'
import type { Graph } from '../view/graph.js'
import { type Answers, isFloatType, type OpenModel, shapesByOperator, shapesByRunning } from './by-operator.js'

/** The shape of a value in two runs with inputs of different lengths. */
export interface ProbedShape {
  readonly dims: readonly number[]
  readonly second: readonly number[]
}

/** Elements at the first and at the second point. */
export interface ProbedContent {
  readonly value: readonly number[]
  readonly second: readonly number[]
}

/** Shapes, axes, pads and slice bounds have fewer elements; weights have more. */
const MAX_PROBED_ELEMENTS = 64

/** Shapes of inputs, initializers and outputs of nodes. */
export class ShapeMap extends Map<Value, ProbedShape> {
  /** Integer and bool tensors of at most {@link MAX_PROBED_ELEMENTS} elements. */
  readonly contents = new Map<Value, ProbedContent>()
  readonly types = new Map<Value, DataType>()
}

/** Changes the dimensions of both runs in the same way. */
export function mapShape({ dims, second }: ProbedShape, change: (dims: readonly number[]) => number[]): ProbedShape {
  return { dims: change(dims), second: change(second) }
}

/** True if an axis has the same length at both points. Negative axes count from the end. */
export function isStatic(shape: ProbedShape, axis: number): boolean {
  return shape.dims.at(axis) === shape.second.at(axis)
}

/**
 * Measures shapes at two points that differ in all symbolic dimensions.
 *
 * @param wanted outputs of nodes, by default all
 * @param answers what was measured for other graphs of the same operator sets
 */
export async function probeShapes(
  graph: Graph,
  open: OpenModel,
  points: readonly [Feeds, Feeds],
  wanted?: ReadonlySet<Value>,
  answers: Answers = new Map(),
): Promise<ShapeMap> {
  const outputs = graph.nodes.flatMap((node) => node.output.filter((output) => output !== ''))
  const values = wanted === undefined ? outputs : outputs.filter((output) => wanted.has(output))
  const known = new Map(await shapesByOperator(graph, open, points, answers))
  const missing = values.filter((value) => !known.has(value))
  if (missing.length > 0) {
    for (const [value, entry] of await shapesByRunning(graph, open, points, missing)) known.set(value, entry)
  }
  const shapes = new ShapeMap()
  for (const value of [...graph.initializers.keys(), ...graph.inputs.map(({ name }) => name), ...values]) {
    const { elemType, points } = known.get(value) ?? {}
    if (points === undefined || elemType === undefined) continue
    shapes.types.set(value, elemType)
    const [{ dims, data }, second] = points
    shapes.set(value, { dims, second: second.dims })
    if (isFloatType(elemType) || data === undefined || second.data === undefined) continue
    if (Math.max(data.length, second.data.length) > MAX_PROBED_ELEMENTS) continue
    shapes.contents.set(value, { value: Array.from(data, Number), second: Array.from(second.data, Number) })
  }
  return shapes
}
