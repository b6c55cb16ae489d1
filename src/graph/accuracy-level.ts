// How exactly ONNX Runtime multiplies by quantized weights.

import { makeAttribute } from './view/attributes.js'
import type { Graph } from './view/graph.js'

/**
 * Sets the level of all products by weights in MatMulNBits; other layers have none. With 0 their inputs stay floats. With 4 inputs are rounded
 * to 8 bits, each block of a row by its own scale:
 * https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits
 */
export function setAccuracyLevel(graph: Graph, level: 0 | 4): void {
  for (const node of graph.nodes) {
    if (node.opType !== 'MatMulNBits') continue
    const others = node.attribute.filter(({ name }) => name !== 'accuracy_level')
    node.attribute = level === 0 ? others : [...others, makeAttribute('accuracy_level', level)]
  }
}
