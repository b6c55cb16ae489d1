// Finds the linear layers of a graph. Names come from nodes, because layers with equal weights may share an
// initializer.

import type { NodeProto } from '../../onnx/format/tensors.js'
import type { Value } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'
import { declaredOf } from '../../onnx/view/value-info.js'
import { ATTENTION } from './forms/attention.js'
import type { Linear, NamedLayer, Product } from './forms/form.js'
import { findProduct } from './forms/forms.js'
import { findBranches } from './merged-branches.js'
import { packedParts } from './packed.js'

export type { Linear, NamedLayer }

/** Module name → name of its node or of its weight's initializer, for graphs whose names do not tell. */
export type ModuleMap = Readonly<Record<string, string>>

/** Lists layers in the graph's order. A module that is called twice appears twice. */
export function findLinears(graph: Graph, modules: ModuleMap = {}): Linear[] {
  const products = productsOf(graph)
  const heads = headsOf(graph, products)
  const named = new Map(Object.entries(modules).map(([module, name]) => [name, module]))
  const firstCalls = new Map<string, Product>()
  return products.flatMap((product) => {
    const { node, weight } = product
    const mapped = named.get(node.name) ?? named.get(weight)
    const name = mapped ?? firstCall(graph, firstCalls, product) ?? moduleName(graph, product)
    const linear: Linear = { ...product, name, isHead: heads.has(product), fused: undefined }
    const isPacked = mapped === undefined || product.form === ATTENTION
    return (isPacked ? packedParts(graph, linear) : undefined) ?? [linear]
  })
}

/** Finds products. A branch that a merge added counts as a part of the layer that it adapts. */
function productsOf(graph: Graph): Product[] {
  const branches = findBranches(graph)
  const products = (nodes: readonly NodeProto[]) => nodes.flatMap((node) => findProduct(graph, node) ?? [])
  if (branches.length === 0) return products(graph.nodes)
  const added = new Set(branches.flatMap(({ nodes }) => nodes))
  const byBase = new Map(branches.map((branch) => [branch.base, branch]))
  return products(graph.nodes.filter((node) => !added.has(node))).map((product) => {
    let { last, output } = product
    for (let branch = byBase.get(output); branch !== undefined; branch = byBase.get(output)) {
      output = branch.output
      last = graph.producer(output) as NodeProto
    }
    return { ...product, last, output }
  })
}

const AFTER_HEAD = new Set(['Add', 'Sub', 'Mul', 'Div', 'Tanh', 'Clip', 'Cast', 'Identity', 'Reshape'])

/** Returns the output `logits`, else the first output. */
export function logitsName(graph: { readonly outputs: readonly { readonly name: Value }[] }): Value {
  return (graph.outputs.find(({ name }) => name === 'logits') ?? graph.outputs[0])?.name ?? ''
}

export function logitsDims(graph: Pick<Graph, 'outputs'>): readonly (number | undefined)[] | undefined {
  return declaredOf(graph.outputs.find(({ name }) => name === logitsName(graph)))?.dims
}

/** Finds the product that makes the logits: one, or one per branch of an If. */
function headsOf(graph: Graph, products: readonly Product[]): Set<Product> {
  const byOutput = new Map(products.map((product) => [product.output, product]))
  const found = new Set<Product>()
  const pending = [logitsName(graph)]
  for (let value = pending.pop(); value !== undefined; value = pending.pop()) {
    const product = byOutput.get(value)
    const node = graph.producer(value)
    if (node === undefined) continue
    const given = graph.given(node, value)?.map((branch) => branch.value)
    if (product !== undefined) found.add(product)
    else if (given !== undefined) pending.push(...given)
    else if (AFTER_HEAD.has(node.opType)) {
      pending.push(...node.input.filter((input) => input !== '' && graph.constant(input) === undefined).slice(0, 1))
    }
  }
  return found
}

/**
 * Returns the Reshapes between a head and its logits if each row of the logits depends only on that row of the head's
 * output, which nothing else reads. Else undefined. PyTorch's exporter writes a head with a bias as a Gemm on rows
 * between two Reshapes.
 */
export function rowsOfHead(graph: Graph, head: Linear, logits: Value): NodeProto[] | undefined {
  const reshapes: NodeProto[] = []
  let value = logits
  while (value !== head.output) {
    const node = graph.producer(value)
    if (node === undefined || !AFTER_HEAD.has(node.opType)) return undefined
    if (graph.consumers(value).length > 1) return undefined
    if (node.opType === 'Reshape') {
      if (lastOf(graph, node.input[1]) !== head.d) return undefined
      reshapes.push(node)
      value = node.input[0]
      continue
    }
    let computed: Value | undefined
    for (const input of node.input) {
      if (input === '') continue
      const dims = graph.constant(input)?.dims
      if (dims === undefined) computed = input
      else if (dims.slice(0, -1).some((dim) => dim !== 1n) || dims.length > 2) return undefined
    }
    if (computed === undefined) return undefined
    value = computed
  }
  return graph.consumers(value).length === 1 ? reshapes : undefined
}

