// The Attention operator of ONNX Runtime's optimizer, which joins the weights of query, key and value as (k, d):
// https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#commicrosoftattention

import { dataTypeName, dimsOf, type NodeProto } from '../../../formats/onnx/tensors.js'
import { intAttribute, intsAttribute } from '../../view/attributes.js'
import { Builder } from '../../view/builder.js'
import type { Graph } from '../../view/graph.js'
import { operatorOf } from '../../view/operators.js'
import { constantWeight, MATMUL, openFloatLines } from './float-product.js'
import { type Form, productOf } from './form.js'

export const PACKED_ATTENTION = 'com.microsoft:Attention'

const [X, WEIGHT, BIAS, MASK, PAST, SCORE_BIAS] = [0, 1, 2, 3, 4, 5]

/** Attributes that MultiHeadAttention also has. */
const SHARED = ['num_heads', 'unidirectional', 'mask_filter_value', 'scale']

export const ATTENTION: Form = {
  name: 'Attention',
  isQuantized: false,

  find(graph, node) {
    if (operatorOf(node) !== PACKED_ATTENTION || inseparable(graph, node) !== undefined) return undefined
    const weight = constantWeight(graph, node.input[WEIGHT], false)
    if (weight === undefined || weight.transposed) return undefined
    const [k, d] = dimsOf(weight.tensor)
    const { name, dataType } = weight
    const layout = dataTypeName(weight.tensor.dataType).toLowerCase()
    return productOf(ATTENTION, node, { weight: name, dataType, transposed: false, k, d, layout })
  },

  openLines: openFloatLines,

  expose(graph, product) {
    const { node, d } = product
    const g = new Builder(graph, node.name || node.output[0])
    const { matmul, last, parts } = project(g, node, d)
    const inputs = [...parts, '', node.input[MASK] ?? '', node.input[SCORE_BIAS] ?? '']
    const attention = g.node('com.microsoft:MultiHeadAttention', inputs)
    attention.attribute = node.attribute.filter(({ name }) => SHARED.includes(name))
    graph.replace(node, attention.output)
    return { ...product, form: MATMUL, node: matmul, last, output: last.output[0], bias: node.input[BIAS] || undefined }
  },
}

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
