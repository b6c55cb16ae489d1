// Finds out what the inputs of a graph mean, whichever exporter named them, and makes their feeds.

import type { ValueInfoProto } from '../../onnx/format/tensors.js'
import type { Feeds, RuntimeTensor, TensorType } from '../../onnx/runtime/runtime.js'
import type { Graph } from '../../onnx/view/graph.js'
import { entryOf } from '../../onnx/view/operators.js'
import { dimsOfInput, typeOf } from '../../onnx/view/value-info.js'

/** Tokens to feed, (batch, sequence). */
export interface TokenBatch {
  readonly batch: number
  readonly sequence: number
  readonly inputIds: ArrayLike<number | bigint>
  /** (batch, past + sequence): 1 for real tokens, 0 for padding. */
  readonly attentionMask: ArrayLike<number | bigint>
  /** (batch, sequence): 1 for tokens of the second text of a pair. Default: all 0. */
  readonly tokenTypeIds?: ArrayLike<number | bigint> | undefined
  /** (batch, sequence). Default: counts the real tokens of each row. */
  readonly positionIds?: ArrayLike<number | bigint> | undefined
  /** Tokens already in the cache. */
  readonly past?: number
  /** How many of the last tokens need logits, for graphs with such an input. Default: all. */
  readonly logitsToKeep?: number | undefined
}

/** The names that optimum, transformers.js and onnxruntime-genai give to inputs, and the role of each. */
const ROLES = {
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
  use_cache_branch: 'usesCache',
} as const

export type Role = (typeof ROLES)[keyof typeof ROLES]

export interface RoleInput {
  readonly name: string
  readonly role: Role
  readonly type: TensorType
  readonly rank: number
}

export function splitInputs(graph: Pick<Graph, 'inputs'>): { roles: RoleInput[]; others: ValueInfoProto[] } {
  const roles: RoleInput[] = []
  const others: ValueInfoProto[] = []
  for (const input of graph.inputs) {
    const type = typeOf(input)
    const role = entryOf<Role>(ROLES, input.name)
    const isTyped = role === 'usesCache' ? type === 'bool' : type === 'int64' || type === 'int32'
    if (role !== undefined && type !== undefined && isTyped) {
      roles.push({ name: input.name, role, type, rank: dimsOfInput(input).length })
    } else others.push(input)
  }
  return { roles, others }
}

export function roleFeeds(roles: readonly RoleInput[], tokens: TokenBatch): Feeds {
  return Object.fromEntries(roles.map((input) => [input.name, roleFeed(input, tokens)]))
}

function roleFeed({ role, type, rank }: RoleInput, tokens: TokenBatch): RuntimeTensor {
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
      const { positionIds } = tokens
      const counted = positionIds ?? positionsOf(tokens, total)
      const [width, start] = positionIds === undefined ? [total, past] : [sequence, 0]
      const positions = rows(sequence, (row, column) => counted[row * width + start + column])
      return rank === 3 ? onThreeAxes(positions) : positions
    }
    case 'tokenTypeIds':
      return rows(sequence, (row, column) => tokens.tokenTypeIds?.[row * sequence + column] ?? 0)
    case 'cachePosition': {
      const positions = rows(sequence, (_, column) => past + column)
      return rank === 1 ? { ...positions, data: positions.data.slice(0, sequence), dims: [sequence] } : positions
    }
    case 'logitsToKeep':
      return single(tokens.logitsToKeep ?? 0)
    case 'usesCache':
      return { type, data: Uint8Array.of(past > 0 ? 1 : 0), dims: rank === 0 ? [] : [1] }
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

export function ones(type: 'bool' | 'int64', dims: readonly number[]): RuntimeTensor {
  const count = dims.reduce((product, dim) => product * dim, 1)
  return { type, data: type === 'bool' ? new Uint8Array(count).fill(1) : new BigInt64Array(count).fill(1n), dims }
}

/** Repeats positions (batch, sequence) as (3, batch, sequence): time, height and width are equal for text. */
function onThreeAxes({ type, data, dims }: RuntimeTensor): RuntimeTensor {
  const all = new (data.constructor as BigInt64ArrayConstructor)(3 * data.length)
  for (let axis = 0; axis < 3; axis++) all.set(data as BigInt64Array, axis * data.length)
  return { type, data: all, dims: [3, ...dims] }
}

/** Counts the real tokens before each token of (batch, total). Padding repeats a neighbor's position. */
function positionsOf({ batch, attentionMask }: TokenBatch, total: number): Int32Array {
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
