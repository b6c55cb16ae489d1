// Finds values that no gradient reaches, because an operator after them has none.

import { attempt } from '../../base/errors.js'
import type { ModelProto, NodeProto } from '../../formats/onnx/tensors.js'
import type { CustomGradients } from '../gradients/backward.js'
import { GRADIENTS, NON_DIFFERENTIABLE } from '../gradients/gradients.js'
import { takeBranchWithoutCache } from '../inputs/cache.js'
import { toLinearAttention } from '../lower/gated-delta-net.js'
import { lowerForTraining } from '../lower/lower.js'
import { findLinears, logitsName } from '../match/linears.js'
import type { Value } from '../view/builder.js'
import { Graph } from '../view/graph.js'
import { operatorOf } from '../view/operators.js'

/** Returns the values from which every path to the model's output may pass an operator without gradient. */
export function valuesWithoutGradient(model: ModelProto): ReadonlySet<Value> {
  const graph = new Graph(model)
  takeBranchWithoutCache(graph)
  const logits = logitsName(graph)
  graph.outputs = graph.outputs.filter(({ name }) => name === logits)
  graph.prune()
  // Nodes of quantized products have a gradient as a whole.
  const inProducts = new Set<NodeProto>()
  for (const { input, output } of findLinears(graph)) {
    for (const [, node] of graph.madeOf(output, (_, value) => value !== input)) if (node) inProducts.add(node)
  }
  const custom: CustomGradients = new Map()
  // Operators that cannot be lowered stay, and have no gradient.
  attempt(() => toLinearAttention(graph))
  attempt(() => lowerForTraining(graph, custom))
  const enters = (node: NodeProto) => !NON_DIFFERENTIABLE.has(operatorOf(node))
  const isBarrier = (node: NodeProto) =>
    enters(node) && !Object.hasOwn(GRADIENTS, operatorOf(node)) && !custom.has(node.output[0]) && !inProducts.has(node)
  const behind = new Set<Value>()
  for (const [, node] of graph.madeOf(logits, enters)) {
    if (node === undefined || !isBarrier(node) || node.output.every((output) => behind.has(output))) continue
    for (const input of node.input) for (const [value] of graph.madeOf(input, enters)) behind.add(value)
  }
  return behind
}
