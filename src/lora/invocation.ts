// The place from which an activated LoRA changes a text (Greenewald et al. 2025, arXiv 2504.12397), as PEFT finds it.

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
