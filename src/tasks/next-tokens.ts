// Shared code of the tasks that predict tokens: the rows of the logits that have a target, and the loss over them.

import { TensorProto_DataType as DataType } from '../formats/onnx/gen/onnx_pb.js'
import { logitsName } from '../graph/match/linears.js'
import type { ObjectiveGraph, RowChoice } from '../graph/training/objective-graph.js'
import type { Value } from '../graph/view/builder.js'
import type { Feeds, RuntimeTensor } from '../runtime/runtime.js'
import { ownLength } from './token-batch.js'

/** Graph inputs of the loss: rows with a target int64 (m), [row, target] int64 (m, 2). */
const ROWS = 'loss/rows'
const TARGETS = 'loss/targets'

export const PROBED_TARGETS = [4, 11] as const

export const targetsLength = () => ownLength('targets', PROBED_TARGETS, { input: ROWS, axis: 0 })

export function chooseTargets(graph: ObjectiveGraph): { choice: RowChoice; targets: Value } {
  const rows = graph.input(ROWS, DataType.INT64, ['targets'])
  const targets = graph.input(TARGETS, DataType.INT64, ['targets', 2])
  return { choice: graph.chooseRows(logitsName(graph), rows), targets }
}

/** Gives out, for each row, the token of the highest logit and the loss. */
export function nextTokenLoss(graph: ObjectiveGraph): { choice: RowChoice; loss: Value } {
  const { g } = graph
  const { choice, targets } = chooseTargets(graph)
  const loss = graph.crossEntropy(choice.chosen, targets)
  const { losses } = graph.losses[graph.losses.length - 1]
  const tokens = g.cast(g.op('ArgMax', [choice.chosen], { axis: 1, keepdims: 0 }), DataType.FLOAT)
  graph.predict(g.op('Concat', [g.unsqueeze(tokens, [1]), g.unsqueeze(losses, [1])], { axis: 1 }))
  return { choice, loss }
}

/** @param rows numbers of rows, counted over all sequences; `targets` has a token for each */
export function rowFeeds(rows: readonly number[], targets: readonly number[]): Feeds {
  const pairs = targets.flatMap((target, row) => [row, target])
  return {
    [ROWS]: { type: 'int64', data: BigInt64Array.from(rows, BigInt), dims: [rows.length] },
    [TARGETS]: { type: 'int64', data: BigInt64Array.from(pairs, BigInt), dims: [rows.length, 2] },
  }
}

/** All targets at the first row: it is there in models that compute logits of the last tokens alone, too. */
export function probeTargets(count: number): Feeds {
  return rowFeeds(Array(count).fill(0), Array(count).fill(0))
}

/** Counted over the targets of a text: how many, how many right by the highest logit, and the sum of their losses. */
export interface TokenCounts {
  readonly loss: number
  readonly correct: number
  readonly targets: number
}

function rowsOf(outputs: Readonly<Record<string, RuntimeTensor>>): Float32Array {
  return Object.values(outputs).find(({ dims }) => dims.length === 2)?.data as Float32Array
}

export function predictedTokens(outputs: Readonly<Record<string, RuntimeTensor>>): number[] {
  return Array.from(rowsOf(outputs).filter((_, i) => i % 2 === 0))
}

export function countCorrect(
  outputs: Readonly<Record<string, RuntimeTensor>>,
  targets: readonly ArrayLike<number>[],
): TokenCounts[] {
  const found = rowsOf(outputs)
  let at = 0
  return targets.map((own) => {
    let [correct, loss] = [0, 0]
    for (let i = 0; i < own.length; i++) {
      if (found[at++] === own[i]) correct++
      loss += found[at++]
    }
    return { correct, targets: own.length, loss }
  })
}

export function textLosses(counts: readonly unknown[]): number[] {
  return (counts as readonly TokenCounts[]).map(({ loss, targets }) => loss / targets)
}

export function tokenMetrics(loss: number, counts: readonly TokenCounts[]): Record<string, number> {
  const sum = (of: (counted: TokenCounts) => number) => counts.reduce((total, counted) => total + of(counted), 0)
  return { perplexity: Math.exp(loss), accuracy: sum(({ correct }) => correct) / sum(({ targets }) => targets) }
}
