// What a causal language model's inputs and outputs mean, whichever exporter made the graph, and the feeds for them.

import { UnsupportedError } from '../../base/errors.js'
import { TensorProto_DataType as DataType, type ValueInfoProto } from '../../formats/onnx/gen/onnx_pb.js'
import { dimsOf } from '../../formats/onnx/tensors.js'
import type { Feeds, RuntimeTensor, TensorData, TensorType } from '../../runtime/runtime.js'
import { logitsName } from '../match/linears.js'
import { intAttribute } from '../view/attributes.js'
import type { Graph } from '../view/graph.js'

/** One tensor of the key-value cache: the input that takes it and the output that gives its successor. */
export interface CacheEntry {
  readonly past: string
  readonly present: string
  readonly type: TensorType
  /** Axis of the number of past tokens. */
  readonly axis: number
  /** Its shape; `batch` and the length of the past (at `axis`) are undefined. */
  readonly dims: readonly (number | undefined)[]
}

/** Tokens to feed: row-major (batch, sequence). */
export interface TokenInput {
  readonly batch: number
  readonly sequence: number
  readonly inputIds: ArrayLike<number | bigint>
  /** (batch, past + sequence): 1 for real tokens, 0 for padding. */
  readonly attentionMask: ArrayLike<number | bigint>
  /** Tokens already in the cache. Default 0. */
  readonly past?: number
}

export interface CausalInputs {
  readonly logits: string
  /** Empty if the model has no cache. */
  readonly cache: readonly CacheEntry[]
  /** All feeds except the cache. Positions count the real tokens of each row. */
  feeds(tokens: TokenInput): Feeds
  /** An empty cache, as a first call and training need it. */
  emptyCache(batch: number): Feeds
}

type Role =
  | 'inputIds'
  | 'attentionMask'
  | 'positionIds'
  | 'tokenTypeIds'
  | 'logitsToKeep'
  | 'seqlensK'
  | 'totalLength'
  | 'pastLength'
  | 'cachePosition'

/** Input names by role, as optimum, transformers.js and onnxruntime-genai use them. */
const ROLES: Readonly<Record<string, Role>> = {
  input_ids: 'inputIds',
  attention_mask: 'attentionMask',
  position_ids: 'positionIds',
  token_type_ids: 'tokenTypeIds',
  num_logits_to_keep: 'logitsToKeep',
  logits_to_keep: 'logitsToKeep',
  seqlens_k: 'seqlensK',
  total_sequence_length: 'totalLength',
  total_seq_len: 'totalLength',
  past_sequence_length: 'pastLength',
  past_seq_len: 'pastLength',
  cache_position: 'cachePosition',
}

/** Names of inputs that take a cache. */
const CACHE_INPUT = /^past/

const TYPES: Partial<Record<DataType, TensorType>> = {
  [DataType.FLOAT]: 'float32',
  [DataType.FLOAT16]: 'float16',
  [DataType.DOUBLE]: 'float64',
  [DataType.INT64]: 'int64',
  [DataType.INT32]: 'int32',
  [DataType.BOOL]: 'bool',
  [DataType.UINT8]: 'uint8',
  [DataType.INT8]: 'int8',
}

/**
 * The roles of a graph's inputs.
 *
 * @throws UnsupportedError naming the inputs whose meaning is not known, or a graph without input_ids
 */
export function causalInputs(graph: Graph): CausalInputs {
  const roles = new Map<Role, { name: string; type: TensorType; rank: number }>()
  const cache: CacheEntry[] = []
  const unknown: string[] = []
  for (const input of graph.inputs) {
    const type = typeOf(input)
    const role = roleOf(input, type)
    if (role !== undefined && type !== undefined) {
      roles.set(role, { name: input.name, type, rank: dimsOfInput(input).length })
    } else if (CACHE_INPUT.test(input.name) && type !== undefined) {
      cache.push(cacheEntry(graph, input, type))
    } else {
      unknown.push(input.name)
    }
  }
  if (unknown.length > 0 || !roles.has('inputIds')) {
    const names = graph.inputs.map(({ name }) => name).join(', ')
    throw new UnsupportedError({
      where: 'ONNX model',
      what: unknown.length > 0 ? `inputs of unknown meaning: ${unknown.join(', ')}` : 'no input named input_ids',
      expected: 'a causal language model: input_ids, attention_mask, position_ids, past_key_values.*',
      got: `inputs ${names}`,
    })
  }
  return {
    logits: logitsName(graph),
    cache,
    feeds(tokens) {
      const feeds: Feeds = {}
      for (const [role, { name, type, rank }] of roles) feeds[name] = roleFeed(role, type, rank, tokens)
      return feeds
    },
    emptyCache(batch) {
      return Object.fromEntries(cache.map((entry) => [entry.past, emptyTensor(entry, batch)]))
    },
  }
}

