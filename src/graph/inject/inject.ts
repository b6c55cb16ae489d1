// Puts LoRA branches beside linear layers: y' = y + s·(x·Aᵀ)·Bᵀ (Hu et al. 2021, arXiv 2106.09685). Factors are graph inputs, so that
// they can be swapped or trained between runs. Inference graphs take Aᵀ and s·Bᵀ of any rank at run time, and where an adapter needs
// it compute y' = c ⊙ (y + s·(x·Aᵀ)·Bᵀ) + t, which DoRA and biases of B come down to.

import { create } from '@bufbuild/protobuf'
import {
  TensorProto_DataType as DataType,
  type NodeProto,
  TensorShapeProto_DimensionSchema,
  TensorShapeProtoSchema,
  TypeProto_TensorSchema,
  TypeProtoSchema,
  type ValueInfoProto,
  ValueInfoProtoSchema,
} from '../../formats/onnx/gen/onnx_pb.js'
import type { Linear } from '../match/linears.js'
import { Builder, type Value } from '../view/builder.js'
import type { Graph } from '../view/graph.js'

/** The graph inputs that hold one module's factors. */
export interface LoraInputs {
  readonly weightA: string
  readonly weightB: string
}

export function loraInputs(module: string): LoraInputs {
  return { weightA: `lora/${module}/A`, weightB: `lora/${module}/B` }
}

/** The graph inputs that hold what one module's outputs are multiplied by, c (d), and what is added to them, t (d). */
export interface AffineInputs {
  readonly scale: string
  readonly shift: string
}

export function affineInputs(module: string): AffineInputs {
  return { scale: `lora/${module}/scale`, shift: `lora/${module}/shift` }
}

/** A tensor's declaration among a graph's inputs or outputs; a dimension is a number or a symbol. Without `dims` it has any rank. */
export function valueInfo(name: string, elemType: DataType, dims?: readonly (number | string)[]): ValueInfoProto {
  const dim = dims?.map((value) =>
    create(TensorShapeProto_DimensionSchema, {
      value: typeof value === 'number' ? { case: 'dimValue', value: BigInt(value) } : { case: 'dimParam', value },
    }),
  )
  const shape = dim && create(TensorShapeProtoSchema, { dim })
  const tensor = create(TypeProto_TensorSchema, { elemType, shape })
  return create(ValueInfoProtoSchema, {
    name,
    type: create(TypeProtoSchema, { value: { case: 'tensorType', value: tensor } }),
  })
}

/** The graph input (1) that tells how many rows have factors of their own; there where {@link injectLora} says so. */
export const ROWS_INPUT = 'lora/rows'

/**
 * Adapts linear layers for inference. Feeds of a module are those of {@link loraInputs}: Aᵀ (k, r) and s·Bᵀ (r, d), of
 * any rank r, 0 included where the runtime takes empty tensors; or Aᵀ (rows, k, r) and s·Bᵀ (rows, r, d), a pair for each row of the
 * batch. Linears of one name share their inputs.
 *
 * @param affine modules that get inputs of {@link affineInputs} as well, (d) or (rows, 1, d), which are fed in every run
 * @returns whether the graph got {@link ROWS_INPUT}: a Gemm sees the rows of a batch as one matrix, which has to be told apart again
 */
