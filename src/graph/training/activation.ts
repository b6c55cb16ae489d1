// The tokens that an activated LoRA changes: from the last invocation of their row on (Greenewald et al. 2025, arXiv
// 2504.12397), found as in PEFT.

import type { Feeds } from '../../runtime/runtime.js'

/**
 * Returns where the last invocation begins in a text; undefined if the text has none.
 *
 * @param ids tokens; the text is [start, end)
 */
export function invocationStart(
  ids: ArrayLike<number | bigint>,
  tokens: readonly number[],
  start = 0,
  end = ids.length,
): number | undefined {
  for (let first = end - tokens.length; first >= start; first--) {
    if (tokens.every((token, i) => Number(ids[first + i]) === token)) return first - start
  }
  return undefined
}

/** The graph input that activates branches by token: float32 (rows, 1), 1 or 0. */
export const ACTIVE = 'lora/active'

/** Makes the feed of {@link ACTIVE}; empty for adapters that are always active. */
export function activeFeeds(feeds: Feeds, invocation: readonly number[] | undefined): Feeds {
  if (invocation === undefined) return {}
  const { data: ids, dims } = feeds.input_ids
  const [rows, sequence] = dims
  const data = new Float32Array(rows * sequence)
  for (let start = 0; start < data.length; start += sequence) {
    const end = start + sequence
    data.fill(1, start + (invocationStart(ids as BigInt64Array, invocation, start, end) ?? sequence), end)
  }
  return { [ACTIVE]: { type: 'float32', data, dims: [data.length, 1] } }
}
