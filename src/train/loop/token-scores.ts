// An objective whose loss is computed outside the graph: the graph gives ln(probability) of each target token, and the
// entropy of its distribution if asked, and takes the loss's derivatives by these values in a second pass.

import type { Model } from '../../model/model-folder.js'
import { TensorProto_DataType as DataType } from '../../onnx/format/gen/onnx_pb.js'
import type { Feeds } from '../../onnx/runtime/runtime.js'
import type { Value } from '../../onnx/view/builder.js'
import type { ObjectiveGraph } from '../graph/objective-graph.js'
import { CausalLm, causalLm } from '../tasks/causal-lm.js'
import { chooseTargets } from '../tasks/next-tokens.js'
import type { OpenTask, Task } from '../tasks/task.js'
import { predictedRows } from '../tasks/token-probe.js'

const GRADIENT = 'loss/gradient'
const INVERSE_TEMPERATURE = 'loss/inverseTemperature'

/** For the targets of one example: ln(probability), and entropies in nats, each (t). */
export interface TokenScores {
  readonly logprobs: Float32Array
  readonly entropies: Float32Array | undefined
}

/** The task of a loop that the caller writes: its examples have any loss of these values. */
export function scoredTokens(hasEntropies: boolean): Task {
  const { peftType, use, records, check, parse, encode } = causalLm
  return {
    ...{ peftType, use, records, check, parse, encode },
    ...{ name: 'trainer', learns: 'by any loss', writesTexts: true },
    open: (model: Model) => new ScoredTokens(model, hasEntropies),
  } as unknown as Task
}

export class ScoredTokens extends CausalLm {
  readonly keepsPredictions = true
  readonly takesTurns = true

  constructor(
    model: Model,
    readonly hasEntropies: boolean,
    readonly rowsOfBatch?: number,
  ) {
    super(model, [])
  }

  override get probe(): OpenTask['probe'] {
    const { feeds, lengths } = super.probe
    const [first, second] = feeds.map((each) => ({ ...each, ...temperatureFeed(1) }))
    return { feeds: [first, second], lengths }
  }

  override forward(graph: ObjectiveGraph): Value {
    const { g } = graph
    const { logits: plain, targets } = chooseTargets(graph, this.model, 1)
    const logits = g.mul(plain, graph.input(INVERSE_TEMPERATURE, DataType.FLOAT, []))
    const losses = g.unsqueeze(graph.rowLosses(logits, targets), [1])
    const scores = this.hasEntropies ? g.op('Concat', [losses, entropies(graph, logits)], { axis: 1 }) : losses
    return graph.fedGradient(graph.predict(scores), GRADIENT)
  }

  /** The loss of a step, which the caller computes: that it exists makes the training graph one of two passes. */
  stepLoss(): never {
    throw new Error('computed by the caller')
  }

  /** `counts`: targets of each example. */
  scoresOf(outputs: Readonly<Feeds>, counts: readonly number[]): TokenScores[] {
    const rows = predictedRows(outputs)
    let end = 0
    return counts.map((count) => {
      const start = end
      end += count
      const scores = rows.slice(start, end)
      const entropies = this.hasEntropies ? Float32Array.from(scores, ([, entropy]) => entropy) : undefined
      return { logprobs: Float32Array.from(scores, ([loss]) => -loss), entropies }
    })
  }

  /** The feeds of the second pass: the derivatives of the loss by the scores of each example, (t) each. */
  gradientFeed(scores: readonly { logprobs: Float32Array; entropies?: Float32Array | undefined }[]): Feeds {
    const width = this.hasEntropies ? 2 : 1
    const count = scores.reduce((sum, { logprobs }) => sum + logprobs.length, 0)
    const data = new Float32Array(count * width)
    let row = 0
    for (const { logprobs, entropies } of scores) {
      for (let i = 0; i < logprobs.length; i++, row++) {
        data[row * width] = -logprobs[i]
        if (width === 2) data[row * width + 1] = entropies?.[i] ?? 0
      }
    }
    return { [GRADIENT]: { type: 'float32', data, dims: [count, width] } }
  }
}

export function temperatureFeed(temperature: number): Feeds {
  return { [INVERSE_TEMPERATURE]: { type: 'float32', data: Float32Array.of(1 / temperature), dims: [] } }
}

/** −Σ p·ln p of each row, (m, 1). With c = l − max l: H = −ln max p − Σ p·c, and dH/dl = −p·(c − Σ p·c). */
function entropies(graph: ObjectiveGraph, logits: Value): Value {
  const { g } = graph
  const probabilities = g.op('Softmax', [logits], { axis: 1 })
  const centered = g.sub(logits, g.reduceMax(logits, [1]))
  const mean = g.reduceSum(g.mul(probabilities, centered), [1])
  const entropy = g.sub(g.op('Neg', [g.op('Log', [g.reduceMax(probabilities, [1])])]), mean)
  graph.customGradients.set(entropy, {
    inputs: [logits],
    rule: ({ g, dy }) => [() => g.mul(g.mul(probabilities, g.sub(mean, centered)), dy)],
  })
  return entropy
}
