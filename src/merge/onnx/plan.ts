// Plans a merge into an ONNX graph: which initializers change, and which places need one of their own because the
// exporter let them share it.

import type { ByteSource } from '../../base/bytes.js'
import { UnsupportedError } from '../../base/errors.js'
import type { ModelProto, NodeProto, TensorProto } from '../../formats/onnx/gen/onnx_pb.js'
import { copyMessage } from '../../formats/onnx/messages.js'
import type { OnnxModel } from '../../formats/onnx/model.js'
import { hasCacheBranches, takeBranchWithoutCache } from '../../graph/inputs/cache.js'
import { findLinears, type ModuleMap } from '../../graph/match/linears.js'
import { storedValue } from '../../graph/match/parameters.js'
import { Graph, implicitInputs } from '../../graph/view/graph.js'
import { HANDS_ON } from '../../graph/view/source.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import type { LayerMagnitude } from '../plan/adapters.js'
import type { HeadEdit } from '../plan/config-edit.js'
import type { OutputTensor } from '../plan/layout.js'
import type { LayerChange } from '../report.js'
import { collectEdits, type Edit } from './edits.js'
import { findMergedHead, headEdit, writeHead } from './head.js'
import { branchChange, mergeBranches, type QuantizedLayer, type QuantizedPolicy, unmergeBranches } from './quantized.js'
import { planRequantization } from './requantize.js'
import { targetOf } from './targets.js'

export interface OnnxMergePlan {
  /** The graph of the result. */
  readonly proto: ModelProto
  /** Weights that change, by the name of the initializer in `proto`. */
  readonly targets: ReadonlyMap<string, OutputTensor>
  /** DoRA layers of the targets. */
  readonly magnitudes: readonly LayerMagnitude[]
  /** Names of initializers that the base does not have: a new head's. */
  readonly added: readonly string[]
  /** The head, as config.json describes it. Undefined if the adapters bring none. */
  readonly head: HeadEdit | undefined
  /** Layers with quantized weights that got a branch, or lost one. */
  readonly branches: readonly QuantizedLayer[]
  /** Makes the tensors of weights that are quantized again, by the name of the initializer. */
  readonly requantized: ReadonlyMap<string, () => Promise<Uint8Array>>
  /** Entries of the report that the targets' changes belong to. */
  readonly reports: readonly string[]
  /** Names of the layers whose weights are quantized again. */
  readonly quantized: readonly string[]
  /** Changes of layers with quantized weights, to be asked for once all is written. */
  changes(): Promise<LayerChange[]>
}

/** How a merge into a graph is planned. */
interface OnnxPlanOptions {
  /** The content of config.json. */
  readonly config?: Readonly<Record<string, unknown>> | undefined
  readonly modules?: ModuleMap | undefined
  /** The type of branches' factors; undefined: the one in which each layer computes. */
  readonly factors?: 'fp32' | 'fp16' | undefined
  /** Default `branches`. */
  readonly quantized?: QuantizedPolicy | undefined
  /** Weights of adapters have the other sign, and branches are taken out. Default false. */
  readonly isUnmerge?: boolean | undefined
}

/** Places whose tensor becomes the same: one tensor, the same changes. */
interface Group {
  /** The value that holds it: an initializer, or a Constant node's output. */
  readonly weight: string
  readonly edits: [Edit, ...Edit[]]
}

/**
 * Plans the graph of a result.
 *
 * @param sources the plan's, with the files of the model. They get what the adapters hold
 * @throws what {@link collectEdits}, {@link findMergedHead} and {@link targetOf} throw
 */
