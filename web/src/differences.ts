// Differences between two texts, by words.

/** The longest common subsequence of longer texts would take long. */
const MOST_WORDS = 400

/** The parts of a text, each with true if the other text lacks it. */
export function differences(text: string, other: string): [part: string, isNew: boolean][] {
  const [a, b] = [text, other].map((one) => (one.match(/\s*\S+/g) ?? []).slice(0, MOST_WORDS))
  // common[i][j]: how many words a from i and b from j share, in order.
  const common = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1))
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      common[i][j] = a[i] === b[j] ? common[i + 1][j + 1] + 1 : Math.max(common[i + 1][j], common[i][j + 1])
  const parts: [string, boolean][] = []
  const add = (part: string, isNew: boolean) => {
    const last = parts.at(-1)
    if (last?.[1] === isNew) last[0] += part
    else parts.push([part, isNew])
  }
  let j = 0
  for (const [i, word] of a.entries()) {
    while (j < b.length && word !== b[j] && common[i][j + 1] === common[i][j]) j++
    const isShared = word === b[j]
    if (isShared) j++
    add(word, !isShared)
  }
  const rest = text.slice(a.join('').length)
  if (rest !== '') add(rest, true)
  return parts
}
