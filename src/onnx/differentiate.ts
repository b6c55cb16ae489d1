// Makes a graph that also computes gradients: lowers fused operators, measures shapes, and appends the backward pass.

import { ConfigError, didYouMean, FormatError, UnsupportedError } from '../core/base/errors.js'
import { elementCount } from '../core/base/tensor.js'
import { serializeModel } from './format/model.js'
import { create, fromBinary } from './format/protobuf.js'
import {
  DataType,
  dataTypeName,
  dimsOf,
  inlineBytes,
  isExternal,
  type ModelProto,
  ModelProtoSchema,
  type TensorProto,
  ValueInfoProtoSchema,
} from './format/tensors.js'
import { buildBackward, type CustomGradients, gradientPath } from './gradients/backward.js'
import { lowerFused } from './lower/lower.js'
import type { OrtModule } from './runtime/onnxruntime.js'
import type { Feeds, RuntimeTensor, SessionOpener } from './runtime/runtime.js'
import { isStatic, probeShapes, type ShapeMap } from './shapes/shapes.js'
import { Builder, type Value } from './view/builder.js'
import { Graph } from './view/graph.js'
import { raiseOpset } from './view/opset.js'
import { declaredOf, TYPES, valueInfo } from './view/value-info.js'

/** What to differentiate, by what, and how the graph's inputs look. */
export interface GradientOptions {
  /** The name of the value to differentiate, such as a loss. If it has several elements: their sum. */
  of: string
  /**
   * Names of the values by which `of` is differentiated: inputs, weights, or values in between. Weights become inputs
   * of the new graph, because ONNX Runtime cannot change the weights of an open session.
   */
  by: readonly string[]
  /**
   * Makes inputs whose varying lengths grow with `size`, an integer above 1. It is called with two sizes: lengths that
   * are equal in both are taken for fixed. The values do not matter, unless shapes depend on them. Inputs of static
   * shapes can be left out; if all are, so can `feeds`.
   */
  feeds?: (size: number) => Feeds
  /**
   * The name of a new input for the gradient of `of`, in the shape of `of`. With it, the loss can be computed outside
   * of the graph. By default, the gradient of `of` is 1.
   */
  seed?: string
  /** The imported onnxruntime-node or onnxruntime-web. Default in Node: onnxruntime-node, as your project has it. */
  runtime?: OrtModule
}

/** A graph that computes gradients. */
export interface GradientGraph {
  /** An .onnx file, which `InferenceSession.create` takes. It gives the outputs of the original graph, too. */
  graph: Uint8Array
  /** Value → the output that is its gradient, in the value's shape. */
  gradients: Record<string, string>
  /** The values of the weights that became inputs. */
  weights: Feeds
}

/** A graph, and the files with its external weights if they can be read. */
export interface GraphFile {
  /** For messages. */
  readonly name: string
  readonly bytes: Uint8Array
  /** The folder of the external weights, in Node. */
  readonly folder?: string
  readExternal?(tensor: TensorProto): Promise<Uint8Array>
}

/** The two sizes at which shapes are measured. Neither is 1, which would broadcast. */
const SIZES = [3, 5] as const

export async function differentiate(
  file: GraphFile,
  { of, by, feeds, seed }: GradientOptions,
  runtime: SessionOpener,
): Promise<GradientGraph> {
  const graph = parse(file)
  checkNames(graph, of, by)
  const weights = await weightsToInputs(graph, by, file)

  raiseOpset(graph)
  const custom: CustomGradients = new Map()
  lowerFused(graph, custom)

  const open = (proto: ModelProto) =>
    runtime.createSession(
      { graph: serializeModel(proto), ...(file.folder !== undefined && { weightsFolder: file.folder }) },
      { optimization: 'disabled', lowMemory: true, threads: 1 },
    )
  const point = (size: number) => ({ ...inputsAt(graph, size, feeds), ...weights })
  const shapes = await probeShapes(graph, open, [point(SIZES[0]), point(SIZES[1])])
  const type = floatTypeOf(graph, shapes, of, by, custom)

  const g = new Builder(graph, 'backward', type)
  const ofSum = seed === undefined ? ones(g, shapes, of) : addSeed(graph, shapes, seed, of, type)
  const found = buildBackward(g, shapes, new Map([[of, ofSum]]), by, custom)
  const independent = by.find((name) => !found.has(name))
  if (independent !== undefined) {
    throw new ConfigError({
      where: 'by',
      what: `${of} does not depend on ${independent}, or only through operators without a gradient, such as Floor`,
    })
  }
  const gradients: Record<string, string> = {}
  for (const name of by) {
    const output = graph.freshName(`d${of}/d${name}`)
    const node = g.node('Identity', [found.get(name) as Value])
    graph.setOutput(node, 0, output)
    graph.outputs.push(valueInfo(output, type, namedDims(shapes, name)))
    gradients[name] = output
  }
  if (!graph.outputs.some(({ name }) => name === of)) graph.outputs.unshift(create(ValueInfoProtoSchema, { name: of }))
  graph.prune()
  return { graph: serializeModel(graph.toModel()), gradients, weights }
}

