// Cross-entropy of rows from operators that ONNX Runtime's WebGPU has: it lacks LogSoftmax and OneHot.

import type { Builder, Value } from '../view/builder.js'

/**
 * Each row's −ln softmax(logits)[target], (m), and its slopes, softmax(logits) − onehot(target), (m, V), which are to
 * be built once. `logits` are (m, V); `targets` int64 (m, 2): row number and target of each row.
 */
export function rowLosses(g: Builder, logits: Value, targets: Value) {
  const probabilities = g.op('Softmax', [logits], { axis: 1 })
  // max p = exp(0) / Σ exp(l − max l), so −ln p[t] = max l − l[t] − ln max p: no exponential is taken twice, and no
  // logarithm of a probability that underflows.
  const logProbability = g.op('Log', [g.reduceMax(probabilities, [1], 0)])
  // Made last, so that ONNX Runtime computes them first: the probabilities then take the place of the logits.
  const largest = g.reduceMax(logits, [1], 0)
  return {
    losses: g.sub(g.sub(largest, g.op('GatherND', [logits, targets])), logProbability),
    slopes(g: Builder) {
      const byTargets = g.sub(g.op('GatherND', [probabilities, targets]), g.float(1))
      // It writes where the probabilities are. ScatterND would make a copy.
      const columns = g.op('Gather', [targets, g.int([1])], { axis: 1 })
      return g.op('ScatterElements', [probabilities, columns, g.unsqueeze(byTargets, [1])], { axis: 1 })
    },
  }
}
