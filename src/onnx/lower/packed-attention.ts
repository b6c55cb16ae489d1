// The Attention operator of ONNX Runtime's optimizer, which joins the weights of query, key and value as (k, d): when
// and how it is split into a product and what remains.
// https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#commicrosoftattention

import type { NodeProto } from '../format/tensors.js'
import { intAttribute, intsAttribute } from '../view/attributes.js'
import type { Builder } from '../view/builder.js'
import type { Graph } from '../view/graph.js'

export const PACKED_ATTENTION = 'com.microsoft:Attention'

const [X, WEIGHT, BIAS, MASK, PAST] = [0, 1, 2, 3, 4]

/** Names what keeps an Attention node from being split into a product and MultiHeadAttention, if anything does. */
export function inseparable(graph: Graph, node: NodeProto): string | undefined {
  if (intAttribute(node, 'do_rotary', 0) === 1) return 'do_rotary'
  if ((node.input[PAST] ?? '') !== '') return 'a cache of past keys and values'
  const isRead = ({ output }: NodeProto) => output.slice(1).some((value) => value && graph.consumers(value).length > 0)
  const isGiven = graph.outputs.some(({ name }) => node.output.indexOf(name) > 0)
  if (isRead(node) || isGiven) return 'keys and values that it gives out'
  const mask = graph.declared(node.input[MASK] ?? '')?.dims
  return mask?.length === 4 ? 'a mask of 4 axes' : undefined
}

/** Returns the number of columns of query, key and value. */
export function attentionWidths(node: NodeProto, d: number): number[] {
  return intsAttribute(node, 'qkv_hidden_sizes') ?? [d / 3, d / 3, d / 3]
}

/** Appends x·w + b as a separate product, cut into query, key and value, each (B, S, width). */
export function project(g: Builder, node: NodeProto, d: number) {
  const matmul = g.node('MatMul', [node.input[X], node.input[WEIGHT]])
  const bias = node.input[BIAS] ?? ''
  const last = bias === '' ? matmul : g.node('Add', [matmul.output[0], bias])
  let start = 0
  const parts = attentionWidths(node, d).map((width) => {
    const [from, to] = [start, start + width]
    start = to
    return g.slice(last.output[0], from, to, -1)
  })
  return { matmul, last, parts }
}