function parse({ name, bytes }: GraphFile): Graph {
  try {
    const model = fromBinary(ModelProtoSchema, bytes)
    if (model.graph !== undefined) return new Graph(model)
  } catch (cause) {
    throw new FormatError({ where: name, what: 'not an ONNX model: its protobuf is damaged', cause })
  }
  throw new FormatError({ where: name, what: 'not an ONNX model: it has no graph' })
}

function checkNames(graph: Graph, of: string, by: readonly string[]): void {
  const made = graph.nodes.flatMap(({ output }) => output)
  const read = [...graph.inputs.map(({ name }) => name), ...graph.initializers.keys()]
  for (const [where, names, known] of [
    ['of', [of], made],
    ['by', by, [...read, ...made]],
  ] as const) {
    const missing = names.find((name) => !known.includes(name))
    if (missing === undefined) continue
    const hint = didYouMean(missing, known)
    throw new ConfigError({
      where,
      what: `the graph has no value ${JSON.stringify(missing)}`,
      ...(hint !== undefined && { hint }),
    })
  }
}

/** Turns weights into inputs, because a session's initializers cannot be changed. Returns their values. */
async function weightsToInputs(graph: Graph, by: readonly string[], file: GraphFile): Promise<Feeds> {
  const weights: Feeds = {}
  for (const name of by) {
    const tensor = graph.initializers.get(name)
    if (tensor === undefined) continue
    const dims = dimsOf(tensor)
    graph.initializers.delete(name)
    graph.inputs.push(valueInfo(name, tensor.dataType, dims))
    weights[name] = { ...zerosOf(name, tensor.dataType, dims), dims }
    const { data } = weights[name]
    const bytes = isExternal(tensor) ? await file.readExternal?.(tensor) : inlineBytes(tensor, file.name)
    if (bytes === undefined) {
      throw new ConfigError({
        where: name,
        what: 'its values are in another file, which is not read if the graph is given as bytes',
        hint: 'Give the path of the graph',
      })
    }
    new Uint8Array(data.buffer, data.byteOffset, data.byteLength).set(bytes)
  }
  return weights
}

function zerosOf(name: string, elemType: number, dims: readonly number[]): RuntimeTensor {
  const [type, Data] = TYPES[elemType as DataType] ?? []
  if (type !== undefined && Data !== undefined) return { type, data: new Data(elementCount(dims)), dims }
  throw new UnsupportedError({ where: name, what: `tensors of type ${dataTypeName(elemType)} cannot be fed` })
}

/** The inputs from the caller, and zeros for other inputs of static shapes. */
function inputsAt(graph: Graph, size: number, feeds: GradientOptions['feeds']): Feeds {
  const given = feeds?.(size) ?? {}
  const unknown: string[] = []
  const zeros: Feeds = {}
  for (const input of graph.inputs) {
    const { elemType = 0, dims } = declaredOf(input) ?? {}
    if (given[input.name] !== undefined) continue
    const isKnown = dims?.every((dim) => dim !== undefined)
    if (isKnown) zeros[input.name] = zerosOf(input.name, elemType, dims as number[])
    else unknown.push(input.name)
  }
  if (unknown.length === 0) return { ...zeros, ...given }
  throw new ConfigError({
    where: 'feeds',
    what: `the shapes of these inputs are not static, so \`feeds\` must give them: ${unknown.join(', ')}`,
    expected: 'feeds: (size) => ({ … }), which makes inputs whose varying lengths grow with `size`',
  })
}

/** The type of all values between `of` and `by`. */
function floatTypeOf(
  graph: Graph,
  { types }: ShapeMap,
  of: string,
  by: readonly string[],
  custom: CustomGradients,
): typeof DataType.FLOAT | typeof DataType.DOUBLE {
  const type = types.get(of) === DataType.DOUBLE ? DataType.DOUBLE : DataType.FLOAT
  const between = [...gradientPath(graph, by, [of], custom).values]
  const other = [of, ...by, ...between].find((value) => (types.get(value) ?? type) !== type)
  if (other === undefined) return type
  throw new UnsupportedError({
    where: other,
    what: 'gradients flow only through values of one type, float32 or float64',
    expected: dataTypeName(type),
    got: dataTypeName(types.get(other) as number),
    hint: 'If the graph computes in 16 bits, convert it to float32',
  })
}

/** The gradient of the sum of a value's elements. */
function ones(g: Builder, shapes: ShapeMap, value: Value): Value {
  return shapes.get(value)?.dims.length === 0 ? g.float(1) : g.expand(g.float(1), g.shape(value))
}

function addSeed(graph: Graph, shapes: ShapeMap, seed: string, of: Value, type: DataType): Value {
  const name = graph.freshName(seed)
  if (name !== seed) throw new ConfigError({ where: 'seed', what: `the graph has a value ${seed} already` })
  graph.inputs.push(valueInfo(seed, type, namedDims(shapes, of)))
  return seed
}

/** Dimensions for a declaration: numbers, or names for those that vary. Undefined if the shape was not measured. */
function namedDims(shapes: ShapeMap, value: Value): (number | string)[] | undefined {
  const shape = shapes.get(value)
  return shape?.dims.map((dim, axis) => (isStatic(shape, axis) ? dim : `${value}/${axis}`))
}
