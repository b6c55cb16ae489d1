// QAttention: what ONNX Runtime's quantizer makes of an Attention operator. Query, key and value are products of integers inside the node, so
// that nothing can be added to them. Listed, so that its layers are refused by their names.
// Operator: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#commicrosoftqattention

import { UnsupportedError } from '../../../base/errors.js'
import { TensorProto_DataType as DataType } from '../../../formats/onnx/gen/onnx_pb.js'
import { dimsOf } from '../../../formats/onnx/tensors.js'
import { operatorOf } from '../../view/operators.js'
import type { Form } from './form.js'

/** Inputs of the node. */
const [X, WEIGHT] = [0, 1]

export const INTEGER_ATTENTION: Form = {
  name: 'QAttention',
  isQuantized: true,
  closedHint:
    'Quantize the graph without its attention (op_types_to_quantize of ONNX Runtime), or quantize the graph that was not fused',

  find(graph, node) {
    if (operatorOf(node) !== 'com.microsoft:QAttention') return undefined
    const tensor = graph.constant(node.input[WEIGHT])
    if (tensor?.dims.length !== 2) return undefined
    const [k, d] = dimsOf(tensor)
    const quantize = graph.producer(node.input[X])
    const input = quantize?.opType === 'DynamicQuantizeLinear' ? quantize.input[0] : node.input[X]
    const kind = tensor.dataType === DataType.INT8 ? 'int8' : 'uint8'
    return {
      ...{ form: INTEGER_ATTENTION, node, last: node, weight: node.input[WEIGHT], dataType: DataType.FLOAT },
      ...{ transposed: false, k, d, input, output: node.output[0], layout: `${kind}, inputs quantized as it runs` },
      problem: 'attention in integers, in one node with its products',
    }
  },

  async openLines(_model, _graph, { node, problem }) {
    throw new UnsupportedError({
      where: `node ${node.name}`,
      what: `its weight is not read: ${problem}`,
      got: node.opType,
      ...(INTEGER_ATTENTION.closedHint !== undefined && { hint: INTEGER_ATTENTION.closedHint }),
    })
  },
}
