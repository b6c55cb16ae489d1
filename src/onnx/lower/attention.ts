// Replaces fused attention by ordinary operators for training, where caches are empty. Query heads that share a key
// head form an additional axis of the products, so that keys are not repeated in memory.

import { DataType } from '../format/tensors.js'
import { floatAttribute, intAttribute } from '../view/attributes.js'
import type { Builder, Value } from '../view/builder.js'
import type { Graph } from '../view/graph.js'
import { dimsIn, isTruth, type Lowering, type LoweringContext, refuse, refuseInputs } from './context.js'
import { inseparable, PACKED_ATTENTION, project } from './packed-attention.js'

/** The lowest score. It is finite, so that a row without keys does not give NaN. */
const LOWEST = -3.4028234663852886e38

interface Attention {
  /** (B, S, heads·d) or (B, S, heads, d) */
  readonly query: Value
  /** (B, T, keyHeads·d) or (B, T, keyHeads, d) */
  readonly key: Value
  readonly value: Value
  readonly heads: number
  readonly keyHeads: number
  /** Default: 1/√d. */
  readonly scale: number | undefined
  /** 0: none */
  readonly softcap?: number
  /** (S, T): added to the scores of every head. */
  readonly mask?: Value | undefined
  /** Broadcastable to (B, heads, S, T): added to the scores. */
  readonly bias?: Value | undefined
}

/**
 * Appends softmax(s·q·kᵀ + mask + bias)·v, (B, S, heads·d). If `softcap` is set, the scores are first squashed to
 * ±softcap. Also returns keys and values as a cache would hold them, (B, keyHeads, T, d).
 */
function attend(g: Builder, attention: Attention): [output: Value, keys: Value, values: Value] {
  const { query, key, value, heads, keyHeads, softcap = 0, mask, bias } = attention
  const group = heads / keyHeads
  const split = (x: Value, ...axes: number[]) => g.reshape(x, g.int([0, 0, ...axes, -1]))
  const isGrouped = group > 1
  const toHeads = isGrouped ? [0, 2, 3, 1, 4] : [0, 2, 1, 3]
  const fromHeads = isGrouped ? [0, 3, 1, 2, 4] : [0, 2, 1, 3]
  const queryAxes = isGrouped ? [keyHeads, group] : [heads]
  const keyAxes = isGrouped ? [keyHeads, 1] : [heads]
  const q = g.transpose(split(query, ...queryAxes), toHeads) // (B, keyHeads, group, S, d)
  const k = g.transpose(split(key, ...keyAxes), toHeads) // (B, keyHeads, 1, T, d)
  const v = g.transpose(split(value, ...keyAxes), toHeads)

  const width = () => g.cast(g.op('Gather', [g.shape(q), g.int(-1)]), g.floatType)
  const inverseRoot = () => g.op('Reciprocal', [g.op('Sqrt', [width()])])
  const scale = attention.scale === undefined ? inverseRoot() : g.float(attention.scale)
  const swap = isGrouped ? [0, 1, 2, 4, 3] : [0, 1, 3, 2]
  let scores = g.matmul(g.mul(q, scale), g.transpose(k, swap)) // (B, keyHeads, group, S, T)
  if (softcap !== 0) scores = g.mul(g.op('Tanh', [g.div(scores, g.float(softcap))]), g.float(softcap))
  if (mask !== undefined) scores = g.add(scores, mask)
  if (bias !== undefined) scores = g.add(scores, isGrouped ? perKeyHead(g, bias, keyHeads) : bias)
  const weights = g.op('Softmax', [scores], { axis: -1 })
  const output = split(g.transpose(g.matmul(weights, v), fromHeads))
  const present = (x: Value) => (isGrouped ? g.op('Squeeze', [x, g.int([2])]) : x)
  return [output, present(k), present(v)]
}