/** The last entry of a vector of integers, as far as the graph tells. */
function lastOf(graph: Graph, value: Value): number | undefined {
  const maker = graph.producer(value)
  return maker?.opType === 'Concat' ? lastOf(graph, maker.input.at(-1)!) : graph.integers(value)?.at(-1)
}

/** Turns onnxruntime-genai's names into transformers': model.layers.0.attn.q_proj → model.layers.0.self_attn.q_proj. */
function withAliases(name: string): string {
  return name
    .replace(/(\blayers\.\d+)\.attn\.(?=(q|k|v|o|qkv)_proj$|(q|k)_norm$)/, '$1.self_attn.')
    .replace(/\blayers\.\d+\.final_norm_layernorm$/, 'norm')
}

/** Takes layers out of operators such as Attention, so that their outputs can be changed. */
export function exposeProducts(graph: Graph, linears: readonly Linear[]): Linear[] {
  const exposed = new Map<NodeProto, Product>()
  return linears.map((linear) => {
    if (linear.form.expose === undefined) return linear
    const product =
      exposed.get(linear.node) ?? linear.form.expose(graph, { ...linear, d: linear.fused?.width ?? linear.d })
    exposed.set(linear.node, product)
    const { form, node, last, input, output, bias } = product
    return { ...linear, form, node, last, input, output, bias }
  })
}

/** Names the first call of a module: PyTorch's exporter numbers later ones, as in query_proj_1. */
function firstCall(graph: Graph, others: Map<string, Product>, product: Product): string | undefined {
  const name = moduleName(graph, product)
  const first = name.replace(/_\d+(?=\.|$)/g, '')
  const firstProduct = others.get(first)
  if (first === name || firstProduct === undefined) {
    others.set(name, product)
    return undefined
  }
  const isSame = product.weight === firstProduct.weight || biasModule(graph, product) === first
  return isSame ? first : undefined
}

function moduleName(graph: Graph, product: Product): string {
  const { node, weight, output, form } = product
  // The optimizer renames these nodes, but not their outputs.
  if (form === ATTENTION) return nodeScope(node) ?? pathScope(output) ?? node.name
  const scoped = scopeName(node)
  if (scoped !== undefined) return scoped
  const name = nodeModule(node.name) ?? parameterModule(weight) ?? biasModule(graph, product) ?? node.name
  return withAliases(name === '' ? output : name)
}

/**
 * Finds the module of a node in the list that torch.onnx's dynamo exporter writes: `['', …,
 * 'model.layers.0.self_attn.q_proj', 'linear']`.
 */
function scopeName(node: NodeProto): string | undefined {
  const scopes = node.metadataProps.find(({ key }) => key === SCOPES)?.value
  return (scopes && scopesIn(scopes).at(-2)) || undefined
}

export const SCOPES = 'pkg.torch.onnx.name_scopes'

export function scopesIn(list: string): string[] {
  return [...list.matchAll(/'([^']*)'/g)].map((match) => match[1])
}

export function nodeScope(node: NodeProto): string | undefined {
  return scopeName(node) ?? pathScope(node.name)
}

/** Turns a node's name into a module: /model/layers.0/self_attn/Reshape_1 → model.layers.0.self_attn */
function pathScope(name: string): string | undefined {
  const segments = name.replace(/^\//, '').split('/').slice(0, -1)
  return segments.length === 0 ? undefined : withAliases(segments.join('.'))
}

/** /model/layers.0/self_attn/q_proj/MatMul → model.layers.0.self_attn.q_proj */
function nodeModule(name: string): string | undefined {
  const segments = name.replace(/^\//, '').split('/')
  if (/^(MatMul|Gemm)/.test(segments[segments.length - 1])) segments.pop()
  else if (segments.length === 1) return undefined
  return segments.length === 0 ? undefined : segments.join('.')
}

/**
 * Turns a weight's name into its module: model.layers.0.self_attn.q_proj.weight → model.layers.0.self_attn.q_proj.
 * Returns undefined for a name such as onnx::MatMul_203.
 */
export function parameterModule(name: string): string | undefined {
  if (name.includes('::') || name.includes('/')) return undefined
  return /^(.+?)(?:\.MatMul)?\.(?:q?weight|bias)(?:_\w+)?$/.exec(name)?.[1]
}

function biasModule(graph: Graph, { node, output }: Product): string | undefined {
  if (node.opType === 'Gemm' && node.input.length > 2) return parameterModule(node.input[2])
  const [next, ...others] = graph.consumers(output)
  if (next?.opType !== 'Add' || others.length > 0) return undefined
  return next.input.filter((input) => graph.initializers.has(input)).map(parameterModule)[0]
}
