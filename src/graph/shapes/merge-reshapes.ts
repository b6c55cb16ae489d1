// A Reshape of a Reshape needs only the second. Linear layers in rows leave many such pairs.

import { integersOf } from '../../formats/onnx/tensors.js'
import type { Value } from '../view/builder.js'
import type { Graph } from '../view/graph.js'
import type { ShapeMap } from './shapes.js'

/** Lets each Reshape read what lies before the Reshapes in front of it. Those that nobody reads then are for `prune`. */
export function mergeReshapes(graph: Graph, shapes: ShapeMap): void {
  for (const node of graph.nodes) {
    if (node.opType !== 'Reshape' || !isIndependent(graph, shapes, node.input[1])) continue
    let [source] = node.input
    for (let maker = graph.producer(source); maker?.opType === 'Reshape'; maker = graph.producer(source)) {
      source = maker.input[0]
    }
    node.input = [source, node.input[1]]
  }
  graph.invalidate()
}

/** Whether a target shape says the same whatever the shape before: without a 0, which copies a dimension. */
function isIndependent(graph: Graph, shapes: ShapeMap, shape: Value): boolean {
  if (graph.producer(shape)?.opType === 'Shape') return true
  const constant = graph.constant(shape)
  const content = shapes.contents.get(shape)
  const dims = constant === undefined ? content && [...content.value, ...content.other] : integersOf(constant)
  return dims !== undefined && !dims.includes(0)
}
