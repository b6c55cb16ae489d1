// Makes the graph that a session opens from the model's graph.

import { fuseAttention } from '../model/fuse/attention.js'
import { giveNewRows } from '../model/fuse/new-rows.js'
import { injectLora } from '../model/inject/inject.js'
import type { Vector } from '../model/inject/other-sites.js'
import { FIRST_INPUT, type Site, type SiteGroup, type SiteNeeds } from '../model/inject/sites.js'
import { growWindows, isCacheInput } from '../model/inputs/cache.js'
import { splitInputs } from '../model/inputs/roles.js'
import { findPointwise } from '../model/match/forms/pointwise.js'
import { exposeProducts, findLinears, type Linear, type ModuleMap } from '../model/match/linears.js'
import { type ModelProto, type ValueInfoProto, ValueInfoProtoSchema } from '../onnx/format/gen/onnx_pb.js'
import type { OnnxModel } from '../onnx/format/model.js'
import { create } from '../onnx/format/protobuf.js'
import { DataType } from '../onnx/format/tensors.js'
import { Builder, type Value } from '../onnx/view/builder.js'
import { Graph, subgraphs } from '../onnx/view/graph.js'
import { dimsOfInput, valueInfo } from '../onnx/view/value-info.js'
import type { OpenRequest } from './graph-engine.js'

const ON_PROCESSOR = new Set(['cpu', 'wasm'])

/** True for providers that take empty tensors. With others, idle sites get zeros of rank 1, and nothing is fused. */
export const areOnProcessor = (providers: readonly string[] = []) => providers.every((name) => ON_PROCESSOR.has(name))

export interface GraphNeeds {
  readonly modules: SiteNeeds
  readonly vectors: ReadonlyMap<string, Vector>
}

export interface SessionEdit {
  readonly before: ((graph: Graph) => void) | undefined
  /** Replaces operators that the runtime does not have. */
  readonly lower: ((graph: Graph) => void) | undefined
  readonly names: ModuleMap
  readonly needs: GraphNeeds
  /** The code for sites other than linear layers, if there are any. */
  readonly others: typeof import('../model/inject/other-sites.js') | undefined
  readonly given: ReadonlySet<string>
  readonly isPlain: boolean
}

export function sessionGraph(
  onnx: OnnxModel,
  { before, lower, names, needs, others, given, isPlain }: SessionEdit,
  providers: readonly string[] = [],
): Omit<OpenRequest, 'model' | 'options'> & { graph: ModelProto; isFused: boolean } {
  const graph = new Graph(onnx.proto)
  before?.(graph)
  growWindows(graph)
  lower?.(graph)
  graph.outputs.push(...Array.from(given, (name) => create(ValueInfoProtoSchema, { name })))
  const isOnProcessor = areOnProcessor(providers)
  const mayFuse = isOnProcessor && !isPlain
  const isFused = mayFuse && fuseAttention(graph) > 0
  const newRows = mayFuse ? giveNewRows(graph) : undefined
  const linears = findLinears(graph, names)
  const choosesLogits = mayFuse && chooseLogits(graph, linears)
  const ownInputs = new Set(graph.inputs)
  const adapted = adaptGraph(graph, linears, needs, others, !mayFuse)
  const added = graph.inputs.filter((input) => !ownInputs.has(input))
  const inputNames = shortenNames(graph, added)
  return {
    ...adapted,
    inputNames,
    graph: graph.toModel(),
    idleRank: isOnProcessor ? 0 : 1,
    newRows,
    isFused: isFused || newRows !== undefined || choosesLogits || (mayFuse && adapted.groups.length > 0),
  }
}

/**
 * Adds an input that says for which last tokens the logits are computed: while a prompt is read, only the last token
 * needs the large output layer. Returns false if the graph has such an input already, or its output layer is not plain.
 */
function chooseLogits(graph: Graph, linears: Linear[]): boolean {
  const [head, ...more] = linears.filter(({ isHead }) => isHead)
  const logits = graph.outputs.find(({ name }) => name === head?.output)
  const dims = logits === undefined ? [] : dimsOfInput(logits)
  const isTold = splitInputs(graph).roles.some(({ role }) => role === 'logitsToKeep')
  const isPlain = head?.node.input[0] === head?.input && more.length === 0 && graph.inputs.some(isCacheInput)
  if (dims.length !== 3 || dims[1] !== undefined || isTold || !isPlain) return false
  graph.inputs.push(valueInfo(FIRST_INPUT, DataType.INT64, [1]))
  const g = new Builder(graph, 'logits')
  const input = g.op('Slice', [head.input, FIRST_INPUT, g.int([Number.MAX_SAFE_INTEGER]), g.int([1])])
  graph.setInput(head.node, 0, input)
  linears.splice(linears.indexOf(head), 1, { ...head, input })
  return true
}

/**
 * Gives inputs short names. ONNX Runtime looks up hundreds of inputs by name in every run, which takes a third more
 * time with long names.
 */
function shortenNames(graph: Graph, inputs: readonly ValueInfoProto[]): ReadonlyMap<string, string> {
  return new Map(
    inputs.map((input, i) => {
      const { name } = input
      input.name = graph.freshName(String(i))
      graph.replaceUses(name, input.name)
      return [name, input.name]
    }),
  )
}

/** Adds inputs for adapters. Returns their sites, and whether the graph can take different factors for each row. */
function adaptGraph(
  graph: Graph,
  all: readonly Linear[],
  { modules, vectors }: GraphNeeds,
  others: SessionEdit['others'],
  isInputMajor: boolean,
): { groups: SiteGroup[]; takesRows: boolean; isInputMajor: boolean } {
  const known = new Map<Value, boolean>()
  const found = [...all, ...findPointwise(graph)].filter(({ name }) => modules.has(name))
  const linears = exposeProducts(graph, found)
  const forAll = new Set(linears.flatMap(({ name, input }) => (isFed(graph, input, known) ? [] : [name])))
  const otherSites = others?.otherSites(graph, modules, vectors.values())
  const { takesRows, shared } = injectLora(graph, linears, modules, isInputMajor)
  const sites = new Map<string, Site>()
  const add = (site: Omit<Site, 'roles'>) => void sites.set(site.module, { ...site, roles: modules.get(site.module)! })
  for (const { name, k, d } of linears) {
    add({ kind: 'linear', module: name, k, d, isForAllRows: forAll.has(name) })
  }
  for (const site of otherSites?.inject(isInputMajor) ?? []) add(site)
  const groups = shared.map((group) => group.map((module) => sites.get(module)!))
  const isShared = new Set(shared.flat())
  const alone = [...sites.values()].filter(({ module }) => !isShared.has(module))
  return { groups: [...groups, ...alone.map((site) => [site])], takesRows, isInputMajor }
}

/** True if a value depends on the values of the inputs and not only on their shapes. Answers are kept in `known`. */
function isFed(graph: Graph, value: Value, known: Map<Value, boolean>): boolean {
  const inputs = new Set(graph.inputs.map(({ name }) => name))
  const seen: Value[] = []
  const enters = ({ opType }: { opType: string }, made: Value) => opType !== 'Shape' && known.get(made) !== false
  for (const [source, node] of graph.madeOf([value], enters)) {
    if (known.get(source) || inputs.has(source) || (node !== undefined && subgraphs(node).length > 0)) {
      known.set(value, true)
      return true
    }
    seen.push(source)
  }
  for (const source of seen) known.set(source, false)
  return false
}
