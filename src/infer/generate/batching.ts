// Which prompts share a batch, and on which side their rows are filled up.

import type { TokenInputs } from '../../graph/inputs/tokens.js'
import { logitsDims } from '../../graph/match/linears.js'
import type { Graph } from '../../graph/view/graph.js'
import type { Padding } from './decoding.js'

/**
 * The side on which a graph's rows can be filled up. A plain cache needs a mask that hides what fills it up, and
 * positions that do not count it; where the graph takes only one of them, what it makes of the other cannot be told.
 */
export function paddingOf(graph: Graph, { cache, roles }: Pick<TokenInputs, 'cache' | 'roles'>): Padding {
  // A convolution reads the tokens that fill a row up, too.
  if (cache.some(({ axis }) => axis === undefined)) return 'none'
  const isOfLast = logitsDims(graph)?.at(-2) === 1
  if (cache.length === 0 || countsKeysFromLeft(graph)) return isOfLast ? 'none' : 'right'
  const has = (name: string) => roles.some(({ role }) => role === name)
  return has('attentionMask') && has('positionIds') ? 'left' : 'none'
}

/** True if some GroupQueryAttention gets the number of each row's keys, which it takes for the first ones. */
export function countsKeysFromLeft(graph: Graph): boolean {
  return graph.nodes.some(({ opType, input }) => {
    if (opType !== 'GroupQueryAttention') return false
    // A number that is made of the mask's shape alone is the same for all rows.
    const behind = graph.madeOf(input[5] ?? '', (maker) => maker.opType !== 'Shape')
    return Array.from(behind).some(([value]) => value === 'attention_mask' || value === 'seqlens_k')
  })
}

/** Prompts of similar length share a batch, so that little is filled up; of one length where nothing can be. */
export function batchesOf(lengths: readonly number[], batchSize: number, padding: Padding): number[][] {
  const order = [...lengths.keys()].sort((a, b) => lengths[a] - lengths[b] || a - b)
  const batches: number[][] = []
  for (const index of order) {
    const last = batches.at(-1)
    const fits = padding !== 'none' || (last !== undefined && lengths[last[0]] === lengths[index])
    if (last !== undefined && last.length < batchSize && fits) last.push(index)
    else batches.push([index])
  }
  return batches
}
