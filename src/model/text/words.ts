// Finds the words of a text and the first token of each. Word tags are learned and read at these tokens.

import type { Span } from './added-tokens.js'
import type { EncodedTexts, Tokenizer } from './tokenizer.js'

/** Scripts without spaces between words. Each of their characters counts as a word. */
const UNSPACED =
  '[\\p{scx=Han}\\p{scx=Hiragana}\\p{scx=Katakana}\\p{scx=Thai}\\p{scx=Lao}\\p{scx=Khmer}\\p{scx=Myanmar}]\\p{M}*'
const WORD = new RegExp(`${UNSPACED}|(?:(?!${UNSPACED})[\\p{L}\\p{N}\\p{M}_])+|\\S`, 'gu')

/** Cuts a text as BERT does: a run of letters and digits is a word, and so is every other character except spaces. */
export function wordsIn(text: string): Span[] {
  return Array.from(text.matchAll(WORD), ({ 0: word, index }) => ({ start: index, end: index + word.length }))
}

/** Joins words with spaces. `spans` says where each word stands in the text. */
export function joinWords(words: readonly string[]): { text: string; spans: Span[] } {
  let at = 0
  const spans = words.map((word) => {
    const span = { start: at, end: at + word.length }
    at = span.end + 1
    return span
  })
  return { text: words.join(' '), spans }
}

/**
 * Encodes a text. `firsts` has the index of each word's first token, or -1 if the word has no token that begins in it,
 * or was cut off.
 *
 * @param words in order, without overlaps, covering all of the text except spaces
 */
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
    const hasToken = start !== undefined && start > last && start < encoded.kept
    if (hasToken) last = start
    return hasToken ? encoded.start + start : -1
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

/**
 * Finds the words' tokens by encoding each stretch between spaces alone, which is faster. Returns undefined if the
 * stretches give other tokens than the whole text.
 */
function startsByChunk(
  tokenizer: Tokenizer,
  text: string,
  words: readonly Span[],
  ids: readonly number[],
): (number | undefined)[] | undefined {
  const starts: (number | undefined)[] = []
  let at = 0
  for (const chunk of chunksOf(text, words)) {
    const chunkIds = tokenizer.encode(chunk.text, { specialTokens: false })
    if (chunkIds.some((id, i) => id !== ids[at + i])) return undefined
    const inner =
      chunk.words.length === 1 ? [chunkIds.length > 0 ? 0 : undefined] : startsOf(tokenizer, chunk.text, chunk.words)
    for (const start of inner) starts.push(start === undefined ? undefined : at + start)
    at += chunkIds.length
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
    const chunkWords = words.slice(i, next).map((word) => ({ start: word.start - from, end: word.end - from }))
    chunks.push({ text: text.slice(from, end), words: chunkWords })
    i = next
  }
  return chunks
}
