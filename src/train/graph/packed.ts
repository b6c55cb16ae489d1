// Packs trained tensors into one vector, which the graph cuts apart, and their gradients likewise. A GPU copies one
// large tensor in less time than many small ones.

import { elementCount } from '../../core/base/tensor.js'
import { DataType, type ModelProto } from '../../onnx/format/tensors.js'
import { suitWebgpu } from '../../onnx/lower/webgpu.js'
import { Builder } from '../../onnx/view/builder.js'
import { Graph } from '../../onnx/view/graph.js'
import { valueInfo } from '../../onnx/view/value-info.js'
import { PACKED, PACKED_GRADIENT } from './forward.js'
import { computeFirst, type TrainedParameter } from './passes.js'

/** Packs `tensors` one after the other. The graph may lack gradients, or some of the tensors. */
export function packTrained(model: ModelProto, tensors: readonly TrainedParameter[]): ModelProto {
  const graph = new Graph(model)
  const g = new Builder(graph, 'packed')
  const gradients = new Set(tensors.map(({ gradient }) => gradient))
  const others = graph.outputs.filter(({ name }) => !gradients.has(name))
  const hasGradients = others.length < graph.outputs.length
  graph.inputs = graph.inputs.filter(({ name }) => !tensors.some(({ input }) => input === name))
  let total = 0
  for (const { input, shape } of tensors) {
    const values = g.slice(PACKED, total, total + elementCount(shape), 0)
    // Keep this name: bodies of Scan read the tensor by it.
    graph.setOutput(g.node('Reshape', [values, g.int(shape)]), 0, input)
    total += elementCount(shape)
  }
  graph.inputs.push(valueInfo(PACKED, DataType.FLOAT, [total]))
  if (hasGradients) {
    const rows = tensors.map(({ gradient }) => g.reshape(gradient, g.int([-1])))
    graph.setOutput(g.node('Concat', rows, { axis: 0 }), 0, PACKED_GRADIENT)
    graph.outputs = [...others, valueInfo(PACKED_GRADIENT, DataType.FLOAT, [total])]
    computeFirst(graph, others[0].name)
  }
  suitWebgpu(graph)
  graph.prune()
  return graph.toModel()
}