export function injectLora(
  graph: Graph,
  linears: readonly Linear[],
  affine: ReadonlySet<string> = new Set(),
): { takesRows: boolean } {
  const g = new Builder(graph, 'lora')
  for (const { name } of new Map(linears.map((linear) => [linear.name, linear])).values()) {
    const { weightA, weightB } = loraInputs(name)
    graph.inputs.push(valueInfo(weightA, DataType.FLOAT), valueInfo(weightB, DataType.FLOAT))
    if (!affine.has(name)) continue
    const { scale, shift } = affineInputs(name)
    graph.inputs.push(valueInfo(scale, DataType.FLOAT), valueInfo(shift, DataType.FLOAT))
  }
  const takesRows = linears.some(isMatrix)
  if (takesRows) graph.inputs.push(valueInfo(ROWS_INPUT, DataType.INT64, [1]))
  /** (n, width) → (rows, n / rows, width) */
  const byRow = (x: Value, width: number) => g.reshape(x, g.concat([ROWS_INPUT, g.int([-1, width])], 0))
  const makeDelta: MakeDelta = (linear, base) => {
    const { name, input, dataType, k, d } = linear
    const { weightA, weightB } = loraInputs(name)
    const [isFloat, isFlat] = [dataType === DataType.FLOAT, isMatrix(linear)]
    const x = isFlat ? byRow(input, k) : input
    const product = g.node('MatMul', [g.matmul(isFloat ? x : g.cast(x, DataType.FLOAT), weightA), weightB])
    const delta = isFloat ? product : g.node('Cast', [product.output[0]], { to: dataType })
    const flat = (node: NodeProto) => (isFlat ? g.node('Reshape', [node.output[0], g.int([-1, d])]) : node)
    if (base === undefined) return flat(delta)
    if (!affine.has(name)) return g.node('Add', [base, flat(delta).output[0]])
    const sum = g.add(isFlat ? byRow(base, d) : base, delta.output[0])
    const { scale, shift } = affineInputs(name)
    const [c, t] = [scale, shift].map((value) => (isFloat ? value : g.cast(value, dataType)))
    return flat(g.node('Add', [g.mul(sum, c), t]))
  }
  adaptNodes(graph, g, linears, makeDelta, ({ name }) => affine.has(name))
  return { takesRows }
}

/** Whether a layer takes all rows of a batch as one matrix (n, k). */
function isMatrix({ form }: Linear): boolean {
  return form.name === 'Gemm'
}

/** Appends what gives base + delta (…, d), or the delta alone where no base is given. */
export type MakeDelta = (linear: Linear, base: Value | undefined) => NodeProto

/**
 * Adds the delta of each linear to its node's output. Readers of the output get the sum.
 *
 * @param needsBase linears whose base `makeDelta` has to be given
 */
export function adaptNodes(
  graph: Graph,
  g: Builder,
  linears: readonly Linear[],
  makeDelta: MakeDelta,
  needsBase: (linear: Linear) => boolean = () => false,
): void {
  const byNode = new Map<Linear['node'], Linear[]>()
  for (const linear of linears) byNode.set(linear.node, [...(byNode.get(linear.node) ?? []), linear])
  for (const parts of byNode.values()) {
    const { last } = parts[0]
    const output = last.output[0]
    const base = graph.freshName(`${output}/base`)
    graph.setOutput(last, 0, base)
    const isWhole = parts[0].fused === undefined
    const sum = isWhole ? makeDelta(parts[0], base) : addToParts(g, base, parts, makeDelta, parts.some(needsBase))
    graph.setOutput(sum, 0, output)
  }
}

/** Several layers side by side in one output: each gets its own columns' delta. */
function addToParts(
  g: Builder,
  base: Value,
  parts: readonly Linear[],
  makeDelta: MakeDelta,
  needsBase: boolean,
): NodeProto {
  const sorted = [...parts].sort((a, b) => start(a) - start(b))
  const width = sorted[0].fused?.width ?? 0
  if (!needsBase && sorted.reduce((sum, { d }) => sum + d, 0) === width) {
    const deltas = sorted.map((part) => makeDelta(part, undefined).output[0])
    return g.node('Add', [base, g.concat(deltas, -1)])
  }
  const pieces: Value[] = []
  let at = 0
  const slice = (from: number, to: number) => g.op('Slice', [base, g.int([from]), g.int([to]), g.int([-1])])
  for (const part of sorted) {
    if (start(part) > at) pieces.push(slice(at, start(part)))
    at = start(part) + part.d
    pieces.push(makeDelta(part, slice(start(part), at)).output[0])
  }
  if (at < width) pieces.push(slice(at, width))
  return g.node('Concat', pieces, { axis: -1 })
}

function start(linear: Linear): number {
  return linear.fused?.start ?? 0
}
