// Scores written texts by exact match, ROUGE-L (Lin 2004, as rouge-score computes it without a stemmer), chrF (Popović
// 2015, as sacrebleu computes it: characters without spaces, n-grams of 1 to 6, β = 2), or a model that judges two
// answers in both orders. If its two verdicts disagree, it is a tie.

import { ConfigError } from '../../core/base/errors.js'
import { askChat, checkAddress } from '../../core/base/post-json.js'
import { isSpace, rouge, sharedNgrams } from '../../model/text/similarity.js'

const CHRF_ORDERS = 6
const CHRF_BETA_SQUARED = 4

export interface TextCounts {
  readonly exact: number
  readonly rougeL: number
  /** For each length of n-grams, three counts: n-grams of the text, of the wanted text, and of both. */
  readonly chrf: Float64Array
}

export function countTexts(text: string, wanted: string): TextCounts {
  return {
    exact: text.trim() === wanted.trim() ? 1 : 0,
    rougeL: rouge(text, wanted, 'l'),
    chrf: chrfCounts(text, wanted),
  }
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

function chrfCounts(text: string, wanted: string): Float64Array {
  const [characters, wantedCharacters] = [text, wanted].map((text) =>
    [...text].filter((character) => !isSpace(character)),
  )
  const counts = new Float64Array(3 * CHRF_ORDERS)
  for (let order = 1; order <= CHRF_ORDERS; order++) {
    const both = sharedNgrams(characters, wantedCharacters, order)
    const total = (length: number) => Math.max(0, length - order + 1)
    // If the wanted text is too short for n-grams of this length, they do not count.
    counts.set(
      [total(wantedCharacters.length) === 0 ? 0 : total(characters.length), total(wantedCharacters.length), both],
      3 * (order - 1),
    )
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
  return { url: checkAddress(url, 'judge'), model, key }
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
  const body = { model, messages: [{ role: 'user', content }], temperature: 0, max_tokens: 16 }
  const about = { key, signal, who: 'the judge', hint: 'Check `judge` and `judgeModel`' }
  return /\b([AB]|TIE)\b/.exec((await askChat(url, body, about)).text)?.[1]
}

function cut(text: string): string {
  return text.length > MAX_TEXT ? `${text.slice(0, MAX_TEXT)} …` : text
}
