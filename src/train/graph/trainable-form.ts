// Refuses forms of a model that cannot be trained.

import { UnsupportedError } from '../../core/base/errors.js'
import { abilitiesOf } from '../../model/match/forms/forms.js'
import { findLinears } from '../../model/match/linears.js'
import { COMPILED, INTEGER_PRODUCTS } from '../../model/place/linears.js'
import { DataType, dataTypeName, type GraphProto, type NodeProto } from '../../onnx/format/tensors.js'
import { type Graph, subgraphs } from '../../onnx/view/graph.js'
import { listByOperator } from '../../onnx/view/operators.js'

const FLOAT_EXPORT = "Train on the model's float32 export: the adapter also fits this one"
/** The advice for graphs that sessions cannot adapt either. */
const FLOAT_EXPORT_ONLY = "Train on the model's float32 export: the adapter runs there, but not on this one"
const NOT_COMPILED = 'Take the export that the graph was compiled from'
const NOT_NESTED = 'Export the model in another way, so that its layers are not in the body of a Loop or Scan'

/** Throws UnsupportedError listing, by operator, the nodes that cannot be trained whatever is adapted. */
export function checkTrainableForm(graph: Graph): void {
  const found: { operator: string; node: NodeProto; hint: string }[] = []
  const linears = new Map(findLinears(graph).map((linear) => [linear.node, linear]))
  for (const node of graph.nodes) {
    const operator = node.opType
    if (INTEGER_PRODUCTS.includes(operator) && !linears.has(node))
      found.push({ operator, node, hint: FLOAT_EXPORT_ONLY })
    else if (operator === COMPILED) found.push({ operator, node, hint: NOT_COMPILED })
    else if (subgraphs(node).some(multiplies)) found.push({ operator, node, hint: NOT_NESTED })
  }
  for (const linear of linears.values()) {
    const { node, dataType, problem } = linear
    if (abilitiesOf(linear).train) continue
    const type = dataType === DataType.FLOAT ? '' : `${dataTypeName(dataType).toLowerCase()} `
    const operator = problem === undefined ? `${type}${node.opType}` : `${node.opType} with ${problem}`
    found.push({ operator, node, hint: abilitiesOf(linear).run ? FLOAT_EXPORT : FLOAT_EXPORT_ONLY })
  }
  if (found.length === 0) return
  const list = listByOperator(found.map(({ operator, node }) => [operator, node]))
  throw new UnsupportedError({ where: 'training', what: `not through ${list} yet`, hint: found[0].hint })
}

function multiplies(graph: GraphProto): boolean {
  const isProduct = ({ opType }: NodeProto) =>
    opType === 'MatMul' || opType === 'Gemm' || INTEGER_PRODUCTS.includes(opType)
  return graph.node.some((node) => isProduct(node) || subgraphs(node).some(multiplies))
}
