// The tokens for which the branches of an activated LoRA count: those from the last invocation of their row on
// (Greenewald et al. 2025, arXiv 2504.12397), as PEFT finds it.

import type { Feeds } from '../../runtime/runtime.js'

/**
 * The first token of the last occurrence of an invocation; undefined in a text without it.
 *
 * @param ids the text's tokens; of a typed array, all elements in [start, end)
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

/** The graph input that says which tokens count: float32 (rows, 1), 1 or 0. */
export const ACTIVE = 'lora/active'

/** The feed of {@link ACTIVE} for a run; none for adapters that always count. */
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