/** Reshapes a bias that broadcasts to (B, heads, S, T), so that it broadcasts to (B, keyHeads, group, S, T). */
function perKeyHead(g: Builder, bias: Value, keyHeads: number): Value {
  const all = g.concat([g.int([1, 1, 1]), g.shape(bias)], 0)
  const dim = (axis: number) => g.op('Gather', [all, g.int([axis])])
  const perKey = g.op('Min', [dim(-3), g.int([keyHeads])])
  return g.reshape(bias, g.concat([dim(-4), perKey, g.div(dim(-3), perKey), dim(-2), dim(-1)], 0))
}

/**
 * Appends a mask (S, S): 0 if the key is not after the query, else the lowest float. `tokens` is (B, S, …). With a
 * `window`, a query sees at most this many keys.
 */
function causalMask(g: Builder, tokens: Value, window = -1): Value {
  const length = g.op('Gather', [g.shape(tokens), g.int(1)])
  const places = g.cast(g.op('Range', [g.int(0), length, g.int(1)]), DataType.INT32) // GPUs cannot compare int64
  const [keys, queries] = [g.unsqueeze(places, [0]), g.unsqueeze(places, [1])]
  const isBefore = g.op('LessOrEqual', [keys, queries])
  const mask = g.where(isBefore, g.float(0), g.float(LOWEST))
  if (window < 0) return mask
  const isNear = g.op('Less', [g.sub(queries, keys), g.cast(g.int(window), DataType.INT32)])
  return g.where(isNear, mask, g.float(LOWEST))
}

/** Reads scale and softcap. A scale of 0 means that it is not set. */
function scoreAttributes({ node }: LoweringContext): Pick<Attention, 'scale' | 'softcap'> {
  return { scale: floatAttribute(node, 'scale', 0) || undefined, softcap: floatAttribute(node, 'softcap', 0) }
}

/** Throws unless each key head serves the same number of query heads. */
function checkHeads(context: LoweringContext, heads: number, keyHeads: number): void {
  if (heads > 0 && keyHeads > 0 && heads % keyHeads === 0) return
  refuse(context, `it has ${heads} query heads for ${keyHeads} key heads, which is no attention`)
}

/** GroupQueryAttention. seqlens_k is ignored: padding comes after the tokens, where no token sees it. */
const groupQueryAttention: Lowering = (context) => {
  const { g, node, inputs } = context
  const [first, second, third] = inputs
  const heads = intAttribute(node, 'num_heads', 0)
  const keyHeads = intAttribute(node, 'kv_num_heads', 0)
  refuseInputs(context, { 11: 'head_sink', 12: 'k_scale', 13: 'v_scale' })
  if (inputs.slice(14).some((input) => input !== '')) refuse(context, 'it has inputs that are not known')
  const window = intAttribute(node, 'local_window_size', -1)
  if (intAttribute(node, 'smooth_softmax', 0) === 1) refuse(context, 'training with smooth_softmax is not implemented')
  checkHeads(context, heads, keyHeads)

  let [query, key, value] = [first, second, third]
  if (!second) {
    const all = g.reshape(first, g.int([0, 0, heads + 2 * keyHeads, -1]))
    const parts = g.node('Split', [all, g.int([heads, keyHeads, keyHeads])], { axis: 2 }, 3).output
    const flat = (part: Value) => g.reshape(part, g.int([0, 0, -1]))
    ;[query, key, value] = [flat(parts[0]), flat(parts[1]), parts[2]]
  }
  if (intAttribute(node, 'do_rotary', 0) === 1) {
    query = rotate(context, query, heads)
    key = rotate(context, key, keyHeads)
  }
  return attend(g, {
    ...{ query, key, value, heads, keyHeads },
    ...scoreAttributes(context),
    mask: context.shared(`causal mask for ${inputs[5]}, ${window}`, () => causalMask(g, first, window)),
    bias: inputs[10] || undefined,
  })
}

