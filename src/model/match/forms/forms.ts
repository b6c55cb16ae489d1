// The table of forms of linear layers. To add a form, write a file in this folder and list it here.

import { DataType, type NodeProto } from '../../../onnx/format/tensors.js'
import type { Graph } from '../../../onnx/view/graph.js'
import { ATTENTION } from './attention.js'
import { DEQUANTIZE_LINEAR } from './dequantize-linear.js'
import { FLOAT_DTYPES, GEMM, MATMUL } from './float-product.js'
import type { Form, Product } from './form.js'
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
]

export function findProduct(graph: Graph, node: NodeProto): Product | undefined {
  for (const form of FORMS) {
    const product = form.find(graph, node)
    if (product !== undefined) return product
  }
  return undefined
}

/** Ways to merge into a layer: into its weight, or as a branch beside it. */
export type MergeWay = 'weights' | 'branches'

/** Tells how a layer can be used. `merge` is empty if it cannot be merged into. */
export function abilitiesOf({ form, dataType, problem }: Product) {
  const run = FLOAT_DTYPES[dataType] !== undefined
  const isReadable = problem === undefined
  const merge: MergeWay[] = !run ? [] : form.isQuantized ? ['branches'] : isReadable ? ['weights'] : []
  return {
    run,
    merge,
    train:
      (dataType === DataType.FLOAT || dataType === DataType.FLOAT16) &&
      isReadable &&
      !(form.isQuantized && form.isLookup),
    problem,
  }
}
