// Adapts one tensor that holds the weights of all experts.

import { DataType } from '../../onnx/format/tensors.js'
import type { Builder, Value } from '../../onnx/view/builder.js'
import type { Graph } from '../../onnx/view/graph.js'
import { valueInfo } from '../../onnx/view/value-info.js'

/** Adds a delta (E, x, y) to the stacked weights of experts, wherever they are read. */
export function addToStack(graph: Graph, g: Builder, weight: Value, delta: Value): void {
  const { dataType, dims } = graph.constant(weight)!
  const readers = [...graph.consumers(weight)]
  const sum = g.add(weight, dataType === DataType.FLOAT ? delta : g.cast(delta, dataType))
  graph.valueInfo.push(valueInfo(sum, dataType, dims.map(Number)))
  for (const node of readers)
    graph.setInputs(
      node,
      node.input.map((input) => (input === weight ? sum : input)),
    )
}
