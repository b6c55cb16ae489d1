// Cuts texts at places that no token reaches across, for the two kinds of tokenizers that language models have:
// byte-level BPE and SentencePiece's BPE, as their tokenizer.json describes them.

import * as hub from '@huggingface/tokenizers'
import { escaped } from './added-tokens.js'

export interface PieceModel {
  readonly normalizer: ((text: string) => string) | null
  readonly pre_tokenizer: ((text: string, options: { section_index: number }) => string[]) | null
  readonly model: ((pieces: string[]) => string[]) | null
  token_to_id(token: string): number | undefined
}

export type Json = Readonly<Record<string, unknown>>

/** One step of cutting a text, by the library: a function, and the expression behind it. */
type PreTokenizer = ((text: string) => string[]) & { readonly pattern: RegExp | null }
type PreTokenizerClass = new (config: object) => PreTokenizer
const { SplitPreTokenizer, DigitsPreTokenizer, PunctuationPreTokenizer, ByteLevelPreTokenizer } =
  hub as unknown as Record<string, PreTokenizerClass>
const SPLITTERS: Readonly<Record<string, PreTokenizerClass>> = {
  Split: SplitPreTokenizer,
  Digits: DigitsPreTokenizer,
  Punctuation: PunctuationPreTokenizer,
}

/** The expression that the ByteLevel pre-tokenizer splits by (GPT-2). */
const BYTE_LEVEL_PATTERN = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

const SPACE = '▁'

/** A space inside a token, and the character before it. */
const JOINED = /([^▁])▁/gu

/** How a kind of tokenizer cuts a section of text without added tokens; undefined where it cannot be told. */
export interface Cutter {
  /** The section as it is cut: characters may be composed. */
  normalize(section: string): string
  cut(section: string, sectionIndex: number): readonly string[] | undefined
  toModel(piece: string): string
  /** Characters that the pieces of a section have before the section's own. */
  prefixLength(section: string, pieces: readonly string[]): number
  /** Bytes of the section's text that a token stands for. */
  byteLength(token: string): number
}

/** Byte-level BPE: GPT-2, Llama 3, Qwen, SmolLM. */
export function byteLevelCutter(definition: Json): Cutter | undefined {
  const list = steps(definition.pre_tokenizer, 'pretokenizers')
  const last = list.at(-1)
  const isKnown = list.slice(0, -1).every(({ type, behavior = 'Isolated' }) => {
    return Object.hasOwn(SPLITTERS, type as string) && behavior === 'Isolated'
  })
  if (last?.type !== 'ByteLevel' || last.add_prefix_space === true || !isKnown) return undefined
  const normalizers = steps(definition.normalizer, 'normalizers')
  if (!normalizers.every(({ type }) => type === 'NFC')) return undefined
  const isNormalized = normalizers.length > 0
  const gpt2 = { type: 'Split', pattern: { Regex: BYTE_LEVEL_PATTERN }, behavior: 'Isolated', invert: false }
  const configs: Json[] = last.use_regex === false ? list.slice(0, -1) : [...list.slice(0, -1), gpt2]
  const splitters = configs.map((config) => new SPLITTERS[config.type as string](config))
  const toBytes = new ByteLevelPreTokenizer({ use_regex: false, add_prefix_space: false })
  return {
    normalize: (section) => (isNormalized ? section.normalize('NFC') : section),
    cut: (section) => splitBy(section, splitters),
    toModel: (piece) => toBytes(piece)[0],
    prefixLength: () => 0,
    byteLength: (token) => token.length,
  }
}

/** Finds the matches of an expression faster than the library where they are the whole text. */
function splitBy(text: string, splitters: readonly PreTokenizer[]): string[] {
  let pieces = [text]
  for (const splitter of splitters) {
    const smaller: string[] = []
    for (const piece of pieces) {
      const matches = (splitter.pattern && piece.match(splitter.pattern)) ?? []
      let length = 0
      for (const match of matches) length += match.length
      for (const match of length === piece.length ? matches : splitter(piece)) if (match !== '') smaller.push(match)
    }
    pieces = smaller
  }
  return pieces
}

/**
 * SentencePiece's BPE with bytes for what it lacks: Llama 2, Mistral, Gemma. The whole text is one word to it; but no
 * merge reaches across a space that no token has behind the character before it, and such tokens are few (`>▁</` in
 * Gemma's).
 */
export function sentencePieceCutter(definition: Json, model: PieceModel): Cutter | undefined {
  const { type, byte_fallback, ignore_merges, vocab } = definition.model as Json
  if (type !== 'BPE' || byte_fallback !== true || ignore_merges === true) return undefined
  const normalizers = steps(definition.normalizer, 'normalizers')
  const pretokenizers = steps(definition.pre_tokenizer, 'pretokenizers')
  if (!normalizers.every(({ type }) => type === 'Prepend' || type === 'Replace')) return undefined
  if (!pretokenizers.every(({ type }) => type === 'Metaspace' || type === 'Split')) return undefined
  const joined = new Set([SPACE])
  for (const token of Object.keys(vocab as object)) for (const [, before] of token.matchAll(JOINED)) joined.add(before)
  const border = new RegExp(`(?<!${[...joined].map(escaped).join('|')})(?=${SPACE})`, 'u')
  const isMarked = (section: string, pieces: readonly string[]) => {
    const length = pieces.reduce((sum, piece) => sum + piece.length, 0)
    return length === section.length + 1 && pieces[0]?.startsWith(SPACE)
  }
  return {
    normalize: (section) => section,
    cut(section, sectionIndex) {
      const normalized = model.normalizer?.(section) ?? section
      const words = model.pre_tokenizer?.(normalized, { section_index: sectionIndex }) ?? [normalized]
      const pieces = words.flatMap((word) => word.split(border)).filter((piece) => piece !== '')
      const spelled = pieces.join('').slice(isMarked(section, pieces) ? 1 : 0)
      return spelled === section.replaceAll(' ', SPACE) ? pieces : undefined
    },
    toModel: (piece) => piece,
    prefixLength: (section, pieces) => (isMarked(section, pieces) ? 1 : 0),
    byteLength: (token) => (/^<0x[0-9A-F]{2}>$/.test(token) ? 1 : utf8Length(token)),
  }
}

export function steps(part: unknown, key: string): Json[] {
  const one = part as Json | null | undefined
  if (one === null || one === undefined) return []
  return one.type === 'Sequence' ? ((one[key] ?? []) as Json[]).flatMap((step) => steps(step, key)) : [one]
}

export function utf8Length(text: string): number {
  let length = 0
  for (const character of text) {
    const code = character.codePointAt(0) as number
    length += code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4
  }
  return length
}
