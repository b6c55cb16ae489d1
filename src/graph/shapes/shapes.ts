// Shapes of a graph's values, measured at two small points: what is equal in both is static. This needs no rules of
// shapes, and gives the small integer tensors that steer Slice and Reshape. Where operators alone do not tell (a shape
// that depends on what weights compute), the whole graph runs.

import { elementCount } from '../../base/tensor.js'
import { create } from '../../formats/onnx/protobuf.js'
import { dimsOf, integersOf, type ModelProto, ValueInfoProtoSchema } from '../../formats/onnx/tensors.js'
import type { Feeds, RuntimeSession, RuntimeTensor } from '../../runtime/runtime.js'
import { Builder, type Value } from '../view/builder.js'
import { Graph } from '../view/graph.js'
import { type Known, shapesByOperator } from './by-operator.js'

export interface ProbedShape {
  readonly dims: readonly number[]
  readonly other: readonly number[]
}

export interface ProbedContent {
  readonly value: readonly number[]
  readonly other: readonly number[]
}

/** Run-time shapes, axes, pads and slice bounds have fewer elements; weights have more. */
const MAX_PROBED_ELEMENTS = 64

/** Inputs, initializers, outputs of nodes. */
export class ShapeMap extends Map<Value, ProbedShape> {
  /** Integer and bool tensors of at most {@link MAX_PROBED_ELEMENTS} elements. */
  readonly contents = new Map<Value, ProbedContent>()
}

/** Negative axes count from the end. */
export function isStatic(shape: ProbedShape, axis: number): boolean {
  return shape.dims.at(axis) === shape.other.at(axis)
}

export function staticContent(shapes: ShapeMap, value: Value): readonly number[] | undefined {
  const content = shapes.contents.get(value)
  if (content === undefined || content.value.length !== content.other.length) return undefined
  return content.value.every((entry, i) => entry === content.other[i]) ? content.value : undefined
}

/**
 * The symbolic dimensions of `points` all differ. Each of `wanted` (default: all) takes time; `floats` have no content
 * to measure.
 */
export async function probeShapes(
  graph: Graph,
  open: (model: ModelProto) => Promise<RuntimeSession>,
  points: readonly [Feeds, Feeds],
  wanted?: ReadonlySet<Value>,
  floats: ReadonlySet<Value> = new Set(),
): Promise<ShapeMap> {
  const outputs = graph.nodes.flatMap((node) => node.output.filter((output) => output !== ''))
  const all = wanted === undefined ? outputs : outputs.filter((output) => wanted.has(output))
  const known = await shapesByOperator(graph, open, points)
  if (all.every((value) => known.has(value))) {
    const given = [...graph.initializers.keys(), ...graph.inputs.map(({ name }) => name)]
    return mapOf(known, [...given, ...all])
  }
  const shapes = new ShapeMap()
  for (const tensor of graph.initializers.values()) setConstant(shapes, tensor.name, tensor)
  const values: Value[] = []
  for (const node of graph.nodes) {
    const constant = node.opType === 'Constant' ? graph.constant(node.output[0]) : undefined
    if (constant !== undefined) setConstant(shapes, node.output[0], constant)
    else values.push(...node.output.filter((output) => output !== '' && (wanted?.has(output) ?? true)))
  }
  const { model, shapeNames } = withShapeOutputs(graph, values, floats)
  const session = await open(model)
  try {
    const first = await runPoint(session, points[0], values, shapeNames, floats)
    const second = await runPoint(session, points[1], values, shapeNames, floats)
    for (const input of graph.inputs) {
      const [a, b] = points.map((feeds) => feeds[input.name])
      if (a === undefined) continue
      shapes.set(input.name, { dims: a.dims, other: b.dims })
      setContent(shapes, input.name, a, b)
    }
    for (const value of values) {
      shapes.set(value, { dims: first.dims.get(value) ?? [], other: second.dims.get(value) ?? [] })
      setContent(shapes, value, first.contents[value], second.contents[value])
    }
  } finally {
    await session.dispose()
  }
  return shapes
}

function mapOf(known: ReadonlyMap<Value, Known>, values: readonly Value[]): ShapeMap {
  const shapes = new ShapeMap()
  for (const value of values) {
    const { points } = known.get(value) ?? {}
    if (points === undefined) continue
    const [{ dims, data }, other] = points
    shapes.set(value, { dims, other: other.dims })
    if (data === undefined || other.data === undefined || data instanceof Float32Array || data instanceof Uint16Array)
      continue
    if (Math.max(data.length, other.data.length) > MAX_PROBED_ELEMENTS) continue
    shapes.contents.set(value, { value: Array.from(data, Number), other: Array.from(other.data, Number) })
  }
  return shapes
}

function setConstant(shapes: ShapeMap, value: Value, tensor: Parameters<typeof dimsOf>[0]): void {
  const dims = dimsOf(tensor)
  shapes.set(value, { dims, other: dims })
  if (elementCount(dims) > MAX_PROBED_ELEMENTS) return
  const integers = integersOf(tensor)
  if (integers !== undefined) shapes.contents.set(value, { value: integers, other: integers })
}

function setContent(shapes: ShapeMap, value: Value, a?: RuntimeTensor, b?: RuntimeTensor): void {
  if (a === undefined || b === undefined) return
  if (Math.max(a.data.length, b.data.length) > MAX_PROBED_ELEMENTS || /^float/.test(a.type)) return
  shapes.contents.set(value, { value: Array.from(a.data, Number), other: Array.from(b.data, Number) })
}

/**
 * Each value but the floats, and each shape, as outputs. ONNX Runtime begins with the last node that nobody reads, so
 * the first values come last: each is then free as soon as the model has read it.
 */
function withShapeOutputs(graph: Graph, values: readonly Value[], floats: ReadonlySet<Value>) {
  const probe = new Graph(graph.toModel())
  const g = new Builder(probe, 'probe')
  const known = new Set(probe.outputs.map(({ name }) => name))
  const shapeNames = new Map(values.toReversed().map((value) => [value, g.shape(value)]))
  const given = values.filter((value) => !known.has(value) && !floats.has(value))
  probe.outputs.push(...[...given, ...shapeNames.values()].map((name) => create(ValueInfoProtoSchema, { name })))
  return { model: probe.toModel(), shapeNames }
}

/** The content of what turned out to be small: the rest never leaves the runtime. */
async function runPoint(
  session: RuntimeSession,
  feeds: Feeds,
  values: readonly Value[],
  shapeNames: ReadonlyMap<Value, Value>,
  floats: ReadonlySet<Value>,
): Promise<{ dims: Map<Value, number[]>; contents: Record<Value, RuntimeTensor> }> {
  const results = await session.run(feeds, [...shapeNames.values()])
  const dims = new Map(values.map((value) => [value, Array.from(results[shapeNames.get(value)!].data, Number)]))
  const small = values.filter(
    (value) => !floats.has(value) && elementCount(dims.get(value) as number[]) <= MAX_PROBED_ELEMENTS,
  )
  return { dims, contents: small.length === 0 ? {} : await session.run(feeds, small) }
}
