// Activated LoRA in sessions: the base model alone reads a text up to the invocation tokens, and the adapter is active
// from there on.

import { tokenColumns, tokenInputs } from '../../graph/inputs/tokens.js'
import { invocationStart } from '../../graph/training/activation.js'
import type { Graph } from '../../graph/view/graph.js'
import type { Feeds } from '../../runtime/runtime.js'
import type { Activation } from '../graph-engine.js'
import { type Mix, notWhole } from './choice.js'

type Invocation = readonly number[] | undefined

/**
 * Finds the token of each row at which its adapter becomes active.
 *
 * @param invocations invocation tokens of each row, or a single entry for all rows
 * @throws UnsupportedError if the graph has no cache, or the feeds already hold cached tokens
 */
export function activationOf(graph: Graph, feeds: Feeds, invocations: readonly Invocation[]): Activation {
  const columns = tokenColumns(tokenInputs(graph))
  const [first] = columns.cache
  if (first === undefined || feeds[first.past]?.dims.includes(0) !== true) throw notWhole()
  const { data, dims } = feeds[columns.tokens[0]]
  const [rows, sequence] = dims
  const starts = Array.from({ length: rows }, (_, row) => {
    const tokens = invocations[row] ?? (invocations.length === 1 ? invocations[0] : undefined)
    const at = row * sequence
    return tokens === undefined ? 0 : (invocationStart(data as BigInt64Array, tokens, at, at + sequence) ?? Infinity)
  })
  return { starts, columns }
}

/**
 * Returns the adapters of a text, and how many of its first tokens the base model reads alone.
 *
 * @param canSplit whether the graph can read a prompt in pieces
 * @throws UnsupportedError if the text has an activated adapter and the graph cannot
 */
export function activatedMix(mix: Mix, ids: readonly number[], tokens: Invocation, canSplit: boolean) {
  if (tokens === undefined) return { mix, baseTokens: 0 }
  if (!canSplit) throw notWhole()
  const start = invocationStart(ids, tokens)
  return start !== undefined ? { mix, baseTokens: start } : { mix: [], baseTokens: 0 }
}