/** Appends a rotary embedding, which has a gradient rule. Without position_ids, tokens are counted from 0. */
function rotate({ g, node, inputs }: LoweringContext, x: Value, heads: number): Value {
  const [cosine, sine] = [inputs[7], inputs[8]]
  const half = dimsIn(g.graph, cosine)?.[1]
  return g.op('com.microsoft:RotaryEmbedding', [x, inputs[9] || g.int([0]), cosine, sine], {
    interleaved: intAttribute(node, 'rotary_interleaved', 0),
    num_heads: heads,
    rotary_embedding_dim: half === undefined ? 0 : 2 * half, // 0: the whole head
  })
}

const multiHeadAttention: Lowering = (context) => {
  const { g, node, inputs } = context
  const [first, second, third, bias, padding, attentionBias] = inputs
  const heads = intAttribute(node, 'num_heads', 0)
  checkHeads(context, heads, heads)
  refuseInputs(context, { 8: 'past_sequence_length', 9: 'cache_indirection' })
  const pick = (x: Value, index: number) => g.op('Gather', [x, g.int(index)], { axis: 3 })
  let [query, key, value] = [first, second, third]
  if (!second)
    [query, key, value] = [0, 1, 2].map((index) => pick(first, index)) // (B, S, heads, 3, d)
  else if (!third)
    [key, value] = [0, 1].map((index) => pick(second, index)) // (B, T, heads, 2, d)
  else if (dimsIn(g.graph, second)?.length === 4) {
    // In cross attention, keys and values are (B, heads, T, d).
    ;[key, value] = [second, third].map((x) => g.transpose(x, [0, 2, 1, 3]))
  }
  if (bias) {
    const rows = g.reshape(bias, g.int([3, -1]))
    const flat = (x: Value) => g.reshape(x, g.int([0, 0, -1]))
    ;[query, key, value] = [query, key, value].map((x, i) =>
      g.add(flat(x), g.op('Gather', [rows, g.int(i)], { axis: 0 })),
    )
  }
  return attendPerHead(context, { query, key, value, heads, tokens: first, padding, attentionBias })
}

/** Self-attention that also computes its projection, x·w + b = [q, k, v]. */
const projectedAttention: Lowering = (context) => {
  const { g, node, inputs } = context
  const heads = intAttribute(node, 'num_heads', 0)
  checkHeads(context, heads, heads)
  const problem = inseparable(g.graph, node)
  if (problem !== undefined) refuse(context, `training with ${problem} is not implemented`)
  const width = dimsIn(g.graph, inputs[1])?.[1]
  if (width === undefined)
    return refuse(context, 'training needs the width of its weight, which the graph does not tell')
  const [query, key, value] = project(g, node, width).parts
  const [tokens, padding, attentionBias] = [inputs[0], inputs[3], inputs[5]]
  return attendPerHead(context, { query, key, value, heads, tokens, padding, attentionBias }).slice(0, 1)
}

interface PerHead extends Pick<Attention, 'query' | 'key' | 'value' | 'heads'> {
  /** (B, S, …) */
  readonly tokens: Value
  /** The operator's mask of keys, if given. `attentionBias` is a value to add to the scores, if given. */
  readonly padding: Value | undefined
  readonly attentionBias: Value | undefined
}

function attendPerHead(context: LoweringContext, { tokens, padding, attentionBias, ...parts }: PerHead) {
  const { g, node } = context
  const hidden = padding ? paddingBias(context, padding, tokens, parts.key) : undefined
  return attend(g, {
    ...{ ...parts, keyHeads: parts.heads },
    ...scoreAttributes(context),
    mask: intAttribute(node, 'unidirectional', 0) === 1 ? causalMask(g, tokens) : undefined,
    bias: attentionBias && hidden ? g.add(attentionBias, hidden) : attentionBias || hidden,
  })
}

/**
 * Turns a mask into a value to add to the scores. The mask holds the number of visible keys of each row, (B), or ones
 * and zeros for keys, (B, T), or for queries and keys, (B, S, T).
 */
