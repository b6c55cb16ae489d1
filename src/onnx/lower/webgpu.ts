// Replaces operators that WebGPU in ONNX Runtime does not have, or computes in another way.

import { DataType } from '../format/tensors.js'
import { floatAttribute, intAttribute } from '../view/attributes.js'
import { Builder } from '../view/builder.js'
import type { Graph } from '../view/graph.js'

/** A number whose exponential is 0. */
const LEAST = -1e30

/** Rewrites a graph for WebGPU. Operators in half precision stay as they are. */
export function suitWebgpu(graph: Graph): void {
  if ([...graph.initializers.values()].some(({ dataType }) => dataType === DataType.FLOAT16)) return
  const g = new Builder(graph, 'webgpu')
  dropNanGuards(graph, g)
  computeDeviations(graph, g)
  graph.prune()
}

/**
 * Removes nodes that replace NaN by zeros in attention rows that see no token. WebGPU has no IsNaN: each such node
 * would copy the probabilities to the CPU and wait. Without the nodes, such rows see all tokens equally. They are
 * padding, so no one reads them.
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

/** Computes 1/√(mean x² + ε), which gradients of RMS norms read: WebGPU's second output is a different value. */
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
