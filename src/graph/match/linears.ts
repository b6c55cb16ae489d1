// Finds the linear layers of a graph. Names come from nodes: exporters share equal initializers under another layer's
// name.

import type { NodeProto } from '../../formats/onnx/tensors.js'
import type { Value } from '../view/builder.js'
import { declaredOf, type Graph } from '../view/graph.js'
import { ATTENTION } from './forms/attention.js'
import type { Linear, NamedLayer, Product } from './forms/form.js'
import { findProduct } from './forms/forms.js'
import { findBranches } from './merged-branches.js'
import { packedParts } from './packed.js'

export type { Linear, NamedLayer }

/** Module name → name of the node, or of the weight's initializer: where the graph's own names do not tell. */
export type ModuleMap = Readonly<Record<string, string>>

/** In the graph's order. A module that is called twice appears twice, under one name. */
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

/** Branches that a merge has added are a part of what they stand beside. */
function productsOf(graph: Graph): Product[] {
  const branches = findBranches(graph)
  const products = (nodes: readonly NodeProto[]) => nodes.flatMap((node) => findProduct(graph, node) ?? [])
  if (branches.length === 0) return products(graph.nodes)
  const own = new Set(branches.flatMap(({ nodes }) => nodes))
  const byBase = new Map(branches.map((branch) => [branch.base, branch]))
  return products(graph.nodes.filter((node) => !own.has(node))).map((product) => {
    let { last, output } = product
    for (let branch = byBase.get(output); branch !== undefined; branch = byBase.get(output)) {
      output = branch.output
      last = graph.producer(output) as NodeProto
    }
    return { ...product, last, output }
  })
}

const AFTER_HEAD = new Set(['Add', 'Sub', 'Mul', 'Div', 'Tanh', 'Clip', 'Cast', 'Identity', 'Reshape'])

/** The output of that name, else the first. */
export function logitsName(graph: { readonly outputs: readonly { readonly name: Value }[] }): Value {
  return (graph.outputs.find(({ name }) => name === 'logits') ?? graph.outputs[0])?.name ?? ''
}

export function logitsDims(graph: Pick<Graph, 'outputs'>): readonly (number | undefined)[] | undefined {
  return declaredOf(graph.outputs.find(({ name }) => name === logitsName(graph)))?.dims
}

/** One, or one of each branch of an If. */
function headsOf(graph: Graph, products: readonly Product[]): Set<Product> {
  const byOutput = new Map(products.map((product) => [product.output, product]))
  const found = new Set<Product>()
  const pending = [logitsName(graph)]
  for (let value = pending.pop(); value !== undefined; value = pending.pop()) {
    const product = byOutput.get(value)
    const node = graph.producer(value)
    if (node === undefined) continue
    const given = graph.given(node, value)?.map((one) => one.value)
    if (product !== undefined) found.add(product)
    else if (given !== undefined) pending.push(...given)
    else if (AFTER_HEAD.has(node.opType)) {
      pending.push(...node.input.filter((input) => input !== '' && graph.constant(input) === undefined).slice(0, 1))
    }
  }
  return found
}

/** True if only ops that treat each row for itself lie between a layer and the logits, and nothing else reads them. */
export function reachesRowWise(graph: Graph, head: Linear, logits: Value): boolean {
  let value = logits
  while (value !== head.output) {
    const node = graph.producer(value)
    if (node === undefined || node.opType === 'Reshape' || !AFTER_HEAD.has(node.opType)) return false
    if (graph.consumers(value).length > 1) return false
    let computed: Value | undefined
    for (const input of node.input) {
      if (input === '') continue
      const dims = graph.constant(input)?.dims
      if (dims === undefined) computed = input
      else if (dims.slice(0, -1).some((dim) => dim !== 1n) || dims.length > 2) return false
    }
    if (computed === undefined) return false
    value = computed
  }
  return graph.consumers(value).length === 1
}

/**
 * transformers' names for what onnxruntime-genai shortens, or calls by the number of layers: model.layers.0.attn.q_proj
 * → model.layers.0.self_attn.q_proj, model.layers.2.final_norm_layernorm → model.norm.
 */
function withAliases(name: string): string {
  return name
    .replace(/(\blayers\.\d+)\.attn\.(?=(q|k|v|o|qkv)_proj$|(q|k)_norm$)/, '$1.self_attn.')
    .replace(/\blayers\.\d+\.final_norm_layernorm$/, 'norm')
}

/** Takes layers out of the operators that they are a part of, so that what they give can be changed. */
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

/** PyTorch's exporter numbers further calls of a module: query_proj_1 has the weight of query_proj, or its bias. */
function firstCall(graph: Graph, others: Map<string, Product>, product: Product): string | undefined {
  const name = moduleName(graph, product)
  const first = name.replace(/_\d+(?=\.|$)/g, '')
  const other = others.get(first)
  if (first === name || other === undefined) {
    others.set(name, product)
    return undefined
  }
  const isSame = product.weight === other.weight || biasModule(graph, product) === first
  return isSame ? first : undefined
}

function moduleName(graph: Graph, product: Product): string {
  const { node, weight, output, form } = product
  // The optimizer names such nodes anew, but not what they give.
  if (form === ATTENTION) return nodeScope(node) ?? pathScope(output) ?? node.name
  const name =
    scopeName(node) ?? nodeModule(node.name) ?? parameterModule(weight) ?? biasModule(graph, product) ?? node.name
  return withAliases(name === '' ? output : name)
}

/**
 * torch.onnx's dynamo exporter writes a Python list, outermost first: `['', 'model', …,
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

/** /model/layers.0/self_attn/Reshape_1 → model.layers.0.self_attn */
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

/** model.layers.0.self_attn.q_proj.weight → model.layers.0.self_attn.q_proj; none for names such as onnx::MatMul_203 */
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
