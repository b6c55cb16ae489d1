// The cross-entropy of rows. WebGPU in ONNX Runtime has no LogSoftmax and no OneHot, so other operators are used.

import type { Builder, Value } from '../view/builder.js'

/**
 * Appends the loss of each row, −ln softmax(logits)[target], (m). Also returns a function that appends the gradient,
 * softmax(logits) − onehot(target), (m, V); call it once. `logits` are (m, V). `targets` are int64 (m, 2): the row
 * number and the target of each row.
 */
export function rowLosses(g: Builder, logits: Value, targets: Value) {
  const probabilities = g.op('Softmax', [logits], { axis: 1 })
  // max p = exp(0) / Σ exp(l − max l), so −ln p[t] = max l − l[t] − ln max p. In this way no exponential is computed
  // twice, and no logarithm is taken of a probability that underflows.
  const logProbability = g.op('Log', [g.reduceMax(probabilities, [1], 0)])
  // These nodes come last, so that ONNX Runtime computes them first. Then the probabilities can overwrite the logits.
  const largest = g.reduceMax(logits, [1], 0)
  return {
    losses: g.sub(g.sub(largest, g.op('GatherND', [logits, targets])), logProbability),
    slopes(g: Builder) {
      const byTargets = g.sub(g.op('GatherND', [probabilities, targets]), g.float(1))
      // ScatterElements overwrites the probabilities. ScatterND would make a copy.
      const columns = g.op('Gather', [targets, g.int([1])], { axis: 1 })
      return g.op('ScatterElements', [probabilities, columns, g.unsqueeze(byTargets, [1])], { axis: 1 })
    },
  }
}
