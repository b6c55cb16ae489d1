// MatMulBnb4: blocks of 4 bits, each a number of a fixed table times the block's largest value.

import { DataType, type NodeProto } from '../../../formats/onnx/tensors.js'
import { intAttribute } from '../../view/attributes.js'
import type { Graph } from '../../view/graph.js'
import { operatorOf } from '../../view/operators.js'
import { type Form, productOf } from './form.js'
import { countOf } from './integers.js'

const NAMES = ['fp4', 'nf4']

export const MATMUL_BNB4: Form = {
  name: 'MatMulBnb4',
  isQuantized: true,

  find(graph, node) {
    if (operatorOf(node) !== 'com.microsoft:MatMulBnb4') return undefined
    if (graph.constant(node.input[1]) === undefined) return undefined
    const [k, d] = [intAttribute(node, 'K', 0), intAttribute(node, 'N', 0)]
    const type = intAttribute(node, 'quant_type', 1)
    return productOf(MATMUL_BNB4, node, {
      ...{ weight: node.input[1], transposed: true, k, d },
      dataType: graph.constant(node.input[2])?.dataType ?? DataType.FLOAT,
      layout: `4 bits (${NAMES[type] ?? `type ${type}`}), blocks of ${intAttribute(node, 'block_size', 0)}`,
      problem: problemOf(graph, node),
    })
  },

  async openLines(model, graph, product) {
    return (await import('./read-integers.js')).openTableLines(model, graph, product)
  },
}

function problemOf(graph: Graph, node: NodeProto): string | undefined {
  const [k, d, type] = ['K', 'N', 'quant_type'].map((name) => intAttribute(node, name, name === 'quant_type' ? 1 : 0))
  const blockSize = intAttribute(node, 'block_size', 0)
  if (NAMES[type] === undefined) return `quant_type ${type}, not 0 (fp4) or 1 (nf4)`
  if (!(k > 0 && d > 0 && blockSize > 0)) return `sizes K = ${k}, N = ${d}, block_size = ${blockSize}`
  if (intAttribute(node, 'transB', 1) !== 1) return 'a weight that is not transposed (transB 0)'
  const [bytes, blocks] = [Math.ceil((k * d) / 2), Math.ceil((k * d) / blockSize)]
  const [gotBytes, gotBlocks] = [countOf(graph, node.input[1]), countOf(graph, node.input[2])]
  if (gotBytes !== bytes) return `a packed weight of ${gotBytes} bytes, not ${bytes}`
  return gotBlocks === blocks ? undefined : `${gotBlocks ?? 'no constant'} scales, not ${blocks}`
}
