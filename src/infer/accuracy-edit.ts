// The edit of a model's graphs that a session's accuracyLevel asks for. It loads only with this option.

import { UnsupportedError } from '../base/errors.js'
import { setAccuracyLevel } from '../graph/accuracy-level.js'
import type { Graph } from '../graph/view/graph.js'
import { readGraph } from '../graph/view/read-graph.js'
import type { SessionBase } from './graphs.js'

/**
 * @param bases all graphs of one model
 * @throws UnsupportedError when the level is 4 and no graph has a product that it is about, so that it would change nothing
 */
export function accuracyEdit(level: 0 | 4, bases: readonly Pick<SessionBase, 'onnx'>[]): (graph: Graph) => void {
  const hasProducts = bases.some(({ onnx }) =>
    readGraph(onnx.proto).nodes.some(({ opType }) => opType === 'MatMulNBits'),
  )
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
