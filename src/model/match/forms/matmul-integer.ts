// MatMulInteger, the form of `_quantized`, `_int8` and `_uint8` files: DynamicQuantizeLinear → MatMulInteger → Cast →
// Mul by both scales. The layer goes from the float input to the output of the last Mul.

import { DataType, dimsOf, type NodeProto, type TensorProto } from '../../../onnx/format/tensors.js'
import type { Value } from '../../../onnx/view/builder.js'
import type { Graph } from '../../../onnx/view/graph.js'
import { operatorOf } from '../../../onnx/view/operators.js'
import { FLOAT_DTYPES } from './float-product.js'
import { type Form, type Product, productOf } from './form.js'
import { countOf, INTEGER_TYPES, integerForm } from './integers.js'

export interface IntegerWeight {
  readonly weight: Value
  /** One scale, or a scale for each output. */
  readonly scale: Value
  /** The zero point of the weight; '' if it is 0. */
  readonly zeroPoint: Value
}

export function integerWeight(graph: Graph, node: NodeProto): IntegerWeight | undefined {
  const [, weight, second, third, , fifth] = node.input
  if (node.opType === 'DynamicQuantizeMatMul') return { weight, scale: second, zeroPoint: third ?? '' }
  if (node.opType === 'MatMulIntegerToFloat') return { weight, scale: third, zeroPoint: fifth ?? '' }
  const scale = scaling(graph, node)?.scale
  return scale === undefined ? undefined : { weight, scale, zeroPoint: third ?? '' }
}

export const MATMUL_INTEGER: Form = integerForm({
  name: 'MatMulInteger',

  find(graph, node) {
    const isFused = operatorOf(node) === 'com.microsoft:MatMulIntegerToFloat'
    if (node.opType !== 'MatMulInteger' && !isFused) return undefined
    const quantize = graph.producer(node.input[0])
    if (quantize?.opType !== 'DynamicQuantizeLinear') return undefined
    const last = isFused ? node : scaling(graph, node)?.last
    return last && product(graph, MATMUL_INTEGER, node, last, quantize.input[0])
  },

  matrix,
})

export const DYNAMIC_QUANTIZE_MATMUL: Form = integerForm({
  name: 'DynamicQuantizeMatMul',

  find(graph, node) {
    if (operatorOf(node) !== 'com.microsoft:DynamicQuantizeMatMul') return undefined
    return product(graph, DYNAMIC_QUANTIZE_MATMUL, node, node, node.input[0])
  },

  matrix,
})

function product(graph: Graph, form: Form, node: NodeProto, last: NodeProto, input: Value): Product | undefined {
  const tensor = graph.constant(node.input[1])
  if (tensor === undefined || tensor.dims.length !== 2) return undefined
  const [k, d] = dimsOf(tensor)
  const parts = integerWeight(graph, node)
  const scales = parts && graph.constant(parts.scale)
  const isPerOutput = scales !== undefined && scales.dims.length > 0 && Number(scales.dims.at(-1)) > 1
  const kind = tensor.dataType === DataType.INT8 ? 'int8' : 'uint8'
  return productOf(form, node, {
    ...{ last, input, weight: node.input[1], transposed: false, k, d, dataType: DataType.FLOAT },
    layout: `${kind}, ${isPerOutput ? 'a scale for each output' : 'one scale'}, inputs quantized as it runs`,
    problem: problemOf(graph, tensor, parts, d),
  })
}

/** Follows the nodes that make floats of the output: Cast, and Mul by both scales in either order. */
function scaling(graph: Graph, node: NodeProto): { last: NodeProto; scale: Value } | undefined {
  const quantize = graph.producer(node.input[0])
  const [cast, ...others] = graph.consumers(node.output[0])
  if (quantize === undefined || cast?.opType !== 'Cast' || others.length > 0) return undefined
  const inputScale = quantize.output[1]
  let [last, scale, isInputScaled] = [cast, undefined as Value | undefined, false]
  while (scale === undefined || !isInputScaled) {
    const [next, ...more] = graph.consumers(last.output[0])
    if (next?.opType !== 'Mul' || more.length > 0) return undefined
    const factor = next.input.find((input) => input !== last.output[0]) ?? ''
    const maker = graph.producer(factor)
    const both = maker?.opType === 'Mul' && maker.input.includes(inputScale)
    const weightScale = both ? maker.input.find((input) => input !== inputScale) : factor
    if (factor === inputScale) isInputScaled = true
    else if (weightScale !== undefined && graph.constant(weightScale) !== undefined) scale = weightScale
    else return undefined
    if (both) isInputScaled = true
    last = next
  }
  return { last, scale }
}

function matrix(graph: Graph, found: Product) {
  const { weight, scale, zeroPoint } = integerWeight(graph, found.node) as IntegerWeight
  const tensor = graph.constant(weight) as TensorProto
  const placeIn = (value: Value) => (countOf(graph, value) === 1 ? () => 0 : (_: number, output: number) => output)
  return {
    ...{ tensor, type: INTEGER_TYPES[tensor.dataType]!, width: found.d, scales: scale, zeroPoints: zeroPoint },
    ...{ scaleAt: placeIn(scale), zeroAt: placeIn(zeroPoint) },
  }
}

function problemOf(graph: Graph, tensor: TensorProto, parts: IntegerWeight | undefined, d: number): string | undefined {
  if (INTEGER_TYPES[tensor.dataType]?.bits !== 8) return 'a weight that is not int8 or uint8'
  const scales = parts && graph.constant(parts.scale)
  if (parts === undefined || scales === undefined || FLOAT_DTYPES[scales.dataType] === undefined) {
    return 'scales that are no float constant'
  }
  const isOneOrAll = (value: Value) => [1, d].includes(countOf(graph, value) ?? 0)
  if (!isOneOrAll(parts.scale)) return `scales for other than ${d} outputs`
  if (parts.zeroPoint === '') return undefined
  if (graph.constant(parts.zeroPoint)?.dataType !== tensor.dataType) return 'zero points of another type'
  return isOneOrAll(parts.zeroPoint) ? undefined : `zero points for other than ${d} outputs`
}
