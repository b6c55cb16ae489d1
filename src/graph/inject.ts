// Puts LoRA branches beside linear layers: y' = y + s·(x·Aᵀ)·Bᵀ (Hu et al. 2021, arXiv 2106.09685). A and B are graph
// inputs, fed transposed, so that they can be swapped or trained between runs. Inference graphs: any rank at run time.

import { create } from '@bufbuild/protobuf'
import {
  TensorProto_DataType as DataType,
  TensorShapeProto_DimensionSchema,
  TensorShapeProtoSchema,
  TypeProto_TensorSchema,
  TypeProtoSchema,
  type ValueInfoProto,
  ValueInfoProtoSchema,
} from '../formats/onnx/gen/onnx_pb.js'
import { intAttribute } from './attributes.js'
import { Builder, type Value } from './builder.js'
import type { Graph } from './graph.js'
import type { Linear } from './linears.js'

/** The graph inputs of one adapted module: Aᵀ (k, r) and s·Bᵀ or Bᵀ (r, d). */
export interface LoraInputs {
  readonly weightA: string
  readonly weightB: string
}

export function loraInputs(module: string): LoraInputs {
  return { weightA: `lora/${module}/A`, weightB: `lora/${module}/B` }
}

/** A tensor's declaration among a graph's inputs or outputs; a dimension is a number or a symbol. */
export function valueInfo(name: string, elemType: DataType, dims: readonly (number | string)[]): ValueInfoProto {
  const dim = dims.map((value) =>
    create(TensorShapeProto_DimensionSchema, {
      value: typeof value === 'number' ? { case: 'dimValue', value: BigInt(value) } : { case: 'dimParam', value },
    }),
  )
  const shape = create(TensorShapeProtoSchema, { dim })
  const tensor = create(TypeProto_TensorSchema, { elemType, shape })
  return create(ValueInfoProtoSchema, {
    name,
    type: create(TypeProtoSchema, { value: { case: 'tensorType', value: tensor } }),
  })
}

/**
 * Adapts linear layers for inference. Feeds of a module are those of {@link loraInputs}: Aᵀ (k, r) and s·Bᵀ (r, d), of
 * any rank r, 0 included where the runtime takes empty tensors. Linears of one name share their inputs.
 */
export function injectLora(graph: Graph, linears: readonly Linear[]): void {
  const g = new Builder(graph, 'lora')
  declareInputs(graph, linears, (module) => `rank ${module}`)
  adaptNodes(graph, g, linears, (linear) => {
    const { weightA, weightB } = loraInputs(linear.name)
    const type = activationType(graph, linear)
    if (type === DataType.FLOAT) return g.matmul(g.matmul(linear.input, weightA), weightB)
    const delta = g.matmul(g.matmul(g.cast(linear.input, DataType.FLOAT), weightA), weightB)
    return g.cast(delta, type)
  })
}

/** The float type that a linear computes in: that of its weight where the node reads it, or of its scales. */
function activationType(graph: Graph, { node, kind, dataType }: Linear): DataType {
  if (kind === 'quantized') return graph.constant(node.input[2])?.dataType ?? DataType.FLOAT
  for (let maker = graph.producer(node.input[1]); maker !== undefined; maker = graph.producer(maker.input[0])) {
    if (maker.opType === 'Cast') return intAttribute(maker, 'to', dataType)
  }
  return dataType
}

/** Adds the inputs of all adapted modules. */
export function declareInputs(
  graph: Graph,
  linears: readonly Linear[],
  rankOf: (module: string) => number | string,
): void {
  const seen = new Set<string>()
  for (const { name, k, d } of linears) {
    if (seen.has(name)) continue
    seen.add(name)
    const { weightA, weightB } = loraInputs(name)
    const rank = rankOf(name)
    graph.inputs.push(valueInfo(weightA, DataType.FLOAT, [k, rank]), valueInfo(weightB, DataType.FLOAT, [rank, d]))
  }
}

/** Adds `delta(linear)` (…, d) to the output of each linear's node. Readers of the output get the sum. */
export function adaptNodes(
  graph: Graph,
  g: Builder,
  linears: readonly Linear[],
  delta: (linear: Linear) => Value,
): void {
  const byNode = new Map<Linear['node'], Linear[]>()
  for (const linear of linears) byNode.set(linear.node, [...(byNode.get(linear.node) ?? []), linear])
  for (const [node, parts] of byNode) {
    const output = node.output[0]
    const base = graph.freshName(`${output}/base`)
    node.output[0] = base
    graph.invalidate()
    const sum =
      parts[0].fused === undefined ? g.node('Add', [base, delta(parts[0])]) : addToParts(g, base, parts, delta)
    sum.output[0] = output
    graph.invalidate()
  }
}

/** Several layers side by side in one output: each gets its own columns' delta. */
function addToParts(
  g: Builder,
  base: Value,
  parts: readonly Linear[],
  delta: (linear: Linear) => Value,
): ReturnType<Builder['node']> {
  const sorted = [...parts].sort((a, b) => start(a) - start(b))
  const width = sorted[0].fused?.width ?? 0
  if (sorted.reduce((sum, { d }) => sum + d, 0) === width) {
    return g.node('Add', [base, g.concat(sorted.map(delta), -1)])
  }
  const pieces: Value[] = []
  let at = 0
  const slice = (from: number, to: number) => g.op('Slice', [base, g.int([from]), g.int([to]), g.int([-1])])
  for (const part of sorted) {
    if (start(part) > at) pieces.push(slice(at, start(part)))
    at = start(part) + part.d
    pieces.push(g.add(slice(start(part), at), delta(part)))
  }
  if (at < width) pieces.push(slice(at, width))
  return g.node('Concat', pieces, { axis: -1 })
}

function start(linear: Linear): number {
  return linear.fused?.start ?? 0
}
