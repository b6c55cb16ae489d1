// Key-value caches: which inputs and outputs hold them, and an empty one.

import { UnsupportedError } from '../../base/errors.js'
import { dimsOf, type NodeProto, type ValueInfoProto } from '../../formats/onnx/tensors.js'
import type { RuntimeTensor, TensorType } from '../../runtime/runtime.js'
import { intAttribute } from '../view/attributes.js'
import type { Graph } from '../view/graph.js'
import { dimsOfInput, splitInputs, TYPES, typeOf } from './roles.js'

export interface CacheEntry {
  readonly past: string
  readonly present: string
  readonly type: TensorType
  /** Axis of the number of past tokens; undefined for states of fixed size: of convolutions and linear attention. */
  readonly axis: number | undefined
  /** `batch` and the length of the past (at `axis`) are undefined. */
  readonly dims: readonly (number | undefined)[]
  /** It holds what a decoder made of its encoder, which the first run gives and later ones do not. */
  readonly isOfEncoder: boolean
}

export function isCacheInput(input: ValueInfoProto): boolean {
  return /^past/.test(input.name) && typeOf(input) !== undefined
}

/** In training nothing is in the cache. */
export function dropEmptyCache(graph: Graph): void {
  const empty = splitInputs(graph).others.filter(isCacheInput)
  const open = empty.map(({ name }) => name)
  for (let past = open.pop(); past !== undefined; past = open.pop()) {
    for (const node of graph.consumers(past)) {
      const [other, ...more] = node.input.filter((input) => input !== past)
      if (node.opType !== 'Concat' || more.length > 0) continue
      // Exporters also write a Concat of the cache alone.
      if (other === undefined) open.push(node.output[0])
      else graph.replaceUses(node.output[0], other)
    }
  }
}

/** onnxruntime-genai writes sliding windows (Gemma 2) with a fixed size, so that no text can begin without a cache. */
export function growWindows(graph: Graph): void {
  for (const node of graph.nodes) {
    if (node.opType !== 'GroupQueryAttention') continue
    node.attribute = node.attribute.filter(({ name }) => name !== 'sliding_window_cache')
  }
}

/** A merged decoder has a branch that reads a cache, and one for the first tokens. */
const BRANCH = 'use_cache_branch'

export function cacheBranches(graph: Graph): NodeProto[] {
  return graph.nodes.filter(({ opType, input }) => opType === 'If' && input[0] === BRANCH)
}

export function takeBranchWithoutCache(graph: Graph): void {
  for (const node of cacheBranches(graph)) graph.takeBranch(node, 'else_branch')
}

type CacheLayout = Pick<CacheEntry, 'past' | 'type' | 'axis' | 'dims'>

export function cacheLayout(graph: Graph, input: ValueInfoProto): CacheLayout {
  const { name: past } = input
  const type = typeOf(input) as TensorType
  const dims = dimsOfInput(input)
  // The last inputs of a convolution, (batch, channels, width), or the state of linear attention, (batch, heads, key
  // size, value size): as large in each run, and zeros before the first.
  const isState = graph
    .consumers(past)
    .some(({ opType }) => /^(CausalConvWithState|LinearAttention|GatedDeltaNet)$/.test(opType))
  const [, ...size] = dims
  if (isState && size.every((dim) => dim !== undefined))
    return { past, type, axis: undefined, dims: [undefined, ...size] }
  // (batch, heads, past, head size) everywhere but in old Bloom exports, which are refused by their rank.
  if (dims.length !== 4 || dims[1] === undefined) {
    throw new UnsupportedError({
      where: `input ${past}`,
      what: 'a cache of unknown layout',
      expected: '(batch, heads, past length, head size)',
      got: `(${dims.map((dim) => dim ?? '?').join(', ')})`,
    })
  }
  const headSize = headSizeOf(graph, input)
  if (headSize === undefined) {
    throw new UnsupportedError({ where: `input ${past}`, what: 'the size of its heads cannot be told' })
  }
  return { past, type, axis: 2, dims: [undefined, dims[1], undefined, headSize] }
}

