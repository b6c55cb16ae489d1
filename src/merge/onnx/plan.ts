// Plans a merge into an ONNX graph: which initializers change, and which places get a copy because only they change.

import { UnsupportedError } from '../../core/base/errors.js'
import { groupBy } from '../../core/base/group.js'
import { formatShape } from '../../core/base/tensor.js'
import { cacheBranches, takeBranchWithoutCache } from '../../model/inputs/cache.js'
import { findEmbeddings } from '../../model/match/forms/lookup.js'
import { findLinears } from '../../model/match/linears.js'
import { biasOf } from '../../model/match/parameters.js'
import type { PlacedModel } from '../../model/place/placement.js'
import {
  type ModelProto,
  type NodeProto,
  type TensorProto,
  TensorProtoSchema,
  type ValueInfoProto,
  ValueInfoProtoSchema,
} from '../../onnx/format/gen/onnx_pb.js'
import { copyMessage } from '../../onnx/format/messages.js'
import type { OnnxModel } from '../../onnx/format/model.js'
import { create, fromBinary, toBinary } from '../../onnx/format/protobuf.js'
import { Graph, implicitInputs } from '../../onnx/view/graph.js'
import { HANDS_ON } from '../../onnx/view/patterns.js'
import type { PlanInput } from '../parts.js'
import type { GraphShare, OpenAdapters } from '../plan/adapters.js'
import type { HeadEdit, ModelConfig } from '../plan/config-edit.js'
import type { FitProblems } from '../plan/fit-problems.js'
import type { OutputTensor } from '../plan/layout.js'
import { notGrown } from '../plan/plan.js'
import { type Edit, planEdits, storeFloats } from './edits.js'
import { findMergedHead, headEdit, writeHead } from './head.js'
import { mergeBranches, type QuantizedLayer, readQuantized, refuseDoraSums } from './quantized.js'

export interface OnnxMergePlan {
  readonly model: OnnxModel
  readonly proto: ModelProto
  /** The tensors that change, by their names in the result. */
  readonly targets: ReadonlyMap<string, OutputTensor>
  /** The rows of a grown embedding. */
  readonly vocabulary: number | undefined
  /** Tensors of a head that the base does not have. */
  readonly added: string[]
  readonly notes: readonly string[]
  readonly head: HeadEdit | undefined
  readonly reports: readonly string[]
  /** The layers with quantized weights beside which the adapters' factors were added. */
  readonly branches: readonly string[]
}

interface OnnxPlanOptions extends Pick<PlanInput, 'modules' | 'sign'> {
  readonly config: ModelConfig | undefined
}

/** Plans the merge. Returns undefined if something does not fit, or if only the fit was asked for. */
export async function planOnnxMerge(
  base: OnnxModel,
  shares: readonly GraphShare[],
  opened: OpenAdapters,
  fit: FitProblems,
  { config = {}, modules = {}, sign }: OnnxPlanOptions,
): Promise<OnnxMergePlan | undefined> {
  const graph = new Graph(base.proto)
  let linears = findLinears(graph, modules)
  const findHead = () => fit.note(() => findMergedHead(graph, linears, config, shares))
  let head = findHead()
  if (head?.isReplaced === false && head.placed.input.rows === 'last' && cacheBranches(graph).length > 0) {
    // A head reads whole texts, so the branch that reads a cache is dropped. The head's input may lie inside the If.
    takeBranchWithoutCache(graph)
    graph.prune()
    linears = findLinears(graph, modules)
    head = findHead()
  }
  const isElsewhere = ({ adapter }: GraphShare, tensor: string) =>
    head?.isReplaced === false && head.adapter === adapter && head.placed.tensors.has(tensor)
  if (head?.isReplaced === false) {
    fit.notes.push(`it brings a head, which the base has not: ${[...head.placed.tensors].join(', ')}`)
  }
  const merged = { onnx: base, graph, linears, config, embeddings: findEmbeddings(graph), use: 'merge' } as const
  const { edits, quantized: parts, floats, notes } = await planEdits(merged, shares, opened, fit, isElsewhere)
  const resized = fit.note(() => grownVocabulary(merged, edits))
  fit.vocabulary ??= linears.find(({ isHead }) => isHead)?.d ?? null
  if (fit.problems.length > 0 || fit.listsAll) return undefined
  if (sign === -1 && parts.length > 0) throw noUnmerge(parts[0].at.part)
  const model = storeFloats(base, graph, floats)
  if (resized !== undefined) resizeVocabulary(graph, resized)
  const inSubgraphs = new Set(graph.nodes.flatMap(implicitInputs))
  const targets = new Map<string, OutputTensor>()
  // Places that read the same tensor and change it in the same way share the result.
  const keyOf = ({ weight, layers, keys }: Edit) => JSON.stringify([weight, layers[0]?.isInputMajor ?? false, keys])
  for (const group of groupBy(edits, keyOf).values()) {
    const [{ weight, layers, placed, base }] = group
    const readers = new Set(group.map((edit) => edit.node))
    const isShared = !graph.initializers.has(weight) || hasOtherReaders(graph, weight, readers, inSubgraphs)
    const name = isShared ? giveOwnWeight(graph, group) : weight
    targets.set(name, { ...base, name, layers, ...placed })
    const { dataType } = graph.initializers.get(name)!
    const shape = placed?.base?.shape.map(BigInt)
    if (shape !== undefined && shape.join() !== graph.initializers.get(name)!.dims.join()) {
      graph.addInitializer(create(TensorProtoSchema, { name, dataType, dims: shape }))
    }
  }
  const quantized: QuantizedLayer[] = []
  for (const part of parts) quantized.push(await readQuantized(part))
  refuseDoraSums(graph, quantized)
  await mergeBranches(model, graph, quantized)
  const added = head?.isReplaced === false ? await writeHead(graph, linears, head) : []
  return {
    ...{ model, proto: graph.toModel(), targets, vocabulary: resized?.vocabulary, added, notes },
    head: head && (await headEdit(config, head)),
    reports: [...targets.values()].flatMap(({ layers }) => layers.flatMap(({ report }) => report ?? [])),
    branches: quantized.map(({ name }) => name),
  }
}

