// Checks a gradient rule on a graph of one node, or the walker on a few: directional derivatives by central differences
// (five points, so that f32 can take wide steps) against what the backward nodes compute, in one session of
// onnxruntime-node.

import type { Feeds } from '../../src/api/node.js'
import { Random } from '../../src/core/base/random.js'
import { type NodeProto, TensorProtoSchema, ValueInfoProtoSchema } from '../../src/onnx/format/gen/onnx_pb.js'
import { create } from '../../src/onnx/format/protobuf.js'
import { buildBackward, type CustomGradients } from '../../src/onnx/gradients/backward.js'
import { type GradientRule, sumTo } from '../../src/onnx/gradients/context.js'
import { BROADCASTING, GRADIENTS } from '../../src/onnx/gradients/gradients.js'
import { lowerFused } from '../../src/onnx/lower/lower.js'
import { type ProbedShape, ShapeMap } from '../../src/onnx/shapes/shapes.js'
import type { Attributes } from '../../src/onnx/view/attributes.js'
import { Builder, type Value } from '../../src/onnx/view/builder.js'
import type { Graph } from '../../src/onnx/view/graph.js'
import {
  addInput,
  addOutput,
  DataType,
  emptyGraph,
  type FloatType,
  floats,
  floatTensor,
  ints,
  openGraph,
  sizeOf,
  valuesOf,
} from './toolkit.js'

export interface FloatInput {
  kind: 'float'
  shape: readonly number[]
  /** The shape at the second point: axes that differ are dynamic. Default: `shape`. */
  other?: readonly number[]
  /**
   * Where values come from: uniform in [low, high]; `away`: magnitudes in [low, high], both signs; `grid`: all elements
   * of all inputs at least 0.1 apart, for what compares. Default: uniform in [−2, 2].
   */
  domain?: { low: number; high: number; away?: boolean } | 'grid'
  /** Makes the input an initializer with these values, without a gradient. */
  constant?: readonly number[]
  /** True for a fed input by which the rule is not differentiable. */
  frozen?: boolean
}

export interface IntInput {
  kind: 'int'
  values: readonly number[]
  shape: readonly number[]
  /** Values at the second point. The input is then fed at run time instead of being an initializer. */
  other?: readonly number[]
}

export interface BoolInput {
  kind: 'bool'
  shape: readonly number[]
  other?: readonly number[]
}

export type CaseInput = FloatInput | IntInput | BoolInput

export interface GradientCase {
  /** The key of the table, or for a graph of several nodes only a title. */
  op: string
  note: string
  /** undefined: an optional input left out. */
  inputs: readonly (CaseInput | undefined)[]
  /** Builds a graph of several nodes instead of a single node of type `op`. */
  build?: (g: Builder, inputs: readonly Value[]) => Value
  attributes?: Attributes
  /** Number of outputs; 1 by default. */
  outputs?: number
  /** The outputs that are int64. */
  integers?: readonly number[]
  /** The outputs with a gradient. Default: all. */
  flows?: readonly number[]
  /** Default: 13 and 23, the oldest and newest in models, and 18, in which axes became inputs. */
  opsets?: readonly number[]
  /** True if onnxruntime-node has no f64 kernel for the operator or for an operator of its rule. */
  f32?: boolean
}

