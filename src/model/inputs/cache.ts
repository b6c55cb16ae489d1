// Key-value caches: their inputs and outputs, and empty ones.

import { UnsupportedError } from '../../core/base/errors.js'
import type { NodeProto, ValueInfoProto } from '../../onnx/format/tensors.js'
import type { RuntimeTensor, TensorType } from '../../onnx/runtime/runtime.js'
import { intAttribute } from '../../onnx/view/attributes.js'
import type { Graph } from '../../onnx/view/graph.js'
import { operatorOf } from '../../onnx/view/operators.js'
import { dimsOfInput, TYPES, typeOf } from '../../onnx/view/value-info.js'
import { widthOf } from '../../onnx/view/widths.js'
import { nodeScope } from '../match/linears.js'

export interface CacheEntry {
  readonly past: string
  readonly present: string
  readonly type: TensorType
  /** Axis of past tokens; undefined for a state of fixed size, as of convolutions and linear attention. */
  readonly axis: number | undefined
  /** The shape of the cache. The batch and the number of past tokens are undefined. */
  readonly dims: readonly (number | undefined)[]
  /** True if the cache holds keys or values of the encoder's states: only the first run computes them. */
  readonly isOfEncoder: boolean
}

export function isCacheInput(input: ValueInfoProto): boolean {
  return /^past/.test(input.name) && typeOf(input) !== undefined
}

/** onnxruntime-genai gives sliding windows (Gemma 2) a fixed size; without it, a text can begin with an empty cache. */
export function growWindows(graph: Graph): void {
  for (const node of graph.nodes) {
    if (node.opType !== 'GroupQueryAttention') continue
    node.attribute = node.attribute.filter(({ name }) => name !== 'sliding_window_cache')
  }
}

/** The input of a merged decoder that chooses between the branch with a cache and the branch for the first tokens. */
const BRANCH = 'use_cache_branch'

export function cacheBranches(graph: Graph): NodeProto[] {
  return graph.nodes.filter(({ opType, input }) => opType === 'If' && input[0] === BRANCH)
}

export function takeBranchWithoutCache(graph: Graph): void {
  for (const node of cacheBranches(graph)) graph.takeBranch(node, 'else_branch')
}

/** Operators that add rows to a cache, or write them into one of a fixed size. */
const ADDS_ROWS = /(?<!Linear)Attention$|^Concat$|Scatter/

/**
 * True for the last inputs of a convolution, (batch, channels, width), and for recurrent states, such as (batch, heads,
 * key size, value size). They have a fixed size, and begin as zeros.
 */
export function isState(graph: Graph, input: ValueInfoProto): boolean {
  const [, ...size] = dimsOfInput(input)
  const isRecurrent = () => !readersOf(graph, input.name).some(({ opType }) => ADDS_ROWS.test(opType))
  return size.length > 1 && size.every((dim) => dim !== undefined) && (size.length === 2 || isRecurrent())
}

function readersOf(graph: Graph, value: string): NodeProto[] {
  return graph.consumers(value).flatMap((node) => (node.opType === 'Cast' ? readersOf(graph, node.output[0]) : [node]))
}

function groupQueryAttention(graph: Graph, past: string): NodeProto | undefined {
  return readersOf(graph, past).find(({ opType }) => opType === 'GroupQueryAttention')
}

type CacheLayout = Pick<CacheEntry, 'past' | 'type' | 'axis' | 'dims'>

export function cacheLayout(graph: Graph, input: ValueInfoProto): CacheLayout {
  const { name: past } = input
  const type = typeOf(input) as TensorType
  const dims = dimsOfInput(input)
  if (isState(graph, input)) return { past, type, axis: undefined, dims: [undefined, ...dims.slice(1)] }
  // (batch, heads, past, head size), except in old Bloom exports, which have another rank and are refused.
  const headSize = headSizeOf(graph, input)
  if (dims.length === 4 && dims[1] !== undefined && headSize !== undefined)
    return { past, type, axis: 2, dims: [undefined, dims[1], undefined, headSize] }
  const attention = dims.length === 4 ? groupQueryAttention(graph, past) : undefined
  const reader = attention ?? readersOf(graph, past)[0]
  throw new UnsupportedError({
    where: (reader && nodeScope(reader)) ?? `input ${past}`,
    what: `the sizes of the cache ${past} cannot be told${reader ? ` from the operator ${operatorOf(reader)}` : ''}${
      attention === undefined ? '' : `, because nothing tells the width of its query ${attention.input[0]}`
    }`,
    expected: `an input (batch, heads, past length, head size) with numbers for the second and last${
      attention === undefined ? ', or GroupQueryAttention' : ''
    }`,
    got: `(${dims.map((dim) => dim ?? '?').join(', ')})`,
    hint: 'Export the model in another way: with the sizes, or with attention as ordinary operators',
  })
}

/** Throws UnsupportedError if the layout is unknown, or if no output continues the cache. */
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

/** Returns the declared size, or the width of the query of the attention that reads the cache, over its heads. */
export function headSizeOf(graph: Graph, past: ValueInfoProto): number | undefined {
  const declared = dimsOfInput(past)[3]
  if (declared !== undefined) return declared
  const attention = groupQueryAttention(graph, past.name)
  if (attention === undefined) return undefined
  const heads = intAttribute(attention, 'num_heads', 1)
  const isPacked = (attention.input[1] ?? '') === ''
  const width = widthOf(graph, attention.input[0])
  return width === undefined
    ? undefined
    : width / (isPacked ? heads + 2 * intAttribute(attention, 'kv_num_heads', heads) : heads)
}

/** Makes a cache without tokens, or a state of zeros. */
export function emptyTensor({ past, type, dims, axis }: CacheLayout, batch: number): RuntimeTensor {
  const [, DataArray] = Object.values(TYPES).find((entry) => entry?.[0] === type && /^float/.test(type)) ?? []
  if (DataArray === undefined)
    throw new UnsupportedError({ where: `input ${past}`, what: 'a cache of this type', got: type })
  const shape = dims.map((dim, i) => (i === axis ? 0 : (dim ?? batch)))
  return { type, data: new DataArray(shape.reduce((product, dim) => product * dim, 1)), dims: shape }
}
