// Finds the linear layers of a graph and gives each the name of its module in the original model. Names come from
// nodes: exporters share equal initializers under another layer's name.

import { TensorProto_DataType as DataType, type NodeProto, type TensorProto } from '../../formats/onnx/gen/onnx_pb.js'
import { dimsOf } from '../../formats/onnx/tensors.js'
import { intAttribute, intsAttribute } from '../view/attributes.js'
import type { Value } from '../view/builder.js'
import type { Graph } from '../view/graph.js'

/** One linear layer: output (…, d) = input (…, k) @ weight, or some columns of a matmul that computes several layers. */
export interface Linear {
  /** Module name, as in PEFT's files: model.layers.0.self_attn.q_proj */
  readonly name: string
  readonly node: NodeProto
  readonly kind: 'matmul' | 'gemm' | 'quantized'
  /** Name of the initializer. */
  readonly weight: string
  /** Type that the node computes in. */
  readonly dataType: DataType
  /** The initializer is stored (d, k), not (k, d). */
  readonly transposed: boolean
  readonly k: number
  readonly d: number
  readonly input: Value
  readonly output: Value
  /** Whether it is the output embedding. */
  readonly isHead: boolean
  /** Where this layer's d columns begin in the node's output, when the node computes several layers at once. */
  readonly fused: { readonly module: string; readonly start: number; readonly width: number } | undefined
}

/** Module name → name of the node, or of the weight's initializer: where the graph's own names do not tell. */
export type ModuleMap = Readonly<Record<string, string>>

interface Weight {
  readonly name: string
  readonly tensor: TensorProto
  readonly transposed: boolean
  /** After any Cast. */
  readonly dataType: DataType
}

/** All linear layers in the graph's order. A module that is called twice appears twice, under one name. */
export function findLinears(graph: Graph, modules: ModuleMap = {}): Linear[] {
  const heads = headNodes(graph)
  const named = new Map(Object.entries(modules).map(([module, name]) => [name, module]))
  const linears: Linear[] = []
  for (const node of graph.nodes) {
    const shape = linearShape(graph, node)
    if (shape === undefined) continue
    const { weight } = shape
    const mapped = named.get(node.name) ?? named.get(weight.name)
    const linear: Linear = {
      name: mapped ?? moduleName(graph, node, weight.name),
      node,
      kind: shape.kind,
      weight: weight.name,
      dataType: weight.dataType,
      transposed: weight.transposed,
      k: shape.k,
      d: shape.d,
      input: node.input[0],
      output: node.output[0],
      isHead: heads.has(node),
      fused: undefined,
    }
    const parts = mapped === undefined ? fusedParts(graph, linear) : undefined
    linears.push(...(parts ?? [linear]))
  }
  return linears
}

function linearShape(
  graph: Graph,
  node: NodeProto,
): { kind: Linear['kind']; weight: Weight; k: number; d: number } | undefined {
  if (node.opType === 'MatMulNBits' && node.domain === 'com.microsoft') {
    const tensor = graph.constant(node.input[1])
    const scales = graph.constant(node.input[2])
    if (tensor === undefined) return undefined
    const weight = { name: node.input[1], tensor, transposed: true, dataType: scales?.dataType ?? DataType.FLOAT }
    return { kind: 'quantized', weight, k: intAttribute(node, 'K', 0), d: intAttribute(node, 'N', 0) }
  }
  if (node.opType !== 'MatMul' && node.opType !== 'Gemm') return undefined
  const transB = node.opType === 'Gemm' && intAttribute(node, 'transB', 0) === 1
  if (node.opType === 'Gemm' && intAttribute(node, 'transA', 0) === 1) return undefined
  const weight = constantWeight(graph, node.input[1], transB)
  if (weight === undefined) return undefined
  const dims = dimsOf(weight.tensor)
  const [k, d] = weight.transposed ? [dims[1], dims[0]] : dims
  return { kind: node.opType === 'Gemm' ? 'gemm' : 'matmul', weight, k, d }
}

/** The 2-D float initializer behind a value, through Transpose, Cast and Identity. */
export function constantWeight(graph: Graph, value: Value, transposed: boolean, castTo?: DataType): Weight | undefined {
  const node = graph.producer(value)
  if (node?.opType === 'Transpose') {
    const perm = intsAttribute(node, 'perm')
    const isSwap = perm === undefined || (perm[0] === 1 && perm[1] === 0)
    return isSwap ? constantWeight(graph, node.input[0], !transposed, castTo) : undefined
  }
  if (node?.opType === 'Cast') {
    return constantWeight(graph, node.input[0], transposed, castTo ?? intAttribute(node, 'to', DataType.FLOAT))
  }
  const tensor = graph.constant(value)
  const isFloat = [DataType.FLOAT, DataType.FLOAT16, DataType.BFLOAT16, DataType.DOUBLE].includes(tensor?.dataType ?? 0)
  if (tensor === undefined || !isFloat || tensor.dims.length !== 2) return undefined
  const name = tensor.name !== '' && graph.initializers.has(tensor.name) ? tensor.name : value
  return { name, tensor, transposed, dataType: castTo ?? tensor.dataType }
}

/** Ops that may stand between the output embedding and the logits. */
const AFTER_HEAD = new Set(['Add', 'Sub', 'Mul', 'Div', 'Tanh', 'Clip', 'Cast', 'Identity', 'Reshape'])

