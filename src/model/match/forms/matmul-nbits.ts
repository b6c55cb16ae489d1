// MatMulNBits: weights of 4 or 8 bits in blocks along k, the form of `_q4` files and of onnxruntime-genai's int4:
// https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#commicrosoftmatmulnbits

import { DataType, dataTypeName, type NodeProto, type TensorProto } from '../../../onnx/format/tensors.js'
import { intAttribute } from '../../../onnx/view/attributes.js'
import type { Graph } from '../../../onnx/view/graph.js'
import { operatorOf } from '../../../onnx/view/operators.js'
import { FLOAT_DTYPES } from './float-product.js'
import { type Form, productOf } from './form.js'
import { castConstant, countOf, integerForm } from './integers.js'

export interface BlockLayout {
  readonly bits: 4 | 8
  readonly blockSize: number
  /** Blocks per row of W (d, k). The last block may extend past the row. */
  readonly blocks: number
  readonly k: number
  readonly d: number
}

export function blockLayout(node: NodeProto): BlockLayout {
  const [k, d] = [intAttribute(node, 'K', 0), intAttribute(node, 'N', 0)]
  const blockSize = intAttribute(node, 'block_size', 0)
  return { bits: intAttribute(node, 'bits', 4) as 4 | 8, blockSize, blocks: Math.ceil(k / blockSize), k, d }
}

export const [WEIGHT, SCALES, ZERO_POINTS, GROUPS] = [1, 2, 3, 4]

export const MATMUL_NBITS: Form = integerForm({
  name: 'MatMulNBits',

  find(graph, node) {
    if (operatorOf(node) !== 'com.microsoft:MatMulNBits') return undefined
    const weight = graph.constant(node.input[WEIGHT])
    if (weight === undefined) return undefined
    const { bits, blockSize, k, d } = blockLayout(node)
    const hasZeroPoints = (node.input[ZERO_POINTS] ?? '') !== ''
    return productOf(MATMUL_NBITS, node, {
      ...{ weight: node.input[WEIGHT], transposed: true, k, d },
      dataType: castConstant(graph, node.input[SCALES])?.dataType ?? DataType.FLOAT,
      layout: `${bits} bits, blocks of ${blockSize}${hasZeroPoints ? ', zero points' : ''}`,
      problem: problemOf(graph, node, weight),
    })
  },

  matrix(graph, { node, weight, k }) {
    const { bits, blockSize, blocks } = blockLayout(node)
    const [, , scales, zeroPoints] = node.input
    const zerosPerRow = hasFloatZeroPoints(graph, node) ? blocks : (Math.ceil((blocks * bits) / 8) * 8) / bits
    return {
      ...{ tensor: graph.constant(weight) as TensorProto, type: { bits, isSigned: false }, scales, zeroPoints },
      ...{ width: blocks * blockSize, kept: k, middle: 1 << (bits - 1), block: blockSize },
      scaleAt: (row, column) => row * blocks + column / blockSize,
      zeroAt: (row, column) => row * zerosPerRow + column / blockSize,
    }
  },
})

export function hasFloatZeroPoints(graph: Graph, node: NodeProto): boolean {
  const name = node.input[ZERO_POINTS] ?? ''
  return name !== '' && graph.constant(name)?.dataType !== DataType.UINT8
}

/** Names what differs from the operator's documentation, if anything. */
function problemOf(graph: Graph, node: NodeProto, weight: TensorProto): string | undefined {
  const { bits, blockSize, blocks, k, d } = blockLayout(node)
  if (bits !== 4 && bits !== 8) return `${bits} bits, not 4 or 8`
  if (!(k > 0 && d > 0)) return `sizes K = ${k}, N = ${d}`
  if (!(blockSize >= 16 && Number.isInteger(Math.log2(blockSize)))) return `blocks of ${blockSize}`
  if ((node.input[GROUPS] ?? '') !== '') return 'rows in another order (g_idx)'
  if (weight.dataType !== DataType.UINT8) return `packed in ${dataTypeName(weight.dataType)}, not UINT8`
  const expected = (d * blocks * blockSize * bits) / 8
  const got = countOf(graph, node.input[WEIGHT])
  if (got !== expected) return `a packed weight of ${got} bytes, not ${expected}`
  const scales = castConstant(graph, node.input[SCALES])
  if (scales === undefined || FLOAT_DTYPES[scales.dataType] === undefined) return 'scales that are no float constant'
  if (countOf(graph, node.input[SCALES]) !== d * blocks) {
    return `${countOf(graph, node.input[SCALES])} scales, not ${d * blocks}`
  }
  const zeroPoints = node.input[ZERO_POINTS] ?? ''
  if (zeroPoints === '') return undefined
  const tensor = castConstant(graph, zeroPoints)
  const isPacked = tensor?.dataType === DataType.UINT8
  if (tensor === undefined || (!isPacked && FLOAT_DTYPES[tensor.dataType] === undefined)) {
    return 'zero points that are no constant of bytes or floats'
  }
  const wanted = isPacked ? d * Math.ceil((blocks * bits) / 8) : d * blocks
  const found = countOf(graph, zeroPoints)
  return found === wanted ? undefined : `${found} zero points, not ${wanted}`
}
