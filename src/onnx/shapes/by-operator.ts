// Finds shapes without running a model: each operator runs alone, on zeros in the shapes of its inputs. A model's
// layers repeat, so that a few hundred runs answer for thousands of nodes, and no weight is read.

import { elementCount } from '../../core/base/tensor.js'
import { copyMessage } from '../format/messages.js'
import { create, toBinary } from '../format/protobuf.js'
import {
  type DataType,
  dimsOf,
  GraphProtoSchema,
  integersOf,
  isExternal,
  type ModelProto,
  type NodeProto,
  NodeProtoSchema,
  type TensorProto,
  TensorProtoSchema,
  ValueInfoProtoSchema,
} from '../format/tensors.js'
import type { Feeds, RuntimeSession, RuntimeTensor, TensorData } from '../runtime/runtime.js'
import { constantTensor, intAttribute, intsAttribute } from '../view/attributes.js'
import type { Value } from '../view/builder.js'
import { type Graph, readBy } from '../view/graph.js'
import { TYPES, valueInfo } from '../view/value-info.js'

export type OpenModel = (model: ModelProto) => Promise<RuntimeSession>

interface AtPoint {
  readonly dims: readonly number[]
  /** Present if it follows from the graph's inputs and small constants. */
  readonly data?: TensorData | readonly number[] | undefined
}

export interface Known {
  readonly elemType: DataType
  readonly points: readonly [AtPoint, AtPoint]
  /** The tensor of a small constant. */
  readonly constant?: TensorProto
}

/** Remembered outputs of operators. The key is made of the operator and the shapes and contents of its inputs. */
export type Answers = Map<string, readonly (Known | undefined)[]>

/** Longer float tensors do not steer shapes. Integers are all kept: for a few tokens they are small. */
const MAX_FLOATS = 64
/** Constants of up to so many elements are given to an operator unchanged. */
const MAX_CONSTANT = 1024

/** Operators whose output shape may depend on the content of inputs, from this index on. */
const STEERED_FROM: Readonly<Record<string, number>> = Object.fromEntries([
  ...'ConstantOfShape Range NonZero Unique NonMaxSuppression Loop'.split(' ').map((name) => [name, 0]),
  ...'Reshape Expand Slice Tile Pad Resize Upsample Split Squeeze Unsqueeze TopK OneHot Compress CenterCropPad'
    .split(' ')
    .map((name) => [name, 1]),
  ...'Sum Mean Max Min L1 L2 Prod SumSquare LogSum LogSumExp'.split(' ').map((name) => [`Reduce${name}`, 1]),
])

/** Finds shapes, unless they depend on values computed from weights. Adds what it learns to `answers`. */
export async function shapesByOperator(
  graph: Graph,
  open: OpenModel,
  points: readonly [Feeds, Feeds],
  answers: Answers,
): Promise<ReadonlyMap<Value, Known>> {
  const shell = graph.toModel()
  const known = new Map<Value, Known>()
  for (const [name, tensor] of graph.initializers) known.set(name, ofConstant(tensor))
  for (const { name } of graph.inputs) {
    const [first, second] = points.map((feeds) => feeds[name])
    if (first !== undefined && second !== undefined) known.set(name, ofTensors([first, second], true))
  }
  for (const node of graph.nodes) {
    const constant = node.opType === 'Constant' ? constantTensor(node) : undefined
    if (constant !== undefined) {
      known.set(node.output[0], ofConstant(constant))
      continue
    }
    if (node.opType === 'If') {
      for (const name of node.output) {
        const taken = known.get(takenBy(graph, node, name, known) ?? '')
        if (taken !== undefined) known.set(name, taken)
      }
      continue
    }
    const names = new Set(readBy(node).filter((name) => name !== ''))
    const inputs = new Map(
      [...names].flatMap((name) => [[name, known.get(name)!] as const].filter(([, entry]) => entry)),
    )
    const steering = node.input.slice(STEERED_FROM[node.opType] ?? node.input.length)
    if (inputs.size < names.size || steering.some((name) => name !== '' && !hasContent(inputs.get(name)!))) continue
    const key = keyOf(node, inputs)
    let outputs = answers.get(key)
    if (outputs === undefined) {
      // If an operator fails on zeros, a run of the whole graph has to tell.
      outputs = ruled(node, inputs) ?? (await run(node, inputs, shell, open).catch(() => []))
      answers.set(key, outputs)
    }
    node.output.forEach((name, i) => {
      const output = outputs[i]
      if (output !== undefined) known.set(name, output)
    })
  }
  return known
}

