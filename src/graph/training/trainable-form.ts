// Forms of a model that hold no gradient to train with yet: branches around the layers, integer weights, half precision.

import { UnsupportedError } from '../../base/errors.js'
import { TensorProto_DataType as DataType, type GraphProto, type NodeProto } from '../../formats/onnx/gen/onnx_pb.js'
import { dataTypeName } from '../../formats/onnx/tensors.js'
import { findLinears } from '../match/linears.js'
import { type Graph, subgraphs } from '../view/graph.js'
import { listByOperator } from '../view/operators.js'

/** Products of weights that are stored as integers. */
const INTEGER_PRODUCTS = new Set([
  'MatMulNBits',
  'MatMulBnb4',
  'MatMulInteger',
  'MatMulIntegerToFloat',
  'DynamicQuantizeMatMul',
  'QLinearMatMul',
  'QGemm',
  'QMoE',
])

const FLOAT_EXPORT = "Train on the model's float32 export: the adapter also fits this one"
/** Sessions adapt layers whose inputs and outputs are floats; 8-bit exports quantize those as well. */
const FLOAT_EXPORT_ONLY =
  "Train on the model's float32 export: the adapter runs there and on exports in float16 or MatMulNBits, but not on this one"
const NOT_NESTED = 'Export the model in another way, so that its layers are not in the body of a Loop or Scan'

/**
 * @throws UnsupportedError naming, by op, all nodes that cannot be trained whatever is adapted: Loop and Scan around linear
 *   layers, products of quantized weights, linear layers in another type than float32
 */
export function checkTrainableForm(graph: Graph): void {
  const found: { operator: string; node: NodeProto; hint: string }[] = []
  for (const node of graph.nodes) {
    const operator = node.opType
    if (INTEGER_PRODUCTS.has(operator)) {
      found.push({ operator, node, hint: operator === 'MatMulNBits' ? FLOAT_EXPORT : FLOAT_EXPORT_ONLY })
    } else if (subgraphs(node).some(multiplies)) found.push({ operator, node, hint: NOT_NESTED })
  }
  for (const { node, dataType, form } of findLinears(graph)) {
    if (form.isQuantized || dataType === DataType.FLOAT) continue
    const operator = `${dataTypeName(dataType).toLowerCase()} ${node.opType}`
    found.push({ operator, node, hint: FLOAT_EXPORT })
  }
  if (found.length === 0) return
  const list = listByOperator(found.map(({ operator, node }) => [operator, node]))
  throw new UnsupportedError({ where: 'training', what: `not through ${list} yet`, hint: found[0].hint })
}

function multiplies(graph: GraphProto): boolean {
  const isProduct = ({ opType }: NodeProto) => opType === 'MatMul' || opType === 'Gemm' || INTEGER_PRODUCTS.has(opType)
  return graph.node.some((node) => isProduct(node) || subgraphs(node).some(multiplies))
}
