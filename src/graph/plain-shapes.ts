// Exporters compute the target of each Reshape and Expand by nodes of its own, ten or more for one. Probing has shown what
// they come to: constants, and the lengths of a few inputs. Those alone are left: opening a large graph is much faster.

import { TensorProto_DataType as DataType } from '../formats/onnx/gen/onnx_pb.js'
import { integersOf } from '../formats/onnx/tensors.js'
import type { Builder, Value } from './builder.js'
import type { Graph } from './graph.js'
import { valueInfo } from './inject.js'
import type { ProbedContent, ShapeMap } from './shapes.js'

/** A length that differs between runs: an axis of a graph input. */
export interface RunLength {
  readonly input: Value
  readonly axis: number
}

/**
 * Rewrites the targets of all Reshapes and Expands that probing explains.
 *
 * @param lengths axes of graph inputs whose lengths at the two probe points occur in no other meaning
 */
export function plainShapes(g: Builder, shapes: ShapeMap, lengths: readonly RunLength[]): void {
  const { graph } = g
  const makers = new Map(
    lengths.map(({ input, axis }) => {
      const { dims, other } = shapes.get(input) ?? { dims: [], other: [] }
      return [pair(dims[axis], other[axis]), { input, axis }] as const
    }),
  )
  const vectors = new Map<string, Value>()
  const targets = new Map<string, Value>()
  const once = (map: Map<string, Value>, key: string, make: () => Value): Value => {
    const value = map.get(key) ?? make()
    map.set(key, value)
    return value
  }
  for (const node of [...graph.nodes]) {
    if (node.opType !== 'Reshape' && node.opType !== 'Expand') continue
    const content = targetContent(graph, shapes, node.input[1])
    const entries = content && plainEntries(content, node.opType === 'Expand' ? shapes.get(node.input[0]) : undefined)
    if (entries === undefined || (node.opType === 'Reshape' && entries.includes(0))) continue
    const variable = entries.filter((entry) => typeof entry === 'string')
    if (node.opType === 'Reshape' && variable.length === 1 && !entries.includes(-1)) {
      entries[entries.findIndex((entry) => typeof entry === 'string')] = -1
    } else if (!variable.every((entry) => makers.has(entry))) {
      continue
    }
    const target = once(targets, entries.join(), () => {
      const parts = runs(entries).map((run) =>
        typeof run === 'string'
          ? once(vectors, run, () => {
              const { input, axis } = makers.get(run) as RunLength
              return g.op('Gather', [g.shape(input), g.int([axis])])
            })
          : g.int(run),
      )
      return parts.length === 1 ? parts[0] : g.concat(parts, 0)
    })
    if (node.opType === 'Reshape' && content !== undefined && !content.value.includes(-1)) {
      if (graph.constant(target) === undefined) shapes.contents.set(target, content)
      shapes.set(node.output[0], { dims: content.value, other: content.other })
    }
    graph.setInputs(node, [node.input[0], target])
  }
}

/** What a computed target comes to; undefined for a constant, which is plain already, and for what was not probed. */
function targetContent(graph: Graph, shapes: ShapeMap, target: Value): ProbedContent | undefined {
  const constant = graph.constant(target)
  if (constant !== undefined && integersOf(constant) !== undefined) return undefined
  const maker = graph.producer(target)
  const shape = maker?.opType === 'Shape' && maker.attribute.length === 0 ? shapes.get(maker.input[0]) : undefined
  return shape === undefined ? shapes.contents.get(target) : { value: shape.dims, other: shape.other }
}

/** Each entry as a number, or as the name of a length. Where Expand keeps a dimension of `source`, 1 says so. */
function plainEntries(
  { value, other }: ProbedContent,
  source: { dims: readonly number[]; other: readonly number[] } | undefined,
): (number | string)[] | undefined {
  if (value.length !== other.length) return undefined
  const offset = value.length - (source?.dims.length ?? 0)
  return value.map((entry, i) => {
    const isKept = source !== undefined && source.dims[i - offset] === entry && source.other[i - offset] === other[i]
    if (isKept) return 1
    return entry === other[i] ? entry : pair(entry, other[i])
  })
}

function pair(first: number | undefined, second: number | undefined): string {
  return `${first}/${second}`
}

/** Neighbouring constants as one vector. */
function runs(entries: readonly (number | string)[]): (number[] | string)[] {
  const result: (number[] | string)[] = []
  for (const entry of entries) {
    const last = result[result.length - 1]
    if (typeof entry === 'string') result.push(entry)
    else if (Array.isArray(last)) last.push(entry)
    else result.push([entry])
  }
  return result
}

/**
 * Declares the shapes of inputs and other values that are known. Without names for its dimensions ONNX Runtime takes any
 * two for different, and planning what shares memory takes time that grows with the square of the graph.
 *
 * @param values float values
 */
export function declareShapes(
  graph: Graph,
  shapes: ShapeMap,
  values: Iterable<Value>,
  nameOf: (dim: number, other: number) => string | undefined,
): void {
  const declare = (value: Value, type: DataType) => {
    const shape = shapes.get(value)
    const dims = shape?.dims.map((dim, axis) => (dim === shape.other[axis] ? dim : nameOf(dim, shape.other[axis])))
    const isNamed = (list: (number | string | undefined)[] | undefined): list is (number | string)[] =>
      list !== undefined && !list.includes(undefined)
    return isNamed(dims) ? valueInfo(value, type, dims) : undefined
  }
  graph.inputs = graph.inputs.map((input) => {
    const type = input.type?.value
    return (type?.case === 'tensorType' ? declare(input.name, type.value.elemType) : undefined) ?? input
  })
  graph.valueInfo = [...new Set(values)].flatMap((value) => declare(value, DataType.FLOAT) ?? [])
}
