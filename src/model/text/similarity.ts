// How alike two texts are, each number as a Python package computes it for two strings.

/** Matches what Python's split() counts as a space: also U+001C to U+001F, but not U+FEFF. */
export const isSpace = (character: string) =>
  /\p{White_Space}/u.test(character) || (character >= '\x1c' && character <= '\x1f')

/** `\s` of Python's patterns for texts, in a class. */
const SPACE = '\\p{White_Space}\\x1c-\\x1f'
const BLEU_ORDERS = 4
const GLEU_ORDERS = 4

/** How often each run of `order` items stands in a list. */
export function ngrams(items: readonly string[], order: number): Map<string, number> {
  const counts = new Map<string, number>()
  for (let i = 0; i + order <= items.length; i++) {
    const gram = items.slice(i, i + order).join(' ')
    counts.set(gram, (counts.get(gram) ?? 0) + 1)
  }
  return counts
}

/** n-grams that two lists share. */
export function sharedNgrams(a: readonly string[], b: readonly string[], order: number): number {
  const wanted = ngrams(b, order)
  let shared = 0
  for (const [gram, count] of ngrams(a, order)) shared += Math.min(count, wanted.get(gram) ?? 0)
  return shared
}

/**
 * The length of the longest common subsequence. The bits of a number are a row of the usual table (Hyyrö 2004), so that
 * long texts take hardly any time.
 */
function commonLength(a: readonly string[], b: readonly string[]): number {
  const places = new Map<string, bigint>()
  for (const [i, item] of a.entries()) places.set(item, (places.get(item) ?? 0n) | (1n << BigInt(i)))
  const all = (1n << BigInt(a.length)) - 1n
  let row = all
  for (const item of b) {
    const matches = row & (places.get(item) ?? 0n)
    row = ((row + matches) | (row - matches)) & all
  }
  let zeros = a.length
  for (const digit of row.toString(2)) if (digit === '1') zeros--
  return zeros
}

/** rouge-score's F1 without a stemmer (Lin 2004): of n-grams of words, or for `l` of the longest shared sequence. */
export function rouge(text: string, wanted: string, order: number | 'l'): number {
  const [words, wantedWords] = [text, wanted].map((value) => value.toLowerCase().match(/[a-z0-9]+/g) ?? [])
  const common = order === 'l' ? commonLength(words, wantedWords) : sharedNgrams(words, wantedWords, order)
  const left = order === 'l' ? 0 : 2 * (order - 1)
  return common === 0 ? 0 : (2 * common) / (words.length + wantedWords.length - left)
}

/** rapidfuzz's `fuzz.ratio` / 100: twice the length of the longest common subsequence, divided by the lengths' sum. */
export function fuzzyMatch(text: string, wanted: string): number {
  const [characters, wantedCharacters] = [[...text], [...wanted]]
  const total = characters.length + wantedCharacters.length
  return total === 0 ? 1 : (2 * commonLength(characters, wantedCharacters)) / total
}

/** sacrebleu's `sentence_bleu`, divided by 100: its 13a tokens, smoothed exponentially, with the effective order. */
export function bleu(text: string, wanted: string): number {
  const [words, wantedWords] = [text, wanted].map(tokens13a)
  let [smoothing, logs, orders, isAny] = [1, 0, 0, false]
  for (let order = 1; order <= BLEU_ORDERS && words.length >= order; order++) {
    const shared = sharedNgrams(words, wantedWords, order)
    if (shared > 0) isAny = true
    else smoothing *= 2
    logs += Math.log((shared === 0 ? 1 / smoothing : shared) / (words.length - order + 1))
    orders = order
  }
  if (!isAny) return 0
  return Math.exp(Math.min(0, 1 - wantedWords.length / words.length) + logs / orders)
}

/** The tokens of NIST's mteval-v13a. */
function tokens13a(text: string): string[] {
  const plain = text
    .replace(new RegExp(`[${SPACE}]+$`, 'u'), '')
    .replaceAll('<skipped>', '')
    .replaceAll('-\n', '')
    .replaceAll('\n', ' ')
    .replaceAll('&quot;', '"')
    .replaceAll('&amp;', '&')
    .replaceAll('&lt;', '<')
    .replaceAll('&gt;', '>')
  return wordsOf(
    ` ${plain} `
      .replaceAll(/[{-~[-` -&(-+:-@/]/g, ' $& ')
      .replaceAll(/([^0-9])([.,])/gu, '$1 $2 ')
      .replaceAll(/([.,])([^0-9])/gu, ' $1 $2')
      .replaceAll(/([0-9])(-)/g, '$1 $2 '),
  )
}

/** nltk's `sentence_gleu` (Wu et al. 2016) of words between spaces. */
export function gleu(text: string, wanted: string): number {
  const [words, wantedWords] = [text, wanted].map(wordsOf)
  let [shared, most] = [0, 0]
  const longest = Math.max(words.length, wantedWords.length)
  for (let order = 1; order <= GLEU_ORDERS; order++) {
    shared += sharedNgrams(words, wantedWords, order)
    most += Math.max(0, longest - order + 1)
  }
  return most === 0 ? 0 : shared / most
}

function wordsOf(text: string): string[] {
  return text.split(new RegExp(`[${SPACE}]+`, 'u')).filter((word) => word !== '')
}