/** The graph output that holds the logits: the one of that name, else the first. */
export function logitsName(graph: { readonly outputs: readonly { readonly name: Value }[] }): Value {
  return (graph.outputs.find(({ name }) => name === 'logits') ?? graph.outputs[0])?.name ?? ''
}

/** The linear layers that give the logits: one, or one of each branch of an If. */
function headNodes(graph: Graph): Set<NodeProto> {
  const found = new Set<NodeProto>()
  const pending = [logitsName(graph)]
  for (let value = pending.pop(); value !== undefined; value = pending.pop()) {
    const node = graph.producer(value)
    if (node === undefined) continue
    const given = graph.given(node, value)?.map((one) => one.value)
    if (linearShape(graph, node) !== undefined) found.add(node)
    else if (given !== undefined) pending.push(...given)
    else if (AFTER_HEAD.has(node.opType)) {
      pending.push(...node.input.filter((input) => input !== '' && graph.constant(input) === undefined).slice(0, 1))
    }
  }
  return found
}

/** Whether only ops that treat each row for itself, and keep its place, lie between a layer and the logits, and nothing else reads them. */
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

/** model.layers.0.attn.q_proj → model.layers.0.self_attn.q_proj, as transformers names what onnxruntime-genai shortens. */
function withAliases(name: string): string {
  return name.replace(/(\blayers\.\d+)\.attn\.(?=(q|k|v|o|qkv)_proj$)/, '$1.self_attn.')
}

function moduleName(graph: Graph, node: NodeProto, weight: string): string {
  const name =
    scopeName(node) ?? nodeModule(node.name) ?? parameterModule(weight) ?? biasModule(graph, node) ?? node.name
  return withAliases(name === '' ? node.output[0] : name)
}

/**
 * The module in a node's metadata, as torch.onnx's dynamo exporter writes it: the Python list
 * `['', 'model', …, 'model.layers.0.self_attn.q_proj', 'linear']`, outermost first.
 */
function scopeName(node: NodeProto): string | undefined {
  const scopes = node.metadataProps.find(({ key }) => key === 'pkg.torch.onnx.name_scopes')?.value
  if (scopes === undefined) return undefined
  const names = [...scopes.matchAll(/'([^']*)'/g)].map((match) => match[1])
  const module = names.at(-2)
  return module === undefined || module === '' ? undefined : module
}

/** The module that a node of any kind belongs to, from its metadata or its name. */
export function nodeScope(node: NodeProto): string | undefined {
  const segments = node.name.replace(/^\//, '').split('/').slice(0, -1)
  return scopeName(node) ?? (segments.length === 0 ? undefined : withAliases(segments.join('.')))
}

/** /model/layers.0/self_attn/q_proj/MatMul → model.layers.0.self_attn.q_proj */
function nodeModule(name: string): string | undefined {
  const segments = name.replace(/^\//, '').split('/')
  if (/^(MatMul|Gemm)/.test(segments[segments.length - 1])) segments.pop()
  else if (segments.length === 1) return undefined
  return segments.length === 0 ? undefined : segments.join('.')
}

/** model.layers.0.self_attn.q_proj.weight → model.layers.0.self_attn.q_proj; made-up names such as onnx::MatMul_203 → none */
export function parameterModule(name: string): string | undefined {
  if (name.includes('::') || name.includes('/')) return undefined
  return /^(.+?)(?:\.MatMul)?\.(?:weight|bias)(?:_\w+)?$/.exec(name)?.[1]
}

function biasModule(graph: Graph, node: NodeProto): string | undefined {
  if (node.opType === 'Gemm' && node.input.length > 2) return parameterModule(node.input[2])
  const [next, ...others] = graph.consumers(node.output[0])
  if (next?.opType !== 'Add' || others.length > 0) return undefined
  return next.input.filter((input) => graph.initializers.has(input)).map(parameterModule)[0]
}

/**
 * The query, key and value layers of a `qkv_proj` that feeds an attention operator, as onnxruntime-genai packs them.
 * Widths follow from the operator's numbers of heads.
 */
function fusedParts(graph: Graph, linear: Linear): Linear[] | undefined {
  if (!linear.name.endsWith('.qkv_proj')) return undefined
  let consumers = graph.consumers(linear.output)
  if (consumers.length === 1 && consumers[0].opType === 'Add') consumers = graph.consumers(consumers[0].output[0])
  const attention = consumers.find(({ opType }) => opType === 'GroupQueryAttention' || opType === 'MultiHeadAttention')
  if (attention === undefined) return undefined
  const heads = intAttribute(attention, 'num_heads', 1)
  const kvHeads = intAttribute(attention, 'kv_num_heads', heads)
  const headSize = linear.d / (heads + 2 * kvHeads)
  if (!Number.isInteger(headSize)) return undefined
  const scope = linear.name.slice(0, -'qkv_proj'.length)
  let start = 0
  return [
    ['q_proj', heads * headSize] as const,
    ['k_proj', kvHeads * headSize] as const,
    ['v_proj', kvHeads * headSize] as const,
  ].map(([name, d]) => {
    const fused = { module: linear.name, start, width: linear.d }
    start += d
    return { ...linear, name: scope + name, d, fused }
  })
}