/**
 * Feeds with what a language model needs besides its tokens, where the caller leaves it out: a mask of ones, positions that count the
 * mask's ones, an empty cache. Inputs of unknown meaning are left to the caller.
 *
 * @throws UnsupportedError when a cache that is left out has an unknown layout
 */
export function completeFeeds(graph: Graph, feeds: Feeds): Feeds {
  const missing = graph.inputs.filter(({ name }) => feeds[name] === undefined)
  const ids = feeds.input_ids
  if (missing.length === 0 || ids?.dims.length !== 2) return feeds
  const [batch, sequence] = ids.dims
  const isCache = (input: ValueInfoProto) => CACHE_INPUT.test(input.name) && roleOf(input, typeOf(input)) === undefined
  const fedCache = graph.inputs.find((input) => isCache(input) && feeds[input.name] !== undefined)
  const past = fedCache === undefined ? 0 : (feeds[fedCache.name].dims.at(-2) ?? 0)
  const inputIds = ids.data as ArrayLike<bigint>
  const mask = feeds.attention_mask?.data as ArrayLike<bigint> | undefined
  const attentionMask = mask ?? new Uint8Array(batch * (past + sequence)).fill(1)
  const tokens = { batch, sequence, past, inputIds, attentionMask }
  const completed = { ...feeds }
  for (const input of missing) {
    const type = typeOf(input)
    if (type === undefined) continue
    const role = roleOf(input, type)
    if (role !== undefined) completed[input.name] = roleFeed(role, type, dimsOfInput(input).length, tokens)
    else if (past === 0 && isCache(input)) {
      completed[input.name] = emptyTensor(cacheEntry(graph, input, type), batch)
    }
  }
  return completed
}

function roleOf({ name }: ValueInfoProto, type: TensorType | undefined): Role | undefined {
  return Object.hasOwn(ROLES, name) && (type === 'int64' || type === 'int32') ? ROLES[name] : undefined
}

function roleFeed(role: Role, type: TensorType, rank: number, tokens: TokenInput): RuntimeTensor {
  const { batch, sequence, past = 0 } = tokens
  const total = past + sequence
  const rows = (width: number, value: (row: number, column: number) => number | bigint): RuntimeTensor => {
    const data = type === 'int64' ? new BigInt64Array(batch * width) : new Int32Array(batch * width)
    for (let i = 0; i < data.length; i++) {
      const entry = value(Math.floor(i / width), i % width)
      data[i] = type === 'int64' ? BigInt(entry) : Number(entry)
    }
    return { type, data, dims: [batch, width] }
  }
  const single = (value: number): RuntimeTensor => ({
    type,
    data: type === 'int64' ? BigInt64Array.of(BigInt(value)) : Int32Array.of(value),
    dims: rank === 0 ? [] : [1],
  })
  switch (role) {
    case 'inputIds':
      return rows(sequence, (row, column) => tokens.inputIds[row * sequence + column])
    case 'attentionMask':
      return rows(total, (row, column) => tokens.attentionMask[row * total + column])
    case 'positionIds': {
      const positions = positionsOf(tokens, total)
      return rows(sequence, (row, column) => positions[row * total + past + column])
    }
    case 'tokenTypeIds':
      return rows(sequence, () => 0)
    case 'cachePosition': {
      const positions = rows(sequence, (_, column) => past + column)
      return rank === 1 ? { ...positions, data: positions.data.slice(0, sequence), dims: [sequence] } : positions
    }
    case 'logitsToKeep':
      return single(0)
    case 'totalLength':
      return single(total)
    case 'pastLength':
      return single(past)
    case 'seqlensK': {
      const column = rows(1, (row) => {
        let real = 0
        for (let i = 0; i < total; i++) real += Number(tokens.attentionMask[row * total + i])
        return real - 1
      })
      return rank === 1 ? { ...column, dims: [batch] } : column
    }
  }
}

