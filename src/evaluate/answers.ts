// Scores written texts. Some scores compare them with the wanted text: exact match, ROUGE-L (Lin 2004, as rouge-score
// computes it without a stemmer) and chrF (Popović 2015, as sacrebleu computes it: characters without spaces, n-grams
// of 1 to 6, β = 2). Or a model on any server with OpenAI's API judges two answers in both orders; if its two verdicts
// disagree, it is a tie.

import { ConfigError, RuntimeError } from '../base/errors.js'

const CHRF_ORDERS = 6
const CHRF_BETA_SQUARED = 4
/** Matches what Python's split() counts as a space: also U+001C to U+001F, but not U+FEFF. */
const isSpace = (character: string) =>
  /\p{White_Space}/u.test(character) || (character >= '\x1c' && character <= '\x1f')

export interface TextCounts {
  readonly exact: number
  readonly rougeL: number
  /** For each length of n-grams, three counts: n-grams of the text, of the wanted text, and of both. */
  readonly chrf: Float64Array
}

export function countTexts(text: string, wanted: string): TextCounts {
  return { exact: text.trim() === wanted.trim() ? 1 : 0, rougeL: rougeL(text, wanted), chrf: chrfCounts(text, wanted) }
}

export function textMetrics(texts: readonly TextCounts[]): { exactMatch: number; rougeL: number; chrF: number } {
  const sums = new Float64Array(3 * CHRF_ORDERS)
  let [exact, rouge] = [0, 0]
  for (const scores of texts) {
    exact += scores.exact
    rouge += scores.rougeL
    scores.chrf.forEach((count, i) => {
      sums[i] += count
    })
  }
  return { exactMatch: exact / texts.length, rougeL: rouge / texts.length, chrF: chrfOf(sums) }
}

/** Computes the F1 score of the longest common subsequence of words. A word is a run of a–z and 0–9, in lower case. */
function rougeL(text: string, wanted: string): number {
  const [words, wantedWords] = [text, wanted].map((text) => text.toLowerCase().match(/[a-z0-9]+/g) ?? [])
  const common = commonLength(words, wantedWords)
  return common === 0 ? 0 : (2 * common) / (words.length + wantedWords.length)
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
  const [characters, wantedCharacters] = [text, wanted].map((text) =>
    [...text].filter((character) => !isSpace(character)),
  )
  const counts = new Float64Array(3 * CHRF_ORDERS)
  for (let order = 1; order <= CHRF_ORDERS; order++) {
    const [ours, theirs] = [characters, wantedCharacters].map((characters) => ngrams(characters, order))
    let both = 0
    for (const [gram, count] of ours) both += Math.min(count, theirs.get(gram) ?? 0)
    const total = (length: number) => Math.max(0, length - order + 1)
    // If the wanted text is too short for n-grams of this length, they do not count.
    counts.set(
      [theirs.size === 0 ? 0 : total(characters.length), total(wantedCharacters.length), both],
      3 * (order - 1),
    )
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
    const [inText, wanted, both] = [counts[i], counts[i + 1], counts[i + 2]]
    if (inText === 0 || wanted === 0) continue
    precision += both / inText
    recall += both / wanted
    orders++
  }
  if (precision + recall === 0) return 0
  const [p, r] = [precision / orders, recall / orders]
  return (100 * (1 + CHRF_BETA_SQUARED) * p * r) / (CHRF_BETA_SQUARED * p + r)
}

export interface JudgeSettings {
  /** Address of the server, up to /v1. */
  readonly url: string
  readonly model: string
  readonly key?: string | undefined
}

export interface JudgedPair {
  readonly prompt: string
  readonly wanted: string
  readonly first: string
  readonly second: string
}

const TRIES = 4
const WAIT_MS = 500
const MAX_TEXT = 8000

export function checkJudge(
  url: string | undefined,
  model: string | undefined,
  key?: string,
): JudgeSettings | undefined {
  if (url === undefined && model === undefined) return undefined
  if (url === undefined)
    throw new ConfigError({ where: 'judge', what: 'missing: `judgeModel` needs the server that runs it' })
  if (model === undefined)
    throw new ConfigError({ where: 'judgeModel', what: 'missing: the name of the model that judges' })
  if (URL.canParse(url) && /^https?:$/.test(new URL(url).protocol)) return { url: url.replace(/\/+$/, ''), model, key }
  throw new ConfigError({
    where: 'judge',
    what: 'not an address',
    expected: 'a URL such as http://localhost:8080/v1',
    got: url,
  })
}

/** Asks the judge whether the second answer is better than the first: 1 better, 0.5 a tie, 0 worse. */
export async function judge(pair: JudgedPair, settings: JudgeSettings, signal?: AbortSignal): Promise<number> {
  if (pair.first === pair.second) return 0.5
  const swapped = { ...pair, first: pair.second, second: pair.first }
  const [straight, turned] = await Promise.all([pair, swapped].map((order) => ask(order, settings, signal)))
  if (straight === 'B' && turned === 'A') return 1
  return straight === 'A' && turned === 'B' ? 0 : 0.5
}

async function ask(
  { prompt, wanted, first, second }: JudgedPair,
  { url, model, key }: JudgeSettings,
  signal: AbortSignal | undefined,
): Promise<string | undefined> {
  const content = [
    'Two answers to the same question follow, and a reference answer. Which answer is better? Reply with one word: A, B or TIE.',
    ...[`[Question]\n${cut(prompt)}`, `[Reference]\n${cut(wanted)}`, `[A]\n${cut(first)}`, `[B]\n${cut(second)}`],
    'The better answer (A, B or TIE):',
  ].join('\n\n')
  const body = JSON.stringify({ model, messages: [{ role: 'user', content }], temperature: 0, max_tokens: 16 })
  const headers = { 'content-type': 'application/json', ...(key && { authorization: `Bearer ${key}` }) }
  for (let tries = 1; ; tries++) {
    const answer = await fetch(`${url}/chat/completions`, {
      method: 'POST',
      headers,
      body,
      signal: signal ?? null,
    }).catch((cause: Error) => {
      if (signal?.aborted) throw cause
      return cause
    })
    if (!(answer instanceof Error) && answer.ok) {
      const { choices } = (await answer.json().catch(() => ({}))) as { choices?: { message?: { content?: unknown } }[] }
      const text = choices?.[0]?.message?.content
      if (typeof text === 'string') return /\b([AB]|TIE)\b/.exec(text.replace(/<think>.*<\/think>/s, ''))?.[1]
      throw new RuntimeError({
        where: url,
        what: 'the judge sent no message',
        expected: 'an answer in the form of OpenAI',
      })
    }
    const isBusy = answer instanceof Error || answer.status === 429 || answer.status >= 500
    if (isBusy && tries < TRIES) {
      await new Promise((resolve) => setTimeout(resolve, WAIT_MS * 2 ** (tries - 1)))
      continue
    }
    const got =
      answer instanceof Error ? answer.message : `status ${answer.status}: ${(await answer.text()).slice(0, 200)}`
    throw new RuntimeError({
      where: url,
      what: 'the judge does not answer',
      got,
      hint: 'Check `judge` and `judgeModel`',
    })
  }
}

function cut(text: string): string {
  return text.length > MAX_TEXT ? `${text.slice(0, MAX_TEXT)} …` : text
}