/** Returns the value of the branch that an If takes. Undefined if it is not known, or differs between the two runs. */
function takenBy(graph: Graph, node: NodeProto, output: Value, known: ReadonlyMap<Value, Known>): Value | undefined {
  const [first, second] = known.get(node.input[0])?.points.map(({ data }) => data?.[0]) ?? []
  if (first === undefined || first !== second) return undefined
  const taken = Number(first) === 0 ? 'else_branch' : 'then_branch'
  return graph.given(node, output)?.find(({ name }) => name === taken)?.value
}

function ofConstant(tensor: TensorProto): Known {
  const dims = dimsOf(tensor)
  const isSmall = !isExternal(tensor) && elementCount(dims) <= MAX_CONSTANT
  const point = { dims, data: isSmall ? integersOf(tensor) : undefined }
  return { elemType: tensor.dataType, points: [point, point], ...(isSmall && { constant: tensor }) }
}

function ofTensors(tensors: readonly RuntimeTensor[], isContent: boolean): Known {
  const elemType = Number(Object.entries(TYPES).find(([, types]) => types?.[0] === tensors[0].type)?.[0])
  const [first, second] = tensors.map(({ dims, data }) => {
    const isKept = isContent && (!isFloatType(elemType) || data.length <= MAX_FLOATS)
    return { dims, data: isKept ? data : undefined }
  })
  return { elemType, points: [first, second] }
}

export function isFloatType(elemType: DataType): boolean {
  return TYPES[elemType]?.[0].startsWith('float') === true
}

function hasContent({ points, constant }: Known): boolean {
  return constant !== undefined || points.every(({ data }) => data !== undefined)
}

/** Equal keys mean equal shapes and content. */
function keyOf(node: NodeProto, inputs: ReadonlyMap<Value, Known>): string {
  const { domain, opType, attribute } = node
  const text = (bytes: Uint8Array) => new TextDecoder('latin1').decode(bytes)
  const parts = readBy(node).map((name) => {
    const input = inputs.get(name)
    if (input === undefined) return ''
    // The integers of a constant are its data.
    const tensor = input.points[0].data === undefined ? input.constant : undefined
    const content = tensor && text(toBinary(TensorProtoSchema, copyMessage(tensor, { name: '' })))
    return `${input.elemType} ${input.points.map(({ dims, data }) => `${dims}:${data ?? ''}`).join('/')} ${content ?? input.constant === undefined}`
  })
  const bytes = attribute.length > 0 && toBinary(NodeProtoSchema, create(NodeProtoSchema, { attribute }))
  return JSON.stringify([domain, opType, bytes && text(bytes), node.output.map((name) => name !== ''), parts])
}

/** Shapes by rule for operators that read large weights, whose content nobody needs. */
function ruled(node: NodeProto, inputs: ReadonlyMap<Value, Known>): readonly Known[] | undefined {
  const operands = node.input.map((name) => inputs.get(name))
  if (operands.every((operand) => operand === undefined || hasContent(operand))) return undefined
  const [a, b] = operands
  const dimsAt = (make: (a: readonly number[], b: readonly number[]) => readonly number[], elemType = a?.elemType) => {
    const points = [0, 1].map((i) => ({ dims: make(a!.points[i].dims, b?.points[i].dims ?? []) }))
    return [{ elemType: elemType!, points: points as unknown as Known['points'] }]
  }
  const isFlagged = (name: string) => intAttribute(node, name, 0) === 1
  switch (node.opType) {
    case 'MatMul':
      if (operands.some((operand) => operand!.points[0].dims.length < 2)) return undefined
      return dimsAt((left, right) => [...broadcast(left, right), left.at(-2)!, right.at(-1)!])
    case 'Gemm':
      return dimsAt((left, right) => [left[isFlagged('transA') ? 1 : 0], right[isFlagged('transB') ? 0 : 1]])
    case 'MatMulNBits':
      return dimsAt((left) => [...left.slice(0, -1), intAttribute(node, 'N', 0)])
    case 'Gather':
      if (intAttribute(node, 'axis', 0) !== 0) return undefined
      return dimsAt((table, rows) => [...rows, ...table.slice(1)])
    case 'Transpose':
      return dimsAt((dims) =>
        (intsAttribute(node, 'perm') ?? dims.map((_, i) => dims.length - 1 - i)).map((i) => dims[i]),
      )
    case 'RotaryEmbedding':
      return dimsAt((dims) => dims)
    case 'Cast':
      return dimsAt((dims) => dims, intAttribute(node, 'to', 0))
    case 'DequantizeLinear':
      return dimsAt((dims) => dims, b!.elemType)
    default:
      return undefined
  }
}

