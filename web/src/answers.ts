// Shows answers on the page: texts with their differences, labels, names in a text, and texts found by meaning.

import type { AdapterSession } from 'lowrank'
import { make } from './dom.js'

/** A kind of answers. */
export type AnswerKind = 'text' | 'labels' | 'names' | 'finds'

/** The kinds of answers of adapters that do not write, by PEFT's and lowrank's names for their tasks. */
export const KINDS: Readonly<Record<string, AnswerKind>> = {
  SEQ_CLS: 'labels',
  'text-classification': 'labels',
  'image-classification': 'labels',
  TOKEN_CLS: 'names',
  'token-classification': 'names',
  FEATURE_EXTRACTION: 'finds',
  embedding: 'finds',
}

const SHOWN_LABELS = 5
const SHOWN_TEXTS = 3

/**
 * Asks a session for an answer that is not a text: labels, names, or found texts.
 *
 * @param texts the texts that can be found
 */
export async function answerOf(
  session: AdapterSession,
  kind: AnswerKind,
  input: string | Uint8Array,
  adapter: string | Record<string, number> | null,
  texts: readonly string[],
): Promise<HTMLElement> {
  if (kind === 'finds') {
    if (texts.length === 0) throw new Error('There is nothing to search in: teach it pairs of texts.')
    const found = await rank(session, String(input), texts, adapter)
    const before = adapter === null ? [] : (await rank(session, String(input), texts, null)).map(({ text }) => text)
    const places = found.map((item) => ({ ...item, before: before.indexOf(item.text) + 1 }))
    return ranking(places.slice(0, SHOWN_TEXTS))
  }
  if (kind === 'names') {
    const { entities } = await session.tag(String(input), { adapter: adapter as string | null })
    return withNames(String(input), entities)
  }
  const { labels } = await session.classify(input, { adapter: adapter as string | null, topK: SHOWN_LABELS })
  return scores(labels)
}

async function rank(
  session: AdapterSession,
  query: string,
  texts: readonly string[],
  adapter: string | Record<string, number> | null,
): Promise<{ text: string; score: number }[]> {
  const [asked, ...vectors] = await session.embed([query, ...texts], { adapter })
  const found = vectors.map((vector, i) => ({
    text: texts[i],
    score: vector.reduce((sum, value, at) => sum + value * asked[at], 0),
  }))
  return found.sort((a, b) => b.score - a.score)
}

const percent = (score: number) => `${Math.round(score * 100)} %`

export function scores(lines: readonly { label: string; score: number; note?: string }[]): HTMLElement {
  const list = lines.map(({ label, score, note = percent(score) }) => {
    const bar = make('span', { class: 'bar', 'aria-hidden': 'true' })
    bar.style.width = `${Math.round(score * 100)}%`
    return make('li', {}, make('span', {}, label), make('span', {}, note), bar)
  })
  return make('ol', { class: 'scores' }, ...list)
}

/** Shows found texts, the best first, each with its place in the ranking of the model alone. */
export function ranking(found: readonly { text: string; score: number; before?: number }[]): HTMLElement {
  const notes = found.map(({ before }, i) => (!before ? '' : before === i + 1 ? 'as before' : `from place ${before}`))
  return scores(found.map(({ text, score }, i) => ({ label: text, score, note: notes[i] })))
}

export function withNames(text: string, names: readonly { start: number; end: number; label: string }[]): HTMLElement {
  const shown = make('p', { class: 'names' })
  let at = 0
  for (const { start, end, label } of names) {
    shown.append(text.slice(at, start), make('mark', {}, text.slice(start, end), make('small', {}, ` ${label}`)))
    at = end
  }
  shown.append(text.slice(at))
  return shown
}

/** Splits a text into parts. `isNew` is true for a part whose words are not in the base's text. */
export function differences(text: string, base: string): [part: string, isNew: boolean][] {
  const words = (string: string) => string.match(/\s*\S+|\s+$/g) ?? []
  const known = new Set(words(base).map((word) => word.trim()))
  const parts: [string, boolean][] = []
  for (const word of words(text)) {
    const isNew = !known.has(word.trim()) && word.trim() !== ''
    const last = parts.at(-1)
    if (last?.[1] === isNew) last[0] += word
    else parts.push([word, isNew])
  }
  return parts
}