function noUnmerge(where: string): UnsupportedError {
  return new UnsupportedError({
    where,
    what: 'an adapter cannot be taken out of quantized weights, nor from beside them',
    hint: 'Keep the base',
  })
}

function hasOtherReaders(
  graph: Graph,
  value: string,
  nodes: ReadonlySet<NodeProto>,
  inSubgraphs: ReadonlySet<string>,
): boolean {
  if (inSubgraphs.has(value) || graph.outputs.some(({ name }) => name === value)) return true
  return graph.consumers(value).some((reader) => {
    if (nodes.has(reader)) return false
    return !HANDS_ON.includes(reader.opType) || hasOtherReaders(graph, reader.output[0], nodes, inSubgraphs)
  })
}

/** Copies the weight under a new name for these places only, with copies of the nodes that pass it on. */
function giveOwnWeight(graph: Graph, edits: readonly Edit[]): string {
  const [{ weight, name: moduleName }] = edits
  const name = graph.freshName(moduleName)
  graph.addInitializer(copyMessage(graph.constant(weight) as TensorProto, { name }))
  for (const { node, input } of edits) node.input[input] = ownPath(graph, node.input[input], weight, name)
  graph.invalidate()
  if (graph.consumers(weight).length === 0 && !isNeeded(graph, weight)) graph.initializers.delete(weight)
  return name
}

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

interface Resized {
  /** The rows before. */
  readonly rows: number
  readonly vocabulary: number
}

/** Returns the size of a grown vocabulary, or undefined if the vocabulary stays. Throws if a module does not grow. */
function grownVocabulary({ graph, linears, embeddings }: PlacedModel, edits: readonly Edit[]): Resized | undefined {
  const grown = edits.filter(
    ({ base, placed }) => placed?.base && formatShape(placed.base.shape) !== formatShape(base.base.shape),
  )
  if (grown.length === 0) return undefined
  const [{ name: first, base, placed }] = grown
  const [before, after] = [base.base.shape, placed!.base!.shape]
  const axis = before.findIndex((size, i) => size !== after[i])
  const [rows, vocabulary] = [before[axis], after[axis]]
  const isGrown = (node: unknown) => grown.some((edit) => edit.node === node)
  const heads = linears.filter(({ isHead, d }) => isHead && d === rows)
  const left = [
    ...heads
      .filter((head) => !isGrown(head.node) || biasOf(graph, head) !== undefined)
      .map(({ name, k }) => ({ name, width: k })),
    ...embeddings
      .filter((embedding) => embedding.k === rows && !isGrown(embedding.node))
      .map(({ name, d }) => ({ name, width: d })),
  ]
  for (const { name, width } of left) throw notGrown(name, first, vocabulary, [rows, width])
  return { rows, vocabulary }
}

function resizeVocabulary(graph: Graph, { rows, vocabulary }: Resized): void {
  const lastOf = (info: ValueInfoProto) => {
    const type = info.type?.value
    return type?.case === 'tensorType' ? type.value.shape?.dim.at(-1) : undefined
  }
  const isOld = (info: ValueInfoProto) => Number(lastOf(info)?.value.value) === rows
  graph.valueInfo = graph.valueInfo.filter((info) => !isOld(info))
  graph.outputs = graph.outputs.map((output) => {
    if (!isOld(output)) return output
    const resized = fromBinary(ValueInfoProtoSchema, toBinary(ValueInfoProtoSchema, output))
    lastOf(resized)!.value = { case: 'dimValue', value: BigInt(vocabulary) }
    return resized
  })
}
