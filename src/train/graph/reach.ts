// Finds layers that no gradient reaches, because an operator after them has none.

import { attempt, type LowrankError, listed, UnsupportedError } from '../../core/base/errors.js'
import { growWindows, takeBranchWithoutCache } from '../../model/inputs/cache.js'
import { findLinears, type Linear, logitsName } from '../../model/match/linears.js'
import { atNode, withoutWeights } from '../../model/session-model.js'
import type { OnnxModel } from '../../onnx/format/model.js'
import type { ModelProto, NodeProto } from '../../onnx/format/tensors.js'
import type { CustomGradients } from '../../onnx/gradients/backward.js'
import { GRADIENTS, NON_DIFFERENTIABLE } from '../../onnx/gradients/gradients.js'
import { toLinearAttention } from '../../onnx/lower/gated-delta-net.js'
import { lowerFused } from '../../onnx/lower/lower.js'
import { checkOperators, type SessionOpener, type SessionOptions } from '../../onnx/runtime/runtime.js'
import type { Value } from '../../onnx/view/builder.js'
import { Graph } from '../../onnx/view/graph.js'
import { listByOperator, operatorOf } from '../../onnx/view/operators.js'
import { raiseOpset } from '../../onnx/view/opset.js'
import { computeInFloat32 } from './float32.js'

export interface Reach {
  /** The graph as training would use it. */
  readonly graph: Graph
  /** The values from which a path to the model's output passes operators without a gradient, and these operators. */
  readonly stopped: ReadonlyMap<Value, readonly NodeProto[]>
  /** Why fused operators cannot be written out for training. */
  readonly refusals: readonly LowrankError[]
}

/** Finds where gradients stop, on the graph that training would use. */
export function gradientReach(model: ModelProto): Reach {
  const graph = new Graph(model)
  computeInFloat32(graph)
  takeBranchWithoutCache(graph)
  growWindows(graph)
  const logits = logitsName(graph)
  graph.outputs = graph.outputs.filter(({ name }) => name === logits)
  graph.prune()
  // Nodes of quantized products have a gradient as a whole.
  const inProducts = new Set<NodeProto>()
  for (const { input, output } of findLinears(graph)) {
    for (const [value, node] of graph.madeOf([output], (_, value) => value !== input)) {
      if (node !== undefined && value !== input) inProducts.add(node)
    }
  }
  const custom: CustomGradients = new Map()
  // Operators that cannot be lowered stay, and have no gradient.
  const refusals = [toLinearAttention, raiseOpset, lowerFused].flatMap(
    (lower) => attempt(() => lower(graph, custom)).problems,
  )
  const enters = (node: NodeProto) => !NON_DIFFERENTIABLE.has(operatorOf(node))
  const isBarrier = (node: NodeProto) =>
    enters(node) && !Object.hasOwn(GRADIENTS, operatorOf(node)) && !custom.has(node.output[0]) && !inProducts.has(node)
  const barriers = new Set<NodeProto>()
  for (const [, node] of graph.madeOf([logits], enters)) if (node !== undefined && isBarrier(node)) barriers.add(node)
  const stopped = new Map<Value, NodeProto[]>()
  for (const barrier of barriers) {
    for (const [value] of graph.madeOf(barrier.input, enters)) {
      stopped.set(value, [...(stopped.get(value) ?? []), barrier])
    }
  }
  return { graph, stopped, refusals }
}

const reachOf = (model: OnnxModel) => model.once(reachOf, () => gradientReach(model.proto))

/** Throws UnsupportedError if the runtime lacks an operator of the graph that training would use. Reads no weights. */
export async function checkRuns(model: OnnxModel, runtime: SessionOpener, options: SessionOptions): Promise<void> {
  const { graph } = reachOf(model)
  try {
    await checkOperators(runtime, withoutWeights(graph.toModel()), options)
  } catch (error) {
    throw atNode(error, graph)
  }
}

/** Throws UnsupportedError if gradients do not reach all of the layers. It runs before weights are read. */
export function checkReach(model: OnnxModel, layers: readonly Pick<Linear, 'name' | 'output'>[]): void {
  const { stopped, refusals } = reachOf(model)
  const missed = layers.filter(({ output }) => stopped.has(output))
  if (missed.length === 0) return
  const nodes = new Set(missed.flatMap(({ output }) => stopped.get(output) ?? []))
  const refused = Array.from(nodes, (node) => [operatorOf(node), node] as const)
  const others = layers.filter((layer) => !missed.includes(layer))
  const advice = 'Export the model in another way'
  throw new UnsupportedError({
    where: 'training',
    what: [
      `no gradient through ${listByOperator(refused)} reaches ${namesOf(missed)}`,
      ...refusals.map(({ message }) => message),
    ].join('; '),
    hint: others.length === 0 ? advice : `${advice}, or adapt only layers that it reaches: ${namesOf(others)}`,
  })
}

const namesOf = (layers: readonly { name: string }[]) => listed([...new Set(layers.map(({ name }) => name))], 'layers')