/** Opens the case's graph with the gradients beside the outputs. */
export async function openCase(spec: GradientCase, opset: number, rule?: GradientRule) {
  const type: FloatType = spec.f32 ? DataType.FLOAT : DataType.DOUBLE
  const graph = emptyGraph(opset)
  const g = new Builder(graph, 'forward', type)
  const shapes = new ShapeMap()
  const names = spec.inputs.map((input, i) =>
    input === undefined ? '' : declareInput(graph, shapes, `x${i}`, input, type),
  )
  const outputs = spec.build
    ? [spec.build(g, names)]
    : [...g.node(spec.op, names, spec.attributes, spec.outputs).output]
  const custom: CustomGradients = new Map()
  lowerFused(graph, custom)
  for (const output of graph.nodes.flatMap((node) => node.output)) {
    const isInteger = spec.integers?.includes(outputs.indexOf(output))
    if (spec.build) graph.outputs.push(create(ValueInfoProtoSchema, { name: output }))
    else addOutput(graph, output, isInteger ? DataType.INT64 : outputType(spec, type))
  }

  const feeds = ([0, 1] as const).map((point) => feedsOf(spec, point, type))
  const forward = await openGraph(graph)
  const results = [await forward.run(feeds[0]), await forward.run(feeds[1])]
  await forward.dispose()
  for (const value in results[0]) shapes.set(value, { dims: results[0][value].dims, second: results[1][value].dims })

  const flows = spec.flows ?? [...outputs.keys()]
  const dys = outputs.map((_, i) => (flows.includes(i) ? addInput(graph, `dy${i}`, outputType(spec, type)) : undefined))
  const gradients = gradientsOf(
    spec,
    new Builder(graph, 'backward', type),
    { names, outputs, dys, shapes, custom },
    rule,
  )
  for (const gradient of gradients.values()) addOutput(graph, gradient, type)
  return {
    graph,
    session: await openGraph(graph),
    feeds,
    outputs,
    outputDims: results.map((result) => outputs.map((output) => result[output].dims)),
    flows,
    gradients,
    type,
    outputType: outputType(spec, type),
  }
}

function declareInput(graph: Graph, shapes: ShapeMap, name: string, input: CaseInput, type: FloatType): Value {
  shapes.set(name, { dims: input.shape, second: dimsAt(input, 1) })
  if (input.kind === 'bool') return addInput(graph, name, DataType.BOOL)
  if (input.kind === 'float') {
    if (input.constant === undefined) return addInput(graph, name, type)
    return graph.addInitializer(floatTensor(name, type, input.constant, input.shape))
  }
  shapes.contents.set(name, { value: input.values, second: input.other ?? input.values })
  if (input.other !== undefined) return addInput(graph, name, DataType.INT64)
  const tensor = { name, dataType: DataType.INT64, int64Data: input.values.map(BigInt), dims: input.shape.map(BigInt) }
  return graph.addInitializer(create(TensorProtoSchema, tensor))
}

interface Built {
  names: readonly Value[]
  outputs: readonly Value[]
  dys: readonly (Value | undefined)[]
  shapes: ShapeMap
  custom: CustomGradients
}

/** Returns the gradient for each input: by the rule of a single node, or by walking back through several nodes. */
function gradientsOf(
  spec: GradientCase,
  g: Builder,
  { names, outputs, dys, shapes, custom }: Built,
  rule: GradientRule = GRADIENTS[spec.op],
): Map<number, Value> {
  const wanted = [...spec.inputs.entries()].flatMap(([i, input]) =>
    input?.kind === 'float' && input.constant === undefined && !input.frozen ? [i] : [],
  )
  const dy = dys.find((value) => value !== undefined) as Value
  if (spec.build) {
    const found = buildBackward(
      g,
      shapes,
      new Map([[outputs[0], dy]]),
      wanted.map((i) => names[i]),
      custom,
    )
    return new Map(wanted.map((i) => [i, g.op('Identity', [found.get(names[i]) as Value])]))
  }
  const node = g.graph.producer(outputs[0]) as NodeProto
  const thunks = rule({ g, node, inputs: names, outputs, dys, dy, shapes })
  const [y] = outputs.map((output) => shapes.get(output) as ProbedShape)
  return new Map(
    wanted.map((i) => {
      const thunk = thunks[i]
      if (thunk === undefined) throw new Error(`${spec.op} has no gradient for input ${i}`)
      const gradient = BROADCASTING.has(spec.op) ? sumTo(g, thunk(), y, shapes.get(names[i]) as ProbedShape) : thunk()
      return [i, g.op('Identity', [gradient])]
    }),
  )
}

/** Only Cast changes the type. */
function outputType(spec: GradientCase, type: FloatType): FloatType {
  return (spec.attributes?.to as FloatType | undefined) ?? type
}

