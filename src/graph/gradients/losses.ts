// Cross-entropy of rows and its gradient, from operators that every execution provider has: ONNX Runtime's WebGPU has no
// LogSoftmax, OneHot or SoftmaxCrossEntropyLoss of its own.

import type { Builder, Value } from '../view/builder.js'

export interface RowLoss {
  /** Sum over rows of −ln softmax(logits)[target], times scale: a scalar. */
  readonly loss: Value
  /** softmax(logits), (m, V) */
  readonly probabilities: Value
}

/**
 * @param logits (m, V)
 * @param targets int64 (m, 2): row number and target of each row
 * @param scale f32 scalar
 */
export function crossEntropy(g: Builder, logits: Value, targets: Value, scale: Value): RowLoss {
  const probabilities = g.op('Softmax', [logits], { axis: 1 })
  // max p = exp(0) / Σ exp(l − max l), so −ln p[t] = max l − l[t] − ln max p: no exponential is taken twice, and no
  // logarithm of a probability that underflows.
  const largest = g.reduceMax(logits, [1], 0)
  const ofTargets = g.op('GatherND', [logits, targets])
  const losses = g.sub(g.sub(largest, ofTargets), g.op('Log', [g.reduceMax(probabilities, [1], 0)]))
  return { loss: g.mul(g.reduceSum(losses, [0], 0), scale), probabilities }
}

/** Gradient of the sum, without the scale, by the logits: softmax(logits) − onehot(target), (m, V). */
export function crossEntropyGradient(g: Builder, { probabilities }: RowLoss, targets: Value): Value {
  const ofTargets = g.op('GatherND', [probabilities, targets])
  return g.op('ScatterND', [probabilities, targets, g.sub(ofTargets, g.float(1))])
}
