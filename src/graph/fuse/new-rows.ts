// An output with the rows that a step adds to a key-value cache. Whoever keeps the cache writes these few rows behind
// those that it has, so that a step gives out no copy of the whole cache, and the arrays that are fed may have room for
// tokens to come.

import { create } from '@bufbuild/protobuf'
import { type NodeProto, ValueInfoProtoSchema } from '../../formats/onnx/gen/onnx_pb.js'
import { headSizeOf, isCacheInput } from '../inputs/cache.js'
import { dimsOfInput, splitInputs, typeOf } from '../inputs/roles.js'
import { intAttribute } from '../view/attributes.js'
import { Builder, sharedValue, type Value } from '../view/builder.js'
import type { Graph } from '../view/graph.js'

/** One tensor of the cache: (batch, heads, past, size). */
export interface CachePart {
  /** Name of the input. */
  readonly past: string
  readonly heads: number
  readonly size: number
}

/**
 * An output with the rows of all parts. By token it is (batch, sequence, width), where each row holds the parts side by
 * side, (heads, size) of each; by head it is (batch, heads of all parts, sequence, size).
 */
export interface NewRows {
  readonly isByHead: boolean
  readonly output: string
  /** The inputs that tell how many tokens there are: (batch, sequence) and (batch, past + sequence). */
  readonly ids: string
  readonly mask: string
  readonly parts: readonly CachePart[]
}

/**
 * Adds the output to a graph whose attention is GroupQueryAttention. How many tokens the cache holds is then told by
 * the mask, and no longer by the lengths of the cache's arrays.
 *
 * @returns undefined where something else reads the cache, or no mask tells the length: the graph stays as it is
 */
export function giveNewRows(graph: Graph): NewRows | undefined {
  const { roles, others } = splitInputs(graph)
  const named = (wanted: string) => roles.find(({ role, rank }) => role === wanted && rank === 2)?.name
  const [ids, mask] = [named('inputIds'), named('attentionMask')]
  const inputs = others.filter(isCacheInput)
  const sources = inputs.map(({ name }) => sourceOf(graph, name))
  const isWhole = inputs.every((input) => typeOf(input) === 'float32') && !sources.includes(undefined)
  if (ids === undefined || mask === undefined || inputs.length === 0 || !isWhole) return undefined
  const parts = inputs.flatMap((input): CachePart[] => {
    const [heads, size] = [dimsOfInput(input)[1], headSizeOf(graph, input)]
    return heads === undefined || size === undefined ? [] : [{ past: input.name, heads, size }]
  })
  if (parts.length < inputs.length) return undefined
  const isByHead = sources.some((source) => source!.rows === undefined)
  if (isByHead && parts.some(({ size }) => size !== parts[0].size)) return undefined
  const g = new Builder(graph, 'cache')
  const shared = new Map<string, Value>()
  for (const part of parts) countByMask(g, part, ids, mask, shared)
  const rows = sources.map((source) => (isByHead ? newestOf(g, source!.present, ids, mask, shared) : source!.rows!))
  const output = g.op('Concat', rows, { axis: isByHead ? 1 : 2 }, 'new_rows')
  graph.outputs.push(create(ValueInfoProtoSchema, { name: output }))
  return { output, isByHead, ids, mask, parts }
}

/** The places of a part's new rows: behind those of the cache, and alone unless attention makes them itself. */
function sourceOf(graph: Graph, past: string): { present: Value; rows: Value | undefined } | undefined {
  const readers = graph.consumers(past)
  const [attention, ...more] = readers.filter(({ opType }) => opType === 'GroupQueryAttention')
  if (attention === undefined || more.length > 0 || !readers.every(isReader)) return undefined
  const place = [3, 4].find((i) => attention.input[i] === past)
  const present = attention.output[place === 3 ? 1 : 2] ?? ''
  if (place === undefined || present === '') return undefined
  const isRotated = intAttribute(attention, 'do_rotary', 0) !== 0
  const rows = attention.input[place - 2]
  return { present, rows: isRotated || rows === '' ? undefined : rows }
}

/** The tokens that a run adds, of (batch, heads, tokens, size). */
function newestOf(g: Builder, present: Value, ids: Value, mask: Value, shared: Map<string, Value>): Value {
  const total = sharedValue(shared, 'total', () => g.length(mask, 1))
  return g.op('Slice', [present, pastLength(g, ids, mask, shared), total, g.int([2])])
}

/** Tokens in the cache, (1). */
function pastLength(g: Builder, ids: Value, mask: Value, shared: Map<string, Value>): Value {
  return sharedValue(shared, 'past', () => g.sub(g.length(mask, 1), g.length(ids, 1)))
}

/** Attention itself, and what asks for the shape alone. */
function isReader({ opType, attribute }: NodeProto): boolean {
  return opType === 'GroupQueryAttention' || (opType === 'Shape' && attribute.length === 0)
}

/** Lets what asks for the shape of a part get that of the tokens in it. */
function countByMask(g: Builder, part: CachePart, ids: Value, mask: Value, shared: Map<string, Value>): void {
  const { graph } = g
  for (const reader of graph.consumers(part.past).filter(({ opType }) => opType === 'Shape')) {
    const shape = sharedValue(shared, `${part.heads} ${part.size}`, () => {
      const past = pastLength(g, ids, mask, shared)
      return g.concat([g.length(mask, 0), g.int([part.heads]), past, g.int([part.size])], 0)
    })
    graph.replaceUses(reader.output[0], shape)
  }
}