/** Throws UnsupportedError for a cache of unknown layout, or that no output continues. */
export function cacheEntry(graph: Graph, input: ValueInfoProto): CacheEntry {
  const layout = cacheLayout(graph, input)
  const isOfEncoder = /(^|\.)encoder\./.test(input.name)
  return { ...layout, present: presentName(graph, input.name), isOfEncoder }
}

/** past_key_values.0.key → present.0.key or present_key_values.0.key, past_0 → present_0. */
function presentName(graph: Graph, past: string): string {
  const wanted = [past.replace('past_key_values', 'present'), past.replace('past', 'present')]
  const output = graph.outputs.find(({ name }) => wanted.includes(name))
  if (output !== undefined) return output.name
  throw new UnsupportedError({
    where: `input ${past}`,
    what: 'no output continues this cache',
    expected: wanted.join(' or '),
    got: `outputs ${graph.outputs.map(({ name }) => name).join(', ')}`,
  })
}

/** As declared, or from the attention that reads the cache: the width of its query over the number of heads. */
export function headSizeOf(graph: Graph, past: ValueInfoProto): number | undefined {
  const declared = dimsOfInput(past)[3]
  if (declared !== undefined) return declared
  const attention = graph.consumers(past.name).find(({ opType }) => opType === 'GroupQueryAttention')
  if (attention === undefined) return undefined
  const heads = intAttribute(attention, 'num_heads', 1)
  const isPacked = (attention.input[1] ?? '') === ''
  const width = widthOf(graph, attention.input[0])
  return width === undefined
    ? undefined
    : width / (isPacked ? heads + 2 * intAttribute(attention, 'kv_num_heads', heads) : heads)
}

const SAME_WIDTH = new Set(
  'RotaryEmbedding MRotaryEmbedding Add Cast Identity Mul Sub Div Neg Softplus Sigmoid Exp Clip LpNormalization'.split(
    ' ',
  ),
)

/** The length of the last axis of a value (B, T, …), as far as the graph tells. */
export function widthOf(graph: Graph, value: string): number | undefined {
  const declared = graph.declared(value)?.dims?.at(-1)
  const node = graph.producer(value)
  if (declared !== undefined || node === undefined) return declared
  if (node.opType === 'MatMul') {
    const weight = graph.constant(node.input[1])
    return weight === undefined ? undefined : dimsOf(weight).at(-1)
  }
  if (node.opType === 'MatMulNBits') return intAttribute(node, 'N', 0)
  if (node.opType === 'Reshape') {
    // Behind a norm of each head.
    const last = graph.integers(node.input[1])?.at(-1)
    return last !== undefined && last > 0 ? last : undefined
  }
  if (node.opType === 'Split') {
    const sizes = graph.integers(node.input[1])
    return [-1, 2].includes(intAttribute(node, 'axis', 0)) ? sizes?.[node.output.indexOf(value)] : undefined
  }
  if (!SAME_WIDTH.has(node.opType)) return undefined
  const widths = node.input.flatMap((input) => widthOf(graph, input) ?? [])
  return widths.length === 0 ? undefined : Math.max(...widths)
}

/** No tokens, and zeros as the state of a convolution. */
export function emptyTensor({ past, type, dims, axis }: CacheLayout, batch: number): RuntimeTensor {
  const [, DataArray] = Object.values(TYPES).find((own) => own?.[0] === type && /^float/.test(type)) ?? []
  if (DataArray === undefined)
    throw new UnsupportedError({ where: `input ${past}`, what: 'a cache of this type', got: type })
  const shape = dims.map((dim, i) => (i === axis ? 0 : (dim ?? batch)))
  return { type, data: new DataArray(shape.reduce((product, dim) => product * dim, 1)), dims: shape }
}
