// MatMulBnb4: blocks of 4 bits, each a number of a fixed table times the block's largest value. Tables: NF4 of QLoRA
// (arXiv 2305.14314, appendix E) and FP4 of bitsandbytes, as in ONNX Runtime's blockwise_quant_block_bnb4.h.

import { DataType, type NodeProto, type TensorProto } from '../../../onnx/format/tensors.js'
import { intAttribute } from '../../../onnx/view/attributes.js'
import type { Graph } from '../../../onnx/view/graph.js'
import { operatorOf } from '../../../onnx/view/operators.js'
import { type Form, productOf } from './form.js'
import { countOf, type IntegerType, integerForm } from './integers.js'

export const TABLES: readonly Float32Array[] = [
  Float32Array.of(
    ...[0, 5.208333333e-3, 0.66666667, 1, 0.33333333, 0.5, 0.16666667, 0.25],
    ...[-0, -5.208333333e-3, -0.66666667, -1, -0.33333333, -0.5, -0.16666667, -0.25],
  ),
  Float32Array.of(
    ...[-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453],
    ...[-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0],
    ...[0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224],
    ...[0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1],
  ),
]

const NAMES = ['fp4', 'nf4']

const NUMBERS_OF_TABLE: IntegerType = { bits: 4, isSigned: false, isHighFirst: true }

export const MATMUL_BNB4: Form = integerForm({
  name: 'MatMulBnb4',

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

  matrix(graph, { node, k }) {
    const blockSize = intAttribute(node, 'block_size', 0)
    return {
      ...{ tensor: graph.constant(node.input[1]) as TensorProto, type: NUMBERS_OF_TABLE, width: k },
      ...{ scales: node.input[2], zeroPoints: undefined, table: TABLES[intAttribute(node, 'quant_type', 1)] },
      // Blocks continue across rows.
      block: k % blockSize === 0 ? blockSize : 1,
      scaleAt: (row, column) => Math.floor((row * k + column) / blockSize),
    }
  },
})

function problemOf(graph: Graph, node: NodeProto): string | undefined {
  const [k, d, type] = ['K', 'N', 'quant_type'].map((name) => intAttribute(node, name, name === 'quant_type' ? 1 : 0))
  const blockSize = intAttribute(node, 'block_size', 0)
  if (TABLES[type] === undefined) return `quant_type ${type}, not 0 (fp4) or 1 (nf4)`
  if (!(k > 0 && d > 0 && blockSize > 0)) return `sizes K = ${k}, N = ${d}, block_size = ${blockSize}`
  if (intAttribute(node, 'transB', 1) !== 1) return 'a weight that is not transposed (transB 0)'
  const [bytes, blocks] = [Math.ceil((k * d) / 2), Math.ceil((k * d) / blockSize)]
  const [gotBytes, gotBlocks] = [countOf(graph, node.input[1]), countOf(graph, node.input[2])]
  if (gotBytes !== bytes) return `a packed weight of ${gotBytes} bytes, not ${bytes}`
  return gotBlocks === blocks ? undefined : `${gotBlocks ?? 'no constant'} scales, not ${blocks}`
}
