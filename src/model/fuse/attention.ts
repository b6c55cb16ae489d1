// Fuses attention over a cache, which an exporter wrote as single operators, into a GroupQueryAttention: a step of one
// token then takes a tenth of the operators. Only for execution providers whose GroupQueryAttention has the input
// attention_bias:
// https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GroupQueryAttention

import { DataType, type NodeProto } from '../../onnx/format/tensors.js'
import { intAttribute } from '../../onnx/view/attributes.js'
import { Builder, sharedValue, type Value } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'
import {
  bothWays,
  concatenated,
  makerOf,
  nanGuard,
  onlyReader,
  scalarOf,
  transposed,
  unsqueezed,
} from '../../onnx/view/patterns.js'
import { dimsOfInput, typeOf, valueInfo } from '../../onnx/view/value-info.js'
import { isCacheInput } from '../inputs/cache.js'
import { findLinears, type Linear } from '../match/linears.js'
import { columnsOf } from '../match/packed.js'
import { addBias, type Mask, maskOf } from './bias.js'
import { type Rotation, rotate, rotationOf } from './rotary.js'

/** Keys or values: the cached rows followed by the new rows. */
interface Joined {
  readonly past: Value
  readonly present: Value
  readonly node: NodeProto
  /** (batch, heads, sequence, size) */
  readonly fresh: Value
  readonly heads: number
  readonly size: number
}

interface Attention {
  readonly query: Value
  readonly key: Joined
  readonly value: Joined
  readonly heads: number
  readonly scale: number
  readonly mask: Mask
  /** (batch, sequence, heads · size) */
  readonly last: NodeProto
}

const [SPLIT_HEADS, SWAP_LAST] = [
  [0, 2, 1, 3],
  [0, 1, 3, 2],
]

/** Fuses attention in float32, and returns the number of fused places. */
export function fuseAttention(graph: Graph): number {
  const softmaxes = graph.nodes.filter(({ opType }) => opType === 'Softmax')
  // A merged decoder has the same attention twice, with and without a cache.
  const isMerged = graph.nodes.some(({ opType }) => opType === 'If')
  if (isMerged || softmaxes.length === 0 || !graph.inputs.some(isCacheInput)) return 0
  const linears = new Map(findLinears(graph).map((linear) => [linear.last.output[0], linear]))
  const found = softmaxes.flatMap((node) => attentionAt(graph, node, linears) ?? [])
  const g = new Builder(graph, 'attention')
  const shared = new Map<string, Value>()
  for (const attention of found) replace(g, attention, linears, shared)
  if (found.length > 0) {
    graph.requireOpset('com.microsoft', 1)
    graph.prune()
  }
  return found.length
}

function attentionAt(graph: Graph, softmax: NodeProto, linears: ReadonlyMap<Value, Linear>): Attention | undefined {
  if (![-1, 3].includes(intAttribute(softmax, 'axis', -1))) return undefined
  const [p] = softmax.output
  const readers = graph.consumers(p)
  const guard = readers.length === 2 ? nanGuard(graph, p, readers) : undefined
  const product = readerOf(graph, guard?.output[0] ?? p, 'MatMul')
  const last = product && flattened(graph, product.output[0])
  const value = product && joined(graph, unrepeated(graph, product.input[1]))
  if (last === undefined || value === undefined) return undefined
  for (const [scores, added] of bothWays(makerOf(graph, softmax.input[0], 'Add'))) {
    const scaled = unscaled(graph, scores)
    const inner = makerOf(graph, scaled.value, 'MatMul')
    if (inner === undefined) continue
    const query = unscaled(graph, inner.input[0])
    const turned = unscaled(graph, inner.input[1])
    const repeated = unscaled(graph, transposed(graph, turned.value, SWAP_LAST) ?? '')
    const key = joined(graph, unrepeated(graph, repeated.value))
    const heads = headsOf(graph, query.value, value.size, linears)
    if (key === undefined || heads === undefined || key.size !== value.size || key.heads !== value.heads) continue
    const mask = maskOf(graph, added, new Set([repeated.value, key.present]))
    if (mask === undefined || heads % key.heads !== 0) continue
    const scale = [scaled, query, turned, repeated].reduce((all, { factor }) => all * factor, 1)
    return { query: query.value, key, value, heads, scale, mask, last }
  }
  return undefined
}

function readerOf(graph: Graph, value: Value, opType: string): NodeProto | undefined {
  const reader = onlyReader(graph, value, opType)
  return reader?.input[0] === value ? reader : undefined
}

function flattened(graph: Graph, value: Value): NodeProto | undefined {
  const split = readerOf(graph, value, 'Transpose')
  if (split === undefined || transposed(graph, split.output[0], SPLIT_HEADS) === undefined) return undefined
  return readerOf(graph, split.output[0], 'Reshape')
}

function unscaled(graph: Graph, value: Value): { value: Value; factor: number } {
  for (const opType of ['Mul', 'Div']) {
    const node = makerOf(graph, value, opType)
    for (const [rest, by] of opType === 'Mul' ? bothWays(node) : bothWays(node).slice(0, 1)) {
      const factor = scalarOf(graph, by)
      if (factor !== undefined) return { value: rest, factor: opType === 'Mul' ? factor : 1 / factor }
    }
  }
  return { value, factor: 1 }
}

