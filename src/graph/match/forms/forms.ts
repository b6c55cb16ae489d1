// THE table of the forms that linear layers have in graphs. To add one, write a file of this folder and list it here.

import type { NodeProto } from '../../../formats/onnx/gen/onnx_pb.js'
import type { Graph } from '../../view/graph.js'
import { ATTENTION } from './attention.js'
import { DEQUANTIZE_LINEAR } from './dequantize-linear.js'
import { GEMM, MATMUL } from './float-product.js'
import type { Form, Product } from './form.js'
import { INTEGER_ATTENTION } from './integer-attention.js'
import { MATMUL_BNB4 } from './matmul-bnb4.js'
import { DYNAMIC_QUANTIZE_MATMUL, MATMUL_INTEGER } from './matmul-integer.js'
import { MATMUL_NBITS } from './matmul-nbits.js'

export const FORMS: readonly Form[] = [
  MATMUL,
  GEMM,
  MATMUL_NBITS,
  MATMUL_BNB4,
  MATMUL_INTEGER,
  DYNAMIC_QUANTIZE_MATMUL,
  DEQUANTIZE_LINEAR,
  ATTENTION,
  INTEGER_ATTENTION,
]

/** The product by a constant weight that a node computes; undefined if it computes none. */
export function findProduct(graph: Graph, node: NodeProto): Product | undefined {
  for (const form of FORMS) {
    const product = form.find(graph, node)
    if (product !== undefined) return product
  }
  return undefined
}
