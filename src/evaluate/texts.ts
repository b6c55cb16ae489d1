// How near a written text is to the one that is wanted: exact match, ROUGE-L (Lin 2004, as rouge-score computes it
// without a stemmer) and chrF (Popović 2015, as sacrebleu computes it: characters without spaces, n-grams of 1 to 6,
// β = 2).

const CHRF_ORDERS = 6
const CHRF_BETA_SQUARED = 4

export interface TextCounts {
  readonly exact: number
  readonly rougeL: number
  /** Three numbers for each length of n-grams: in the text, in the wanted text, and in both. */
  readonly chrf: Float64Array
}

export function countTexts(text: string, wanted: string): TextCounts {
  return {
    exact: text.trim() === wanted.trim() ? 1 : 0,
    rougeL: rougeL(text, wanted),
    chrf: chrfCounts(text, wanted),
  }
}

export function textMetrics(texts: readonly TextCounts[]): { exactMatch: number; rougeL: number; chrF: number } {
  const sums = new Float64Array(3 * CHRF_ORDERS)
  let [exact, rouge] = [0, 0]
  for (const one of texts) {
    exact += one.exact
    rouge += one.rougeL
    one.chrf.forEach((count, i) => {
      sums[i] += count
    })
  }
  return { exactMatch: exact / texts.length, rougeL: rouge / texts.length, chrF: chrfOf(sums) }
}

/** The F1 score of the longest common subsequence of words: runs of a–z and 0–9, in lower case. */
function rougeL(text: string, wanted: string): number {
  const [own, other] = [wordsOf(text), wordsOf(wanted)]
  const common = commonLength(own, other)
  return common === 0 ? 0 : (2 * common) / (own.length + other.length)
}

function wordsOf(text: string): string[] {
  return text.toLowerCase().match(/[a-z0-9]+/g) ?? []
}

function commonLength(a: readonly string[], b: readonly string[]): number {
  let before = new Uint32Array(b.length + 1)
  for (const word of a) {
    const now = new Uint32Array(b.length + 1)
    for (let j = 0; j < b.length; j++) now[j + 1] = word === b[j] ? before[j] + 1 : Math.max(before[j + 1], now[j])
    before = now
  }
  return before[b.length]
}

function chrfCounts(text: string, wanted: string): Float64Array {
  const [own, other] = [text, wanted].map((one) => [...one.replace(/\s+/gu, '')])
  const counts = new Float64Array(3 * CHRF_ORDERS)
  for (let order = 1; order <= CHRF_ORDERS; order++) {
    const [ours, theirs] = [own, other].map((characters) => ngrams(characters, order))
    let both = 0
    for (const [gram, count] of ours) both += Math.min(count, theirs.get(gram) ?? 0)
    const total = (length: number) => Math.max(0, length - order + 1)
    // Without a wanted n-gram of this length there is nothing to be right about.
    counts.set([theirs.size === 0 ? 0 : total(own.length), total(other.length), both], 3 * (order - 1))
  }
  return counts
}

function ngrams(characters: readonly string[], order: number): Map<string, number> {
  const counts = new Map<string, number>()
  for (let i = 0; i + order <= characters.length; i++) {
    const gram = characters.slice(i, i + order).join('')
    counts.set(gram, (counts.get(gram) ?? 0) + 1)
  }
  return counts
}

function chrfOf(counts: ArrayLike<number>): number {
  let [precision, recall, orders] = [0, 0, 0]
  for (let i = 0; i < counts.length; i += 3) {
    const [own, wanted, both] = [counts[i], counts[i + 1], counts[i + 2]]
    if (own === 0 || wanted === 0) continue
    precision += both / own
    recall += both / wanted
    orders++
  }
  if (precision + recall === 0) return 0
  const [p, r] = [precision / orders, recall / orders]
  return (100 * (1 + CHRF_BETA_SQUARED) * p * r) / (CHRF_BETA_SQUARED * p + r)
}
