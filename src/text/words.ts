// Words of a text, and the token that each begins with: what tags of words are learned from and read at.

import type { Span } from './added-tokens.js'
import type { EncodedTexts, Tokenizer } from './tokenizer.js'

/** Scripts that have no spaces between words: each character is a word. */
const UNSPACED =
  '[\\p{scx=Han}\\p{scx=Hiragana}\\p{scx=Katakana}\\p{scx=Thai}\\p{scx=Lao}\\p{scx=Khmer}\\p{scx=Myanmar}]\\p{M}*'
const WORD = new RegExp(`${UNSPACED}|(?:(?!${UNSPACED})[\\p{L}\\p{N}\\p{M}_])+|\\S`, 'gu')

/** Letters and digits that stand together, and each other character that is no space, as BERT cuts texts. */
export function wordsIn(text: string): Span[] {
  return Array.from(text.matchAll(WORD), ({ 0: word, index }) => ({ start: index, end: index + word.length }))
}

/** The words, each in its own place, and between two of them a space. */
export function joinWords(words: readonly string[]): { text: string; spans: Span[] } {
  let at = 0
  const spans = words.map((word) => {
    const span = { start: at, end: at + word.length }
    at = span.end + 1
    return span
  })
  return { text: words.join(' '), spans }
}

/** `words` are in order, none reaching into another, and hold all of the text but spaces. */
export function encodeWords(
  tokenizer: Tokenizer,
  text: string,
  words: readonly Span[],
  maxLength: number,
): EncodedTexts & { readonly firsts: readonly number[] } {
  const encoded = tokenizer.encodeTexts(text, undefined, maxLength)
  const bare = tokenizer.encode(text, { specialTokens: false })
  const starts = startsByChunk(tokenizer, text, words, bare) ?? startsOf(tokenizer, text, words)
  let last = -1
  const firsts = starts.map((start) => {
    const isOwn = start !== undefined && start > last && start < encoded.kept
    if (isOwn) last = start
    return isOwn ? encoded.start + start : -1
  })
  return { ...encoded, firsts }
}

function startsOf(tokenizer: Tokenizer, text: string, words: readonly Span[]): (number | undefined)[] {
  const { ranges } = tokenizer.encodeSpans(text, words)
  return ranges.map(([first, end]) => (first < end ? first : undefined))
}

interface Chunk {
  readonly text: string
  readonly words: readonly Span[]
}

/** Undefined where the tokens of stretches between spaces are not those of the whole text. */
function startsByChunk(
  tokenizer: Tokenizer,
  text: string,
  words: readonly Span[],
  ids: readonly number[],
): (number | undefined)[] | undefined {
  const starts: (number | undefined)[] = []
  let at = 0
  for (const chunk of chunksOf(text, words)) {
    const own = tokenizer.encode(chunk.text, { specialTokens: false })
    if (own.some((id, i) => id !== ids[at + i])) return undefined
    const inner =
      chunk.words.length === 1 ? [own.length > 0 ? 0 : undefined] : startsOf(tokenizer, chunk.text, chunk.words)
    for (const start of inner) starts.push(start === undefined ? undefined : at + start)
    at += own.length
  }
  return at === ids.length ? starts : undefined
}

function chunksOf(text: string, words: readonly Span[]): Chunk[] {
  const chunks: Chunk[] = []
  let end = 0
  for (let i = 0; i < words.length; ) {
    let next = i + 1
    while (next < words.length && words[next].start === words[next - 1].end) next++
    const from = end
    end = words[next - 1].end
    const own = words.slice(i, next).map((word) => ({ start: word.start - from, end: word.end - from }))
    chunks.push({ text: text.slice(from, end), words: own })
    i = next
  }
  return chunks
}
