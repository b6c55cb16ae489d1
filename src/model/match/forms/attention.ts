// The Attention operator of ONNX Runtime's optimizer, which joins the weights of query, key and value as (k, d):
// https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#commicrosoftattention

import { dataTypeName, dimsOf } from '../../../onnx/format/tensors.js'
import { inseparable, PACKED_ATTENTION, project } from '../../../onnx/lower/packed-attention.js'
import { Builder } from '../../../onnx/view/builder.js'
import { operatorOf } from '../../../onnx/view/operators.js'
import { constantWeight, MATMUL, openFloatLines } from './float-product.js'
import { type Form, productOf } from './form.js'

const [WEIGHT, BIAS, MASK, SCORE_BIAS] = [1, 2, 3, 5]

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