/** Broadcasts all axes of two shapes except the last two. */
function broadcast(a: readonly number[], b: readonly number[]): number[] {
  const [longer, shorter] = a.length >= b.length ? [a, b] : [b, a]
  const extra = longer.length - shorter.length
  return longer.slice(0, -2).map((dim, i) => (dim === 1 ? (shorter[i - extra] ?? 1) : dim))
}

/** Finds shapes and content by running the whole graph. */
export async function shapesByRunning(
  graph: Graph,
  open: OpenModel,
  points: readonly [Feeds, Feeds],
  values: readonly Value[],
): Promise<(readonly [Value, Known])[]> {
  const model = graph.toModel()
  const output = values.map((name) => create(ValueInfoProtoSchema, { name }))
  const session = await open(copyMessage(model, { graph: copyMessage(model.graph!, { output }) }))
  try {
    const [first, second] = [await session.run(points[0]), await session.run(points[1])]
    return values.map((value) => [value, ofTensors([first[value], second[value]], true)])
  } finally {
    await session.dispose()
  }
}

async function run(
  node: NodeProto,
  inputs: ReadonlyMap<Value, Known>,
  shell: ModelProto,
  open: OpenModel,
): Promise<readonly (Known | undefined)[]> {
  const constants = [...inputs].flatMap(([name, { constant }]) => (constant ? [copyMessage(constant, { name })] : []))
  const fed = [...inputs].filter(([, { constant }]) => constant === undefined)
  if (fed.some(([, { elemType }]) => TYPES[elemType] === undefined)) return []
  const given = node.output.filter((name) => name !== '')
  const graph = create(GraphProtoSchema, {
    name: 'shapes',
    node: [node],
    initializer: constants,
    input: fed.map(([name, { elemType }]) => valueInfo(name, elemType)),
    output: given.map((name) => create(ValueInfoProtoSchema, { name })),
  })
  const session = await open(copyMessage(shell, { graph }))
  try {
    const at = (i: 0 | 1) =>
      session.run(Object.fromEntries(fed.map(([name, entry]) => [name, tensorOf(entry, i, node)])), given)
    const isStatic = fed.every(([, { points }]) => points[0].dims === points[1].dims)
    const [first, second = first] = await Promise.all(isStatic ? [at(0)] : [at(0), at(1)])
    const isContent = ['Shape', 'Size'].includes(node.opType) || [...inputs.values()].every(hasContent)
    return node.output.map((name) => (name === '' ? undefined : ofTensors([first[name], second[name]], isContent)))
  } finally {
    // Do not await this: there are hundreds of operators.
    session.dispose().catch(() => {})
  }
}

function tensorOf({ elemType, points }: Known, i: 0 | 1, { opType }: NodeProto): RuntimeTensor {
  const [type, Data] = TYPES[elemType]!
  const { dims, data = new Data(elementCount(dims)) } = points[i]
  // Dividing integers by zero would end the process.
  if (points[i].data === undefined && /^(Div|Mod)$/.test(opType))
    (data as Int32Array).fill((type === 'int64' ? 1n : 1) as never)
  return { type, data: data as TensorData, dims }
}
