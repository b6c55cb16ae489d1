// Simplifies the targets of Reshape and Expand, which exporters compute with ten or more nodes, to constants and
// lengths of inputs, as probing has shown. Large graphs then open much faster.

import { DataType, type NodeProto } from '../format/tensors.js'
import { intAttribute } from '../view/attributes.js'
import { type Builder, sharedValue, type Value } from '../view/builder.js'
import type { Graph } from '../view/graph.js'
import { declaredOf, valueInfo } from '../view/value-info.js'
import type { ProbedContent, ProbedShape, ShapeMap } from './shapes.js'

export interface RunLength {
  readonly input: Value
  readonly axis: number
}

/**
 * Replaces shapes that are computed at run time by plain expressions of the input lengths. The probed lengths must be
 * chosen so that no other dimension equals one of them in both runs.
 */
export function plainShapes(g: Builder, shapes: ShapeMap, lengths: readonly RunLength[]): void {
  const sources = new Map(
    lengths.map((length) => {
      const { dims, second } = shapes.get(length.input) ?? { dims: [], second: [] }
      return [lengthName(dims[length.axis], second[length.axis]), length]
    }),
  )
  const made = new Map<string, Value>()
  const vectorOf = (run: number[] | string) => {
    if (typeof run !== 'string') return g.int(run)
    const { input, axis } = sources.get(run) as RunLength
    return sharedValue(made, run, () => g.length(input, axis))
  }
  for (const node of [...g.graph.nodes]) {
    const isShaping = node.opType === 'Reshape' || node.opType === 'Expand'
    const content = isShaping ? targetContent(g.graph, shapes, node.input[1]) : undefined
    const entries = content && plainEntries(node, content, shapes.get(node.input[0]))
    if (content === undefined || !entries?.every((entry) => typeof entry === 'number' || sources.has(entry))) continue
    const target = sharedValue(made, `[${entries.join()}]`, () => {
      const parts = constantsJoined(entries).map(vectorOf)
      return parts.length === 1 ? parts[0] : g.concat(parts, 0)
    })
    if (node.opType === 'Reshape' && !content.value.includes(-1)) {
      if (g.graph.constant(target) === undefined) shapes.contents.set(target, content)
      shapes.set(node.output[0], { dims: content.value, second: content.second })
    }
    g.graph.setInputs(node, [node.input[0], target])
  }
}

/** A number, or the name of a length that varies between runs. */
type Entry = number | string

/** Returns undefined for a constant, which is simple already, and for a value that was not probed. */
function targetContent(graph: Graph, shapes: ShapeMap, target: Value): ProbedContent | undefined {
  if (graph.integers(target) !== undefined) return undefined
  const maker = graph.producer(target)
  const shape = maker?.opType === 'Shape' && maker.attribute.length === 0 ? shapes.get(maker.input[0]) : undefined
  return shape === undefined ? shapes.contents.get(target) : { value: shape.dims, second: shape.second }
}

/** Entries of a target: 1 if Expand keeps a dimension of `source`, −1 for the only varying length of a Reshape. */
function plainEntries(
  { opType }: NodeProto,
  { value, second }: ProbedContent,
  source: ProbedShape | undefined,
): Entry[] | undefined {
  if (value.length !== second.length) return undefined
  const named = value.map((entry, i) => (entry === second[i] ? entry : lengthName(entry, second[i])))
  if (opType === 'Expand') {
    const offset = value.length - (source?.dims.length ?? 0)
    return named.map((entry, i) => {
      const isKept = source?.dims[i - offset] === value[i] && source.second[i - offset] === second[i]
      return isKept ? 1 : entry
    })
  }
  if (named.includes(0)) return undefined
  const variable = named.filter((entry) => typeof entry === 'string')
  const isInferable = variable.length === 1 && !named.includes(-1)
  return isInferable ? named.map((entry) => (typeof entry === 'string' ? -1 : entry)) : named
}

function lengthName(dim: number | undefined, second: number | undefined): string {
  return `${dim}/${second}`
}

function constantsJoined(entries: readonly Entry[]): (number[] | string)[] {
  const result: (number[] | string)[] = []
  for (const entry of entries) {
    const last = result.at(-1)
    if (typeof entry === 'string') result.push(entry)
    else if (Array.isArray(last)) last.push(entry)
    else result.push([entry])
  }
  return result
}

/**
 * Declares shapes with named dimensions. Without names, ONNX Runtime takes any two dimensions for different, and
 * planning shared memory takes time quadratic in the graph's size. `values` are floats.
 */
export function declareShapes(
  graph: Graph,
  shapes: ShapeMap,
  values: Iterable<Value>,
  nameOf: (dim: number, second: number) => string | undefined,
): void {
  const declare = (value: Value, type: DataType) => {
    const shape = shapes.get(value)
    const dims = shape?.dims.map((dim, axis) => (dim === shape.second[axis] ? dim : nameOf(dim, shape.second[axis])))
    const isNamed = (list: (number | string | undefined)[] | undefined): list is (number | string)[] =>
      list !== undefined && !list.includes(undefined)
    return isNamed(dims) ? valueInfo(value, type, dims) : undefined
  }
  graph.inputs = graph.inputs.map((input) => {
    const declared = declaredOf(input)
    return (declared && declare(input.name, declared.elemType)) ?? input
  })
  graph.valueInfo = [...new Set(values)].flatMap((value) => declare(value, DataType.FLOAT) ?? [])
}

/** True if a value is float32. False for inputs of other types, even reshaped or transposed, and for casts to them. */
export function isFloat(graph: Graph, value: Value): boolean {
  const maker = graph.producer(value)
  if (maker?.opType === 'Cast') return intAttribute(maker, 'to', DataType.FLOAT) === DataType.FLOAT
  if (maker?.opType === 'TopK' && value === maker.output[1]) return false
  if (maker !== undefined) return !MOVES.has(maker.opType) || isFloat(graph, maker.input[0])
  return (graph.declared(value)?.elemType ?? DataType.FLOAT) === DataType.FLOAT
}

/** Operators whose output has the type of their first input, which may be integers. */
const MOVES = new Set(['Reshape', 'Squeeze', 'Unsqueeze', 'Flatten', 'Identity', 'Transpose', 'Range'])
