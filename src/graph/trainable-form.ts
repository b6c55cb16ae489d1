// Forms of a model that hold no gradient to train with yet: branches around the layers, integer weights, half precision.

import { UnsupportedError } from '../base/errors.js'
import { TensorProto_DataType as DataType, type GraphProto, type NodeProto } from '../formats/onnx/gen/onnx_pb.js'
import { dataTypeName } from '../formats/onnx/tensors.js'
import { type Graph, subgraphs } from './graph.js'
import { findLinears } from './linears.js'

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
/** Sessions adapt layers whose inputs and outputs are floats; 8-bit exports quantise those as well. */
const FLOAT_EXPORT_ONLY =
  "Train on the model's float32 export: the adapter runs there and on exports in float16 or MatMulNBits, but not on this one"
const NOT_MERGED = 'Train on an export that is not merged: decoder_model.onnx or decoder_with_past_model.onnx'

/**
 * @throws UnsupportedError naming, by op, all nodes that cannot be trained whatever is adapted: If, Loop and Scan around
 *   linear layers, products of quantized weights, linear layers in another type than float32
 */
export function checkTrainableForm(graph: Graph): void {
  const found: { op: string; name: string; hint: string }[] = []
  for (const node of graph.nodes) {
    const name = node.name || node.output[0]
    if (INTEGER_PRODUCTS.has(node.opType)) {
      found.push({ op: node.opType, name, hint: node.opType === 'MatMulNBits' ? FLOAT_EXPORT : FLOAT_EXPORT_ONLY })
    } else if (subgraphs(node).some(multiplies)) found.push({ op: node.opType, name, hint: NOT_MERGED })
  }
  for (const { node, dataType, kind } of findLinears(graph)) {
    if (kind === 'quantized' || dataType === DataType.FLOAT) continue
    const op = `${dataTypeName(dataType).toLowerCase()} ${node.opType}`
    found.push({ op, name: node.name || node.output[0], hint: FLOAT_EXPORT })
  }
  if (found.length === 0) return
  const list = [...new Set(found.map(({ op }) => op))].map((op) => {
    const names = found.filter((entry) => entry.op === op).map(({ name }) => name)
    return `${op} (${names.slice(0, 3).join(', ')}${names.length > 3 ? ` and ${names.length - 3} more` : ''})`
  })
  throw new UnsupportedError({ where: 'training', what: `not through ${list.join('; ')} yet`, hint: found[0].hint })
}

function multiplies(graph: GraphProto): boolean {
  const isProduct = ({ opType }: NodeProto) => opType === 'MatMul' || opType === 'Gemm' || INTEGER_PRODUCTS.has(opType)
  return graph.node.some((node) => isProduct(node) || subgraphs(node).some(multiplies))
}