/** Position of each token of (batch, total) in its row, not counting padding; padding repeats a neighbour's. */
function positionsOf({ batch, attentionMask }: TokenInput, total: number): Int32Array {
  const positions = new Int32Array(batch * total)
  for (let row = 0; row < batch; row++) {
    let next = 0
    for (let i = row * total; i < (row + 1) * total; i++) {
      if (Number(attentionMask[i]) !== 0) next++
      positions[i] = Math.max(0, next - 1)
    }
  }
  return positions
}

function typeOf(input: ValueInfoProto): TensorType | undefined {
  const value = input.type?.value
  return value?.case === 'tensorType' ? TYPES[value.value.elemType as DataType] : undefined
}

/** Static dimensions of an input; undefined where they are symbolic. */
function dimsOfInput(input: ValueInfoProto): (number | undefined)[] {
  const value = input.type?.value
  if (value?.case !== 'tensorType') return []
  return (value.value.shape?.dim ?? []).map(({ value: dim }) =>
    dim.case === 'dimValue' ? Number(dim.value) : undefined,
  )
}

function cacheEntry(graph: Graph, input: ValueInfoProto, type: TensorType): CacheEntry {
  const dims = dimsOfInput(input)
  // (batch, heads, past, head size) everywhere but in old Bloom exports, which are refused by their rank.
  const axis = dims.length - 2
  if (dims.length !== 4 || dims[1] === undefined) {
    throw new UnsupportedError({
      where: `input ${input.name}`,
      what: 'a cache of unknown layout',
      expected: '(batch, heads, past length, head size)',
      got: `(${dims.map((dim) => dim ?? '?').join(', ')})`,
    })
  }
  const headSize = dims[3] ?? attentionHeadSize(graph, input.name)
  if (headSize === undefined) {
    throw new UnsupportedError({ where: `input ${input.name}`, what: 'the size of its heads cannot be told' })
  }
  const present = presentName(graph, input.name)
  return { past: input.name, present, type, axis, dims: [undefined, dims[1], undefined, headSize] }
}

/** past_key_values.0.key → present.0.key, past_key_values.0.key → present_key_values.0.key, past_0 → present_0. */
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

/** From the attention operator that reads the cache: the width of its query over the number of heads. */
function attentionHeadSize(graph: Graph, past: string): number | undefined {
  const attention = graph.consumers(past).find(({ opType }) => opType === 'GroupQueryAttention')
  if (attention === undefined) return undefined
  const heads = intAttribute(attention, 'num_heads', 1)
  const isPacked = (attention.input[1] ?? '') === ''
  const width = widthOf(graph, attention.input[0])
  return width === undefined
    ? undefined
    : width / (isPacked ? heads + 2 * intAttribute(attention, 'kv_num_heads', heads) : heads)
}

/** Length of a value's last axis, from the weight of the matmul behind it. */
function widthOf(graph: Graph, value: string): number | undefined {
  const node = graph.producer(value)
  if (node === undefined) return undefined
  if (node.opType === 'MatMul') {
    const weight = graph.constant(node.input[1])
    return weight === undefined ? undefined : dimsOf(weight).at(-1)
  }
  if (node.opType === 'MatMulNBits') return intAttribute(node, 'N', 0)
  if (!['RotaryEmbedding', 'Add', 'Cast', 'Identity'].includes(node.opType)) return undefined
  return node.input.map((input) => widthOf(graph, input)).find((width) => width !== undefined)
}

const ARRAYS: Partial<Record<TensorType, new (length: number) => TensorData>> = {
  float32: Float32Array,
  float64: Float64Array,
  float16: Uint16Array,
}

function emptyTensor({ past, type, dims, axis }: CacheEntry, batch: number): RuntimeTensor {
  const DataArray = ARRAYS[type]
  if (DataArray === undefined)
    throw new UnsupportedError({ where: `input ${past}`, what: 'a cache of this type', got: type })
  return { type, data: new DataArray(0), dims: dims.map((dim, i) => (i === axis ? 0 : (dim ?? batch))) }
}
