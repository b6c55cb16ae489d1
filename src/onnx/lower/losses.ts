// Splits losses, as PyTorch's exporter writes them, into ordinary operators.

import { DataType } from '../format/tensors.js'
import { stringAttribute } from '../view/attributes.js'
import type { Value } from '../view/builder.js'
import type { Lowering, LoweringContext } from './context.js'

export const LOSSES: Readonly<Record<string, Lowering>> = {
  // y = −wₜ·ln softmax(x)ₜ for each target t; as a mean, divided by Σ wₜ
  SoftmaxCrossEntropyLoss: (context) => {
    const logs = context.g.op('LogSoftmax', [context.inputs[0]], { axis: 1 })
    return [lossOf(context, logs), logs]
  },

  // y = −wₜ·xₜ for each target t; as a mean, divided by Σ wₜ
  NegativeLogLikelihoodLoss: (context) => [lossOf(context, context.inputs[0])],
}

/** @param logs log probabilities, (N, C, …). Targets are (N, …), and weights, one for each class, (C) */
function lossOf({ g, node, inputs: [, given, weights] }: LoweringContext, logs: Value): Value {
  const labels = g.cast(given, DataType.INT64)
  const ignored = node.attribute.find(({ name }) => name === 'ignore_index')
  const isIgnored = ignored && g.op('Equal', [labels, g.int(Number(ignored.i))])
  const targets = isIgnored ? g.where(isIgnored, g.int(0), labels) : labels
  const picked = g.op('GatherElements', [logs, g.unsqueeze(targets, [1])], { axis: 1 })
  const losses = g.neg(g.op('Squeeze', [picked, g.int([1])]))
  const own = weights ? g.op('Gather', [weights, targets]) : g.expand(g.float(1), g.shape(targets))
  const shares = isIgnored ? g.where(isIgnored, g.float(0), own) : own
  const weighted = weights || isIgnored ? g.mul(losses, shares) : losses
  switch (stringAttribute(node, 'reduction', 'mean')) {
    case 'none':
      return weighted
    case 'sum':
      return g.op('ReduceSum', [weighted], { keepdims: 0 })
    default:
      return g.div(g.op('ReduceSum', [weighted], { keepdims: 0 }), g.op('ReduceSum', [shares], { keepdims: 0 }))
  }
}
