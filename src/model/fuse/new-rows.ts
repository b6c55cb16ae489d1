// Adds an output with only the rows that a step adds to a key-value cache, so that the whole cache need not be copied.

import { create } from '../../onnx/format/protobuf.js'
import { DataType, type NodeProto, ValueInfoProtoSchema } from '../../onnx/format/tensors.js'
import { intAttribute } from '../../onnx/view/attributes.js'
import { Builder, sharedValue, type Value } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'
import { dimsOfInput, typeOf, valueInfo } from '../../onnx/view/value-info.js'
import { MISSING_INPUT } from '../inject/sites.js'
import { headSizeOf, isCacheInput } from '../inputs/cache.js'
import { splitInputs } from '../inputs/roles.js'
import { isPlainBias } from './bias.js'

/** (batch, heads, past, size) */
export interface CachePart {
  readonly past: string
  readonly present: string
  readonly heads: number
  readonly size: number
}

/** New rows of all parts: by token (batch, sequence, width), or by head (batch, heads of all parts, sequence, size). */
export interface NewRows {
  readonly isByHead: boolean
  readonly output: string
  /** Inputs that tell the numbers of tokens: (batch, sequence) and (batch, past + sequence). */
  readonly ids: string
  readonly mask: string
  readonly parts: readonly CachePart[]
  /** True if the graph has {@link MISSING_INPUT}. */
  readonly takesMissing: boolean
}

/**
 * Adds an output with the cache's new rows. Returns undefined if no mask tells how many tokens the cache has, or if
 * anything besides attention reads the cache.
 */
export function giveNewRows(graph: Graph): NewRows | undefined {
  const { roles, others } = splitInputs(graph)
  const named = (wanted: string) => roles.find(({ role, rank }) => role === wanted && rank === 2)?.name
  const [ids, mask] = [named('inputIds'), named('attentionMask')]
  const inputs = others.filter(isCacheInput)
  const sources = inputs.map(({ name }) => sourceOf(graph, name))
  const isWhole = inputs.every((input) => typeOf(input) === 'float32') && !sources.includes(undefined)
  if (ids === undefined || mask === undefined || inputs.length === 0 || !isWhole) return undefined
  const parts = inputs.flatMap((input, i): CachePart[] => {
    const [heads, size] = [dimsOfInput(input)[1], headSizeOf(graph, input)]
    return heads === undefined || size === undefined
      ? []
      : [{ past: input.name, present: sources[i]!.present, heads, size }]
  })
  if (parts.length < inputs.length) return undefined
  const isByHead = sources.some((source) => source!.rows === undefined)
  if (isByHead && parts.some(({ size }) => size !== parts[0].size)) return undefined
  const g = new Builder(graph, 'cache')
  const shared = new Map<string, Value>()
  for (const part of parts) countByMask(g, part, ids, mask, shared)
  const rows = sources.map((source, i) => (isByHead ? newestOf(g, source!, parts[i], ids, shared) : source!.rows!))
  const output = g.op('Concat', rows, { axis: isByHead ? 1 : 2 }, 'new_rows')
  graph.outputs.push(create(ValueInfoProtoSchema, { name: output }))
  return { output, isByHead, ids, mask, parts, takesMissing: countByRow(g, sources) }
}

const [SEQLENS, BIAS] = [5, 10]

/** Lets each row have its own number of keys. This needs attention that lowrank fused, whose bias hides padding. */
function countByRow(g: Builder, sources: readonly (Source | undefined)[]): boolean {
  const { graph } = g
  const nodes = new Set(sources.map((source) => source!.attention))
  if (![...nodes].every(({ input }) => isPlainBias(graph, input[BIAS] ?? ''))) return false
  graph.inputs.push(valueInfo(MISSING_INPUT, DataType.INT64))
  const missing = g.cast(MISSING_INPUT, DataType.INT32)
  const shared = new Map<Value, Value>()
  for (const node of nodes) {
    const all = node.input[SEQLENS]
    const counts = sharedValue(shared, all, () => g.sub(all, missing))
    graph.setInput(node, SEQLENS, counts)
  }
  return true
}

type Source = NonNullable<ReturnType<typeof sourceOf>>

/** Finds the attention that reads a cache, and the rows that it adds unless they are made inside the operator. */
function sourceOf(graph: Graph, past: string) {
  const readers = graph.consumers(past)
  const [attention, ...more] = readers.filter(({ opType }) => opType === 'GroupQueryAttention')
  if (attention === undefined || more.length > 0 || !readers.every(isReader)) return undefined
  const place = [3, 4].find((i) => attention.input[i] === past)
  const present = attention.output[place === 3 ? 1 : 2] ?? ''
  if (place === undefined || present === '') return undefined
  const isRotated = intAttribute(attention, 'do_rotary', 0) !== 0
  const rows = attention.input[place - 2]
  return { attention, present, rows: isRotated || rows === '' ? undefined : rows }
}

/** Gathers the last keys of each row. A padded row of a first run has fewer keys than tokens, and begins at 0. */
function newestOf(g: Builder, source: Source, part: CachePart, ids: Value, shared: Map<string, Value>): Value {
  const { attention, present } = source
  const [keys] = attention.input.slice(5)
  const places = sharedValue(shared, `places ${keys}`, () => {
    const sequence = g.length(ids, 1)
    const count = g.add(g.reshape(g.cast(keys, DataType.INT64), g.int([-1, 1, 1, 1])), g.int([1]))
    const first = g.op('Max', [g.sub(count, sequence), g.int([0])])
    const steps = g.op('Range', [g.int(0), g.reshape(sequence, g.int([])), g.int(1)])
    return g.add(first, g.reshape(steps, g.int([1, 1, -1, 1])))
  })
  const index = sharedValue(shared, `places ${keys} ${part.heads} ${part.size}`, () =>
    g.op('Expand', [places, g.int([1, part.heads, 1, part.size])]),
  )
  return g.op('GatherElements', [present, index], { axis: 2 })
}

function isReader({ opType, attribute }: NodeProto): boolean {
  return opType === 'GroupQueryAttention' || (opType === 'Shape' && attribute.length === 0)
}

/** Replaces the shape of a cache by one that counts only the tokens in it. */
function countByMask(g: Builder, part: CachePart, ids: Value, mask: Value, shared: Map<string, Value>): void {
  const { graph } = g
  for (const reader of graph.consumers(part.past).filter(({ opType }) => opType === 'Shape')) {
    const shape = sharedValue(shared, `${part.heads} ${part.size}`, () => {
      const past = sharedValue(shared, 'past', () => g.sub(g.length(mask, 1), g.length(ids, 1)))
      return g.concat([g.length(mask, 0), g.int([part.heads]), past, g.int([part.size])], 0)
    })
    graph.replaceUses(reader.output[0], shape)
  }
}
