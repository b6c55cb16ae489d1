// Plans a merge into an ONNX graph: which initializers change, and which nodes need a weight of their own because the
// exporter let them share one.

import type { FloatDtype } from '../base/dtype.js'
import { UnsupportedError } from '../base/errors.js'
import {
  TensorProto_DataType as DataType,
  type ModelProto,
  type NodeProto,
  type TensorProto,
} from '../formats/onnx/gen/onnx_pb.js'
import { copyMessage } from '../formats/onnx/messages.js'
import type { OnnxModel } from '../formats/onnx/model.js'
import { dataTypeName, dimsOf } from '../formats/onnx/tensors.js'
import { floatAttribute } from '../graph/attributes.js'
import { Graph, implicitInputs } from '../graph/graph.js'
import { findLinears, type ModuleMap } from '../graph/linears.js'
import { type PlacedLayer, placeAdapter } from '../graph/place-adapter.js'
import type { LoraAdapter } from '../lora/adapter.js'
import type { MergePart, MergeTarget } from './weight.js'

export interface OnnxMergePlan {
  /** The graph of the result. */
  readonly proto: ModelProto
  /** By the name of the initializer in `proto`; `source` holds the base weight. */
  readonly targets: ReadonlyMap<string, { readonly target: MergeTarget; readonly source: TensorProto }>
}

const DTYPES: Partial<Record<DataType, FloatDtype>> = {
  [DataType.FLOAT]: 'F32',
  [DataType.FLOAT16]: 'F16',
  [DataType.BFLOAT16]: 'BF16',
}

/** Nodes whose weight becomes the same: one weight, the same layers in it. */
interface Group {
  /** The value that holds it: an initializer, or a Constant node's output. */
  readonly weight: string
  readonly isInputMajor: boolean
  readonly nodes: NodeProto[]
  readonly parts: MergePart[]
}

/**
 * Pure: no weight is read.
 *
 * @throws MismatchError when the adapter does not fit; UnsupportedError naming the node when a weight is quantised or of
 *   another type than f32, f16 and bf16
 */
export function planOnnxMerge(model: OnnxModel, adapter: LoraAdapter, modules: ModuleMap = {}): OnnxMergePlan {
  const graph = new Graph(model.proto)
  const groups = groupByWeight(graph, placeAdapter(graph, findLinears(graph, modules), adapter))
  const inSubgraphs = new Set(graph.nodes.flatMap(implicitInputs))
  const targets = new Map<string, { target: MergeTarget; source: TensorProto }>()
  for (const group of groups) {
    const source = graph.constant(group.weight) as TensorProto
    const nodes = new Set(group.nodes)
    const isShared = !graph.initializers.has(group.weight) || hasOtherReaders(graph, group.weight, nodes, inSubgraphs)
    const name = isShared ? giveOwnWeight(graph, group, source) : group.weight
    const [rows, columns] = dimsOf(source)
    const dtype = DTYPES[source.dataType as DataType]
    if (dtype === undefined) {
      throw new UnsupportedError({
        where: `node ${group.nodes[0].name}`,
        what: 'its weight has a type that cannot be merged into',
        expected: 'FLOAT, FLOAT16 or BFLOAT16',
        got: dataTypeName(source.dataType),
      })
    }
    const { isInputMajor, parts } = group
    targets.set(name, { target: { name, dtype, shape: [rows, columns], isInputMajor, parts }, source })
  }
  return { proto: graph.toModel(), targets }
}

function groupByWeight(graph: Graph, placed: readonly PlacedLayer[]): Group[] {
  const partsOf = new Map<NodeProto, PlacedLayer[]>()
  for (const entry of placed) partsOf.set(entry.linear.node, [...(partsOf.get(entry.linear.node) ?? []), entry])
  const groups = new Map<string, Group>()
  for (const [node, entries] of partsOf) {
    const { linear } = entries[0]
    refuseUnmergeable(node, linear.kind)
    const parts = entries.map(({ name, layer, linear: { fused } }) => ({ name, layer, start: fused?.start ?? 0 }))
    const weight = storedWeight(graph, node.input[1])
    const key = JSON.stringify([weight, linear.transposed, parts.map(({ name, start }) => [name, start])])
    const group = groups.get(key)
    if (group !== undefined) group.nodes.push(node)
    else groups.set(key, { weight, isInputMajor: !linear.transposed, nodes: [node], parts })
  }
  return [...groups.values()]
}

function refuseUnmergeable(node: NodeProto, kind: 'matmul' | 'gemm' | 'quantized'): void {
  const hasAlpha = kind === 'gemm' && floatAttribute(node, 'alpha', 1) !== 1
  if (kind !== 'quantized' && !hasAlpha) return
  throw new UnsupportedError({
    where: `node ${node.name}`,
    what: hasAlpha ? 'a Gemm whose alpha is not 1 cannot be merged into' : 'a quantised weight cannot be merged into',
    expected: 'a weight in f32, f16 or bf16',
    got: hasAlpha ? `alpha ${floatAttribute(node, 'alpha', 1)}` : node.opType,
    hint: hasAlpha ? 'Use the adapter at run time' : 'Merge into the unquantised export and quantise the result',
  })
}

/** Nodes that hand a weight on to the node that multiplies by it. */
const HANDS_ON = new Set(['Transpose', 'Cast', 'Identity'])

/** Where the weight that arrives as `value` is stored. */
function storedWeight(graph: Graph, value: string): string {
  const maker = graph.producer(value)
  return maker !== undefined && HANDS_ON.has(maker.opType) ? storedWeight(graph, maker.input[0]) : value
}

/** Whether anything but `nodes` depends on a value. */
function hasOtherReaders(
  graph: Graph,
  value: string,
  nodes: ReadonlySet<NodeProto>,
  inSubgraphs: ReadonlySet<string>,
): boolean {
  if (inSubgraphs.has(value) || graph.outputs.some(({ name }) => name === value)) return true
  return graph.consumers(value).some((reader) => {
    if (nodes.has(reader)) return false
    return !HANDS_ON.has(reader.opType) || hasOtherReaders(graph, reader.output[0], nodes, inSubgraphs)
  })
}

/** A copy of the weight under a new name, with copies of the nodes that hand it on, for the group's nodes alone. */
function giveOwnWeight(graph: Graph, { weight, nodes, parts }: Group, source: TensorProto): string {
  const name = graph.freshName(`${parts[0].name}.weight`)
  graph.addInitializer(copyMessage(source, { name }))
  for (const node of nodes) node.input[1] = ownPath(graph, node.input[1], weight, name)
  graph.invalidate()
  if (graph.consumers(weight).length === 0 && !isNeeded(graph, weight)) graph.initializers.delete(weight)
  return name
}

/** The value that follows from `name` as `value` follows from `weight`. */
function ownPath(graph: Graph, value: string, weight: string, name: string): string {
  if (value === weight) return name
  const maker = graph.producer(value) as NodeProto
  const copy = copyMessage(maker, {
    name: graph.freshName(`${maker.name}/merged`),
    input: [ownPath(graph, maker.input[0], weight, name), ...maker.input.slice(1)],
    output: [graph.freshName(`${value}/merged`)],
  })
  graph.add(copy)
  return copy.output[0]
}

function isNeeded(graph: Graph, value: string): boolean {
  return (
    graph.outputs.some(({ name }) => name === value) || graph.nodes.some((node) => implicitInputs(node).includes(value))
  )
}