export async function planOnnxMerge(
  model: OnnxModel,
  adapters: readonly { readonly adapter: LoraAdapter; readonly weight: number }[],
  { config = {}, modules = {}, factors, quantized: policy, isUnmerge = false }: OnnxPlanOptions = {},
  sources: ByteSource[] = [...model.files.values()],
): Promise<OnnxMergePlan> {
  const graph = new Graph(model.proto)
  let linears = findLinears(graph, modules)
  const loaded = adapters.map(({ adapter }) => adapter)
  let head = await findMergedHead(graph, linears, config, loaded)
  if (head?.isReplaced === false && head.placed.input.rows === 'last' && hasCacheBranches(graph)) {
    // A head reads whole texts: what reads a cache has no use any more, and the head's input may lie in it.
    takeBranchWithoutCache(graph)
    graph.prune()
    linears = findLinears(graph, modules)
    head = await findMergedHead(graph, linears, config, loaded)
  }
  const isElsewhere = (adapter: LoraAdapter, tensor: string) =>
    head?.isReplaced === false && head.adapter === adapter && head.placed.tensors.has(tensor)
  const { edits, quantized } = await collectEdits(model, graph, adapters, modules, { policy, config, isElsewhere })
  if (policy !== undefined && quantized.length === 0) throw nothingQuantized(graph, policy)
  const groups = groupByWeight(graph, edits)
  const inSubgraphs = new Set(graph.nodes.flatMap(implicitInputs))
  const targets = new Map<string, OutputTensor>()
  const magnitudes: LayerMagnitude[] = []
  for (const group of groups) {
    const source = graph.constant(group.weight) as TensorProto
    const readers = new Set(group.edits.map((edit) => edit.node))
    const isShared = !graph.initializers.has(group.weight) || hasOtherReaders(graph, group.weight, readers, inSubgraphs)
    const name = isShared ? giveOwnWeight(graph, group, source) : group.weight
    targets.set(name, targetOf(name, group.edits[0], source, { model, sources, magnitudes }))
  }
  const changed: LayerChange[] = []
  const before = new Graph(model.proto)
  let requantized: OnnxMergePlan['requantized'] = new Map()
  if (policy === 'requantize') {
    requantized = planRequantization(model, graph, quantized, (change) => changed.push(change))
  } else if (isUnmerge) await unmergeBranches(model, graph, quantized)
  else await mergeBranches(model, graph, quantized, factors)
  const branches = policy === 'requantize' ? [] : quantized
  const added = head?.isReplaced === false ? writeHead(graph, linears, head) : []
  const ofHead = { added, head: head && (await headEdit(config, head)) }
  return {
    ...{ proto: graph.toModel(), targets, magnitudes, ...ofHead, branches, requantized },
    reports: [...targets.values()].flatMap(({ layers }) => layers.flatMap(({ report }) => report ?? [])),
    quantized: policy === 'requantize' ? quantized.map(({ name }) => name) : [],
    async changes() {
      const beside: LayerChange[] = []
      for (const one of branches) beside.push(await branchChange(model, before, one))
      return [...changed, ...beside]
    },
  }
}

function nothingQuantized(graph: Graph, policy: QuantizedPolicy): UnsupportedError {
  const forms = new Set(findLinears(graph).map(({ form }) => form.name))
  return new UnsupportedError({
    where: 'quantized',
    what: `'${policy}' is only for layers with quantized weights, and the adapters change no such layer`,
    got: `linear layers as ${[...forms].join(', ')}`,
    hint: 'Leave it out: the weights of this graph are changed themselves',
  })
}

function groupByWeight(graph: Graph, edits: readonly Edit[]): Group[] {
  const groups = new Map<string, Group>()
  for (const edit of edits) {
    const weight = storedValue(graph, edit.node.input[edit.input])
    const key = JSON.stringify([weight, edit.parts.length > 0 && edit.isInputMajor, edit.keys])
    const group = groups.get(key)
    if (group !== undefined) group.edits.push(edit)
    else groups.set(key, { weight, edits: [edit] })
  }
  return [...groups.values()]
}

/** True if anything but `nodes` depends on a value. */
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

/** A copy of the weight under a new name, with copies of the nodes that hand it on, for the group's places alone. */
function giveOwnWeight(graph: Graph, { weight, edits }: Group, source: TensorProto): string {
  const name = graph.freshName(edits[0].name)
  graph.addInitializer(copyMessage(source, { name }))
  for (const { node, input } of edits) node.input[input] = ownPath(graph, node.input[input], weight, name)
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
