// Operators that WebGPU lacks, or computes otherwise, in other words.

import { DataType } from '../../formats/onnx/tensors.js'
import { floatAttribute, intAttribute } from '../view/attributes.js'
import { Builder } from '../view/builder.js'
import type { Graph } from '../view/graph.js'

/** The exponential of less is zero too. */
const LEAST = -1e30

/** Half precision stays as it is. */
export function suitWebgpu(graph: Graph): void {
  if ([...graph.initializers.values()].some(({ dataType }) => dataType === DataType.FLOAT16)) return
  const g = new Builder(graph, 'webgpu')
  dropNanGuards(graph, g)
  computeDeviations(graph, g)
  graph.prune()
}

/**
 * Some exporters make zeros of rows that see no token. WebGPU has no IsNaN: each would send the probabilities to the
 * processor, and wait. Without it, such rows see all tokens alike. They are padding, which nothing reads.
 */
function dropNanGuards(graph: Graph, g: Builder): void {
  for (const { input, output } of graph.nodes.filter(({ opType }) => opType === 'IsNaN')) {
    const softmax = graph.producer(input[0])
    const guards = graph.consumers(output[0])
    const isGuarded = guards.every((node) => node.opType === 'Where' && node.input[2] === input[0])
    if (softmax?.opType !== 'Softmax' || !isGuarded) continue
    graph.setInput(softmax, 0, g.op('Clip', [softmax.input[0], g.float(LEAST)]))
    for (const guard of guards) graph.replaceUses(guard.output[0], input[0])
  }
}

/** Gradients of RMS norms read the inverse deviation, 1/√(mean x² + ε), of which WebGPU gives out another value. */
function computeDeviations(graph: Graph, g: Builder): void {
  for (const node of graph.nodes.filter(({ opType }) => opType === 'SimplifiedLayerNormalization')) {
    const [x, deviation] = [node.input[0], node.output[1] ?? '']
    if (deviation === '' || intAttribute(node, 'axis', -1) !== -1) continue
    node.output = node.output.slice(0, 1)
    graph.invalidate()
    const square = g.add(g.reduceMean(g.mul(x, x), [-1]), g.float(floatAttribute(node, 'epsilon', 1e-5)))
    graph.setOutput(g.node('Reciprocal', [g.op('Sqrt', [square])]), 0, deviation)
  }
}