function feedsOf(spec: GradientCase, point: 0 | 1, type: FloatType): Feeds {
  const random = new Random(7, `${spec.op}/${spec.note}/${point}`)
  const sizes = spec.inputs.map((input) => (input === undefined ? 0 : sizeOf(dimsAt(input, point))))
  const ranks = random.shuffle(Array.from({ length: sizes.reduce((sum, size) => sum + size, 0) }, (_, i) => i))
  const middle = Math.floor(ranks.length / 2)
  const feeds: Feeds = {}
  for (const [i, input] of spec.inputs.entries()) {
    if (input === undefined) continue
    const dims = dimsAt(input, point)
    const draw = <T>(make: () => T) => Array.from({ length: sizes[i] }, make)
    if (input.kind === 'bool') {
      feeds[`x${i}`] = { type: 'bool', data: Uint8Array.from(draw(() => random.below(2))), dims }
    } else if (input.kind === 'int') {
      if (input.other !== undefined) feeds[`x${i}`] = ints(point === 0 ? input.values : input.other, dims)
    } else if (input.constant === undefined) {
      const { domain = { low: -2, high: 2 } } = input
      const next = () => {
        if (domain === 'grid') return 0.05 + 0.1 * ((ranks.pop() as number) - middle)
        const value = domain.low + (domain.high - domain.low) * random.uniform()
        return domain.away && random.below(2) === 1 ? -value : value
      }
      feeds[`x${i}`] = floats(type, draw(next), dims)
    }
  }
  return feeds
}

function dimsAt(input: CaseInput, point: 0 | 1): readonly number[] {
  return point === 1 && input.kind !== 'int' ? (input.other ?? input.shape) : input.shape
}

/**
 * The worst error over all inputs, at two sets of input values, relative to Σ|gradient·direction|. A right rule stays
 * below {@link toleranceOf}.
 */
export async function worstError(spec: GradientCase, opset: number, rule?: GradientRule): Promise<number> {
  const opened = await openCase(spec, opset, rule)
  try {
    return Math.max(await errorAt(opened, 0, spec), await errorAt(opened, 1, spec))
  } finally {
    await opened.session.dispose()
  }
}

export function toleranceOf(spec: GradientCase): number {
  return spec.f32 ? 1e-3 : 1e-8
}

async function errorAt(opened: Awaited<ReturnType<typeof openCase>>, point: 0 | 1, spec: GradientCase) {
  const { session, outputs, outputDims, flows, gradients } = opened
  const random = new Random(11, `${spec.op}/${spec.note}`)
  const weights = flows.map((i) => Array.from({ length: sizeOf(outputDims[point][i]) }, () => random.normal()))
  const dys = flows.map((i, k) => [`dy${i}`, floats(opened.outputType, weights[k], outputDims[point][i])])
  const feeds: Feeds = { ...opened.feeds[point], ...Object.fromEntries(dys) }
  const loss = async (changed: Feeds) => {
    const results = await session.run({ ...feeds, ...changed }, outputs)
    return flows.reduce((sum, i, k) => sum + dot(valuesOf(results[outputs[i]]), weights[k]), 0)
  }
  const results = await session.run(feeds, [...gradients.values()])
  const step = spec.f32 ? 2 ** -5 : 2 ** -12
  let worst = 0
  for (const [i, name] of gradients) {
    const input = feeds[`x${i}`]
    const gradient = valuesOf(results[name])
    if (results[name].dims.join() !== input.dims.join()) return Number.POSITIVE_INFINITY
    const along = gradient.map((value) => (value < 0 ? -1 : 1) * (0.5 + random.uniform())) // nothing cancels
    const across = gradient.map(() => 2 * random.uniform() - 1)
    for (const direction of [along, across]) {
      const at = (t: number) => {
        const moved = valuesOf(input).map((value, k) => value + t * step * direction[k])
        return loss({ [`x${i}`]: floats(opened.type, moved, input.dims) })
      }
      const numeric = (8 * ((await at(1)) - (await at(-1))) - ((await at(2)) - (await at(-2)))) / (12 * step)
      const scale = gradient.reduce((sum, value, k) => sum + Math.abs(value * direction[k]), 0)
      const error = Math.abs(numeric - dot(gradient, direction)) / Math.max(scale, 1e-3)
      worst = Math.max(worst, Number.isNaN(error) ? Number.POSITIVE_INFINITY : error)
    }
  }
  return worst
}

function dot(a: readonly number[], b: readonly number[]): number {
  return a.reduce((sum, value, i) => sum + value * b[i], 0)
}
