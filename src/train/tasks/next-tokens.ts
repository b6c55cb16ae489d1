// Shared by the tasks that predict tokens: choosing the logits that have a target, and the loss over them.

import { UnsupportedError } from '../../core/base/errors.js'
import { checkWidth } from '../../model/match/continues.js'
import { logitsName } from '../../model/match/linears.js'
import type { Model } from '../../model/model-folder.js'
import { TensorProto_DataType as DataType } from '../../onnx/format/gen/onnx_pb.js'
import type { Feeds } from '../../onnx/runtime/runtime.js'
import type { ProbedShape } from '../../onnx/shapes/shapes.js'
import type { Value } from '../../onnx/view/builder.js'
import { readGraph } from '../../onnx/view/graph.js'
import type { ObjectiveGraph, RowChoice } from '../graph/objective-graph.js'
import { ownLength, predictedRows, tokenProbe } from './token-probe.js'

/** Graph inputs of the loss: the rows that have a target, int64 (m), and [row, target], int64 (m, 2). */
const ROWS = 'loss/rows'
const TARGETS = 'loss/targets'

export const PROBED_TARGETS = [4, 11] as const

export const targetsLength = () => ownLength('targets', PROBED_TARGETS, { input: ROWS, axis: 0 })

/** The chosen logits (m, V), and the targets, int64 (m, 2). `times`: see {@link chooseTargetRows}. */
export function chooseTargets(graph: ObjectiveGraph, model: Model, times?: number): { logits: Value; targets: Value } {
  const { chosen: logits } = chooseTargetRows(graph, model, times)
  return { logits, targets: graph.input(TARGETS, DataType.INT64, ['targets', 2]) }
}

/**
 * Chooses the logits that have a target. Losses that compare whole distributions use only these, and no targets.
 *
 * @param times sequences that were measured for each sequence of {@link tokenProbe}; undefined for an encoder-decoder
 */
export function chooseTargetRows(graph: ObjectiveGraph, model: Model, times: number | undefined): RowChoice {
  const choice = graph.chooseRows(logitsName(graph), graph.input(ROWS, DataType.INT64, ['targets']))
  graph.check((shapeOf) => {
    if (times !== undefined) checkAllTokens(shapeOf(choice.all), model, times)
    checkWidth(model, shapeOf(choice.chosen)?.dims[1])
  })
  return choice
}

function checkAllTokens(shape: ProbedShape | undefined, model: Model, times: number): void {
  const { batches } = tokenProbe(readGraph(model.onnx))
  const counts = [shape?.dims[0], shape?.second[0]]
  if (batches.every(({ batch, sequence }, i) => counts[i] === times * batch * sequence)) return
  throw new UnsupportedError({
    where: 'ONNX model',
    what: 'it gives logits for some tokens only, such as the last one, but training needs them for all tokens',
    expected: 'logits (batch, sequence, vocabulary)',
    got: `${counts[0]} rows of logits for ${2 * times} sequences of 3 tokens`,
    hint: 'Export the model again without the option that cuts the logits (prune_lm_head, num_logits_to_keep)',
  })
}

export function withoutTargets({ [TARGETS]: _, ...feeds }: Feeds): Feeds {
  return feeds
}

/** @param rows row numbers, counted over all sequences; `targets` has a token for each */
export function rowFeeds(rows: readonly number[], targets: readonly number[]): Feeds {
  const pairs = targets.flatMap((target, row) => [row, target])
  return {
    [ROWS]: { type: 'int64', data: BigInt64Array.from(rows, BigInt), dims: [rows.length] },
    [TARGETS]: { type: 'int64', data: BigInt64Array.from(pairs, BigInt), dims: [rows.length, 2] },
  }
}

/** Puts all targets at the first row, which also models have that compute only the last token's logits. */
export function probeTargets(count: number): Feeds {
  return rowFeeds(Array(count).fill(0), Array(count).fill(0))
}

/** Over the targets of a text: their number, how many have the highest logit, and the sum of their losses. */
export interface TokenCounts {
  readonly loss: number
  readonly correct: number
  readonly targets: number
}

/** Loss, predictions and metrics of a task that writes texts, whatever it reads. */
export abstract class NextTokens<Example> {
  /** `times`: see {@link chooseTargetRows}. */
  constructor(
    protected readonly model: Model,
    private readonly times?: number,
  ) {}

  protected abstract targetsOf(example: Example): Int32Array

  /** Predicts, for each row, the token with the highest logit and the loss. */
  forward(graph: ObjectiveGraph): Value {
    const { g } = graph
    const { logits, targets } = chooseTargets(graph, this.model, this.times)
    const loss = graph.crossEntropy(logits, targets)
    const { losses } = graph.losses[graph.losses.length - 1]
    const tokens = g.cast(g.op('ArgMax', [logits], { axis: 1, keepdims: 0 }), DataType.FLOAT)
    graph.predict(g.op('Concat', [g.unsqueeze(tokens, [1]), g.unsqueeze(losses, [1])], { axis: 1 }))
    return this.besides(graph, logits, loss)
  }

  /** The loss, with what a task learns from besides the targets. */
  protected besides(_graph: ObjectiveGraph, _logits: Value, loss: Value): Value {
    return loss
  }

  normalizer(examples: readonly Example[]): number {
    return examples.reduce((sum, example) => sum + this.targetsOf(example).length, 0)
  }

  predict(outputs: Readonly<Feeds>, examples: readonly Example[]): TokenCounts[] {
    const found = predictedRows(outputs)
    let at = 0
    return examples.map((example) => {
      const targets = this.targetsOf(example)
      let [correct, loss] = [0, 0]
      for (const target of targets) {
        const [token, tokenLoss] = found[at++]
        if (token === target) correct++
        loss += tokenLoss
      }
      return { correct, targets: targets.length, loss }
    })
  }

  exampleLosses(counts: readonly unknown[]): number[] {
    return (counts as readonly TokenCounts[]).map(({ loss, targets }) => loss / targets)
  }

  metrics({ loss, predictions }: { loss: number; predictions: readonly unknown[] }): Record<string, number> {
    const [correct, targets] = (['correct', 'targets'] as const).map((name) =>
      (predictions as readonly TokenCounts[]).reduce((sum, counts) => sum + counts[name], 0),
    )
    return { perplexity: Math.exp(loss), accuracy: correct / targets }
  }
}