/** Returns keys or values before each head is repeated for the query heads that share it. */
export function unrepeated(graph: Graph, value: Value): Value {
  const expanded = makerOf(graph, makerOf(graph, value, 'Reshape')?.input[0] ?? '', 'Expand')
  return unsqueezed(graph, expanded?.input[0] ?? '', 2) ?? value
}

function joined(graph: Graph, present: Value): Joined | undefined {
  const [past, fresh, ...more] = concatenated(graph, present, [2, -2]) ?? []
  const input = graph.inputs.find(({ name }) => name === past)
  if (input === undefined || more.length > 0 || !isCacheInput(input) || typeOf(input) !== 'float32') return undefined
  const [, heads, , size] = dimsOfInput(input)
  // The kernel requires a multiple of 8.
  if (heads === undefined || size === undefined || size % 8 !== 0) return undefined
  return { past, present, node: graph.producer(present)!, fresh, heads, size }
}

/** Counts heads by the width of the linear layer, or part of a packed layer, that made the query. */
function headsOf(graph: Graph, query: Value, size: number, linears: ReadonlyMap<Value, Linear>): number | undefined {
  const open = [query]
  for (let looked = 0; open.length > 0 && looked < MOST_NODES; looked++) {
    const value = open.shift()!
    const node = graph.producer(value)
    const linear = linears.get(value)
    const packed = node && linearBehind(graph, node, linears)
    if (linear === undefined && packed === undefined) {
      open.push(...(node?.input ?? []))
      continue
    }
    const cut = packed && columnsOf(graph, node!, packed.fused?.width ?? packed.d)?.[node!.output.indexOf(value)]
    const width = packed !== undefined ? cut && cut[1] - cut[0] : linear?.fused === undefined ? linear?.d : undefined
    return width !== undefined && width % size === 0 ? width / size : undefined
  }
  return undefined
}

function linearBehind(graph: Graph, node: NodeProto, linears: ReadonlyMap<Value, Linear>): Linear | undefined {
  if (node.opType !== 'Split' && node.opType !== 'Slice') return undefined
  const [whole] = node.input
  const sum = makerOf(graph, whole, 'Add')?.input ?? []
  return [whole, ...sum].map((value) => linears.get(value)).find((linear) => linear !== undefined)
}

/** How many nodes are searched between a query and its linear layer: a rotation and a norm have fewer. */
const MOST_NODES = 60

function replace(
  g: Builder,
  { query, key, value, heads, scale, mask, last }: Attention,
  linears: ReadonlyMap<Value, Linear>,
  shared: Map<string, Value>,
): void {
  const { graph } = g
  const { size } = key
  const [q, k] = [query, key.fresh].map((heads4) => {
    const rotation: Rotation | undefined = rotationOf(graph, heads4, size)
    const flat = flatHeads(g, rotation?.x ?? heads4, linears)
    return rotation === undefined ? flat : rotate(g, flat, rotation, size, shared)
  })
  const v = flatHeads(g, value.fresh, linears)
  // If ONNX Runtime does not know the shape of the values, it assumes that the query packs all three.
  if (!graph.valueInfo.some(({ name }) => name === v)) {
    const dims = ['attention/batch', 'attention/sequence', value.heads * size]
    graph.valueInfo.push(valueInfo(v, DataType.FLOAT, dims))
  }
  const { total, seqlens, totalLength } = lengths(g, v, key.past, shared)
  const bias = addBias(g, mask, total, shared)
  graph.nodes = graph.nodes.filter((node) => node !== last && node !== key.node && node !== value.node)
  graph.invalidate()
  const inputs = [q, k, v, key.past, value.past, seqlens, totalLength, '', '', '', bias]
  const attributes = { num_heads: heads, kv_num_heads: key.heads, scale: { float: scale } }
  const node = g.node('com.microsoft:GroupQueryAttention', inputs, attributes, 3)
  for (const [i, name] of [last.output[0], key.present, value.present].entries()) graph.setOutput(node, i, name)
}

/** Turns (batch, heads, sequence, size) back into (batch, sequence, heads · size), as linear layers give it. */
function flatHeads(g: Builder, heads4: Value, linears: ReadonlyMap<Value, Linear>): Value {
  const { graph } = g
  const split = transposed(graph, heads4, SPLIT_HEADS) ?? g.transpose(heads4, SPLIT_HEADS)
  const source = makerOf(graph, split, 'Reshape')?.input[0] ?? ''
  const linear = linears.get(source)
  // A Gemm returns all rows as a matrix with two axes.
  const isFlat = linear !== undefined && linear.form.name !== 'Gemm' && linear.fused === undefined
  return isFlat ? source : g.reshape(split, g.int([0, 0, -1]))
}

/** Lengths that also count the keys of padding, which the bias hides. */
function lengths(g: Builder, tokens: Value, past: Value, shared: Map<string, Value>) {
  const total = sharedValue(shared, 'total', () => g.add(g.length(past, 2), g.length(tokens, 1)))
  const totalLength = sharedValue(shared, 'total as int32', () => g.cast(total, DataType.INT32))
  const seqlens = sharedValue(shared, 'keys of each row', () =>
    g.cast(g.expand(g.sub(total, g.int([1])), g.length(tokens, 0)), DataType.INT32),
  )
  return { total, seqlens, totalLength }
}