function paddingBias(context: LoweringContext, mask: Value, tokens: Value, key: Value): Value {
  const { g, node, shared } = context
  const rank = dimsIn(g.graph, mask)?.length
  if (rank !== 1 && rank !== 2 && rank !== 3) {
    refuse(context, `training with a mask of ${rank ?? 'an unknown number of'} axes is not implemented; 1, 2 and 3 are`)
  }
  if (rank === 1 && !isLengths(g.graph, mask, tokens)) {
    refuse(context, 'training with a mask of 1 axis is only implemented where it has one number for each row')
  }
  const filter = floatAttribute(node, 'mask_filter_value', -10000)
  return shared(`padding ${mask} ${filter}`, () => {
    const isSeen =
      rank === 1 ? isBefore(g, key, mask) : g.cast(g.unsqueeze(mask, rank === 2 ? [1, 2] : [1]), DataType.BOOL)
    return g.where(isSeen, g.float(0), g.float(filter))
  })
}

/** A mask (B, 1, 1, T), true for the first keys of a row. `lengths` (B) says how many; `key` is (B, T, …). */
function isBefore(g: Builder, key: Value, lengths: Value): Value {
  const count = g.op('Gather', [g.shape(key), g.int(1)])
  const places = g.cast(g.op('Range', [g.int(0), count, g.int(1)]), DataType.INT32)
  return g.op('Less', [places, g.unsqueeze(g.cast(lengths, DataType.INT32), [1, 2, 3])])
}

/** True if a mask with one axis has a number for each row: it is a sum over a mask, or as long as the batch. */
function isLengths(graph: Graph, mask: Value, tokens: Value): boolean {
  const maker = graph.producer(mask)
  if (maker?.opType === 'Cast') return isLengths(graph, maker.input[0], tokens)
  if (maker?.opType === 'ReduceSum' || maker?.opType === 'EmbedLayerNormalization') return true
  const [size, batch] = [dimsIn(graph, mask)?.[0], dimsIn(graph, tokens)?.[0]]
  return size !== undefined && size === batch
}

/** https://onnx.ai/onnx/operators/onnx__Attention.html */
const standardAttention: Lowering = (context) => {
  const { g, node, inputs } = context
  refuseInputs(context, { 6: 'nonpad_kv_seqlen' })
  const isSplit = intAttribute(node, 'q_num_heads', 0) === 0 // (B, heads, S, d) instead of (B, S, heads·d)
  const [heads, keyHeads] = isSplit
    ? [dimsIn(g.graph, inputs[0])?.[1], dimsIn(g.graph, inputs[1])?.[1]]
    : [intAttribute(node, 'q_num_heads', 0), intAttribute(node, 'kv_num_heads', 0)]
  if (heads === undefined || keyHeads === undefined) {
    return refuse(
      context,
      'training with inputs of four axes needs their numbers of heads, which the graph does not tell',
    )
  }
  checkHeads(context, heads, keyHeads)
  const mask = inputs[3]
  const isSeen = mask ? isTruth(g.graph, mask) : false
  if (isSeen === undefined) return refuse(context, `training needs the type of ${mask}, which the graph does not tell`)
  const swap = (x: Value) => (isSplit ? g.transpose(x, [0, 2, 1, 3]) : x)
  const [query, key, value] = inputs.slice(0, 3).map(swap)
  const [output, ...cached] = attend(g, {
    ...{ query, key, value, heads, keyHeads },
    ...scoreAttributes(context),
    mask: intAttribute(node, 'is_causal', 0) === 1 ? causalMask(g, query) : undefined,
    bias: isSeen ? g.where(mask, g.float(0), g.float(LOWEST)) : mask || undefined,
  })
  return [isSplit ? swap(g.reshape(output, g.int([0, 0, heads, -1]))) : output, ...cached]
}

export const ATTENTION: Readonly<Record<string, Lowering>> = {
  'com.microsoft:GroupQueryAttention': groupQueryAttention,
  'com.microsoft:MultiHeadAttention': multiHeadAttention,
  [PACKED_ATTENTION]: projectedAttention,
  Attention: standardAttention,
}
