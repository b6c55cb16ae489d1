// Chooses how exactly ONNX Runtime multiplies by quantized weights.

import { UnsupportedError } from '../core/base/errors.js'
import type { OnnxModel } from '../onnx/format/model.js'
import { setAttribute } from '../onnx/view/attributes.js'
import { type Graph, readGraph } from '../onnx/view/graph.js'

/** With 4, inputs are rounded to 8 bits, with a scale for each block of a row; with 0, they stay floats. */
export function setAccuracyLevel(graph: Graph, level: 0 | 4): void {
  for (const node of graph.nodes) {
    if (node.opType === 'MatMulNBits') setAttribute(node, 'accuracy_level', level)
  }
}

/** Throws UnsupportedError if the level is 4 and no graph has a product that it affects. */
export function accuracyEdit(level: 0 | 4, bases: readonly { readonly onnx: OnnxModel }[]): (graph: Graph) => void {
  const hasProducts = bases.some(({ onnx }) => readGraph(onnx).nodes.some(({ opType }) => opType === 'MatMulNBits'))
  if (level === 4 && !hasProducts) {
    throw new UnsupportedError({
      where: 'accuracyLevel',
      what: 'the model has no products that this option can change',
      expected: 'weights in the operator MatMulNBits, which has 4 or 8 bits in blocks, such as those of model_q4.onnx',
      got: `only other weights in ${bases.map(({ onnx }) => onnx.fileName).join(', ')}`,
      hint: "Leave out accuracyLevel, or load the model with dtype: 'q4'",
    })
  }
  return (graph) => setAccuracyLevel(graph, level)
}
