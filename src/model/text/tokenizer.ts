// Encodes and decodes texts with @huggingface/tokenizers (tokenizer.json, tokenizer_config.json). Adds what training
// needs and the library lacks: the tokens of a stretch of text, speed, and decoding token by token.

import * as hub from '@huggingface/tokenizers'
import { type Directory, readJson, readJsonIfThere } from '../../core/base/bytes.js'
import { FileError, FormatError, MismatchError } from '../../core/base/errors.js'
import { commonLength, firstOf } from '../../core/base/group.js'
import { isObject } from '../../core/base/options.js'
import type { Span } from './added-tokens.js'
import {
  asked,
  type DecoderFiles,
  type DecodingLibrary,
  decoderFiles,
  type TextStream,
  TokenDecoder,
} from './decoder.js'
import { type EncodedSpans, PieceEncoder, type PieceModel } from './piece-encoder.js'
import { type Vocabulary, vocabularyOf } from './vocabulary.js'

/** The parts of the library that we use. Its declarations do not resolve under Node's module rules. */
interface HubTokenizer extends PieceModel, DecodingLibrary {
  encode(
    text: string,
    options: { add_special_tokens: boolean; text_pair?: string; return_token_type_ids?: boolean },
  ): { ids: (number | undefined)[]; tokens: string[]; token_type_ids?: number[] }
  readonly model: (PieceModel['model'] & { readonly unk_token_id?: number }) | null
}
const HubTokenizer = hub.Tokenizer as unknown as new (definition: object, config: object) => HubTokenizer

/** Turns text into a model's token ids and back. */
export interface Tokenizer {
  /** The folder that it came from, for error messages. */
  readonly name: string
  /** The token that ends a text, from tokenizer_config.json. Undefined if the file does not give one. */
  readonly eosTokenId: number | undefined
  /** The token that begins a text. */
  readonly bosTokenId: number | undefined
  /** The token that pads batches. */
  readonly padTokenId: number | undefined
  /** Returns the id of a token, spelled as in the vocabulary, or undefined if there is no such token. */
  tokenId(token: string): number | undefined
  /** Returns the ids of `text`, with the special tokens that the template in tokenizer.json adds. */
  encode(text: string, options?: { specialTokens?: boolean }): number[]
  /**
   * Encodes prompt + completion as one string. `completionStart` is the index of the first token that overlaps the
   * completion, or ids.length if none does. Tokens after the first `enough` may be missing.
   */
  encodePair(prompt: string, completion: string, enough?: number): { ids: number[]; completionStart: number }
  /**
   * Encodes `text` without adding special tokens, and finds the tokens that touch each span, as the assistant mask of
   * transformers does. Spans must be sorted and must not overlap. Tokens after the first `enough` may be missing.
   */
  encodeSpans(text: string, spans: readonly Span[], enough?: number): EncodedSpans
  /**
   * Encodes one or two texts with special tokens. `typeIds` says which text each token belongs to. If the result would
   * be too long, the longer text is cut first, as in transformers (`truncation=True`).
   */
  encodeTexts(first: string, second: string | undefined, maxLength: number): EncodedTexts
  /** Returns the text of `ids`. Special tokens are left out unless `specialTokens` is true. */
  decode(ids: readonly number[], options?: { specialTokens?: boolean }): string
  /**
   * Returns a decoder that takes token ids one at a time.
   *
   * @param after ids of the preceding tokens. Their text is not returned, but it can change the first characters of the
   *   new text
   * @param kept special tokens that belong to the text
   */
  stream(after?: readonly number[], kept?: readonly number[]): TextStream
  /**
   * Returns how the tokens are spelled, or undefined if the tokenizer's kind is not known.
   *
   * @param size number of tokens of the model
   */
  vocabulary(size: number): Vocabulary | undefined
  /** Plain data with which another thread decodes tokens as {@link stream} does. */
  decoderFiles(): DecoderFiles
}

/** One or two texts, encoded as a model reads them. */
export interface EncodedTexts {
  ids: number[]
  /** In most models 0 for tokens of the first text, 1 for tokens of the second. */
  typeIds: number[]
  isTruncated: boolean
  /** The index of the first text's first token, after special tokens. `kept` is how many of its tokens are kept. */
  start: number
  kept: number
}

interface TextTemplate {
  /** The special tokens before the first text, after it, and after the second text if there is one. */
  readonly around: readonly { readonly ids: readonly number[]; readonly typeIds: readonly number[] }[]
  readonly types: readonly number[]
}

export type { TextStream }

/** @param lowersCase takes texts in lower case, whatever tokenizer.json says */
export async function loadTokenizer(directory: Directory, lowersCase = false): Promise<Tokenizer> {
  if (!(await directory.has('tokenizer.json'))) throw noTokenizer(directory)
  const files = [readJson(directory, 'tokenizer.json'), readJsonIfThere(directory, 'tokenizer_config.json')]
  const [definition, config] = await Promise.all(files)
  const changed = lowersCase && isObject(definition) ? inLowerCase(definition) : definition
  return makeTokenizer(changed, config === undefined ? {} : config, directory.name)
}

function inLowerCase({ normalizer, ...definition }: Record<string, unknown>): Record<string, unknown> {
  const normalizers = [{ type: 'Lowercase' }, ...(normalizer ? [normalizer] : [])]
  return { ...definition, normalizer: { type: 'Sequence', normalizers } }
}

export function noTokenizer({ name: where }: Directory): FileError {
  const hint = 'Copy tokenizer.json and tokenizer_config.json from where the model came from'
  return new FileError({ where, what: 'no tokenizer.json in this folder', hint })
}

export function checkVocabulary(
  ids: Iterable<number>,
  {
    vocabularySize = Number.POSITIVE_INFINITY,
    tokenizer,
  }: { vocabularySize: number | undefined; tokenizer: Tokenizer },
): void {
  for (const id of ids) {
    if (id < vocabularySize) continue
    throw new MismatchError({
      where: tokenizer.name,
      what: 'the tokenizer is not that of the model',
      expected: `token ids below ${vocabularySize}`,
      got: `${id} (${JSON.stringify(tokenizer.decode([id], { specialTokens: true }))})`,
    })
  }
}

export function makeTokenizer(definition: unknown, config: unknown, name: string): Tokenizer {
  const where = `${name}/tokenizer.json`
  if (!isObject(definition) || !isObject(definition.model) || !Array.isArray(definition.added_tokens)) {
    throw new FormatError({ where, what: 'not a tokenizer', expected: 'an object with model and added_tokens' })
  }
  if (!isObject(config)) {
    throw new FormatError({ where: `${name}/tokenizer_config.json`, what: 'not an object' })
  }
  checkIds(definition.model.vocab, definition.added_tokens, where)
  return asked(where, () => {
    const tokenizer = new HubTokenizer(definition, config)
    return new HubTextTokenizer(tokenizer, PieceEncoder.create(definition, tokenizer), { definition, config }, name)
  })
}

function checkIds(vocabulary: unknown, added: readonly unknown[], where: string): void {
  const check = (token: unknown, id: unknown) => {
    if (Number.isSafeInteger(id) && (id as number) >= 0 && (id as number) < 2 ** 31) return
    const what = `the token ${JSON.stringify(token)} has no id that can be one`
    throw new FormatError({ where, what, expected: 'a whole number from 0 on', got: String(JSON.stringify(id)) })
  }
  // The vocabulary of a Unigram model is a list, where the index is the id.
  if (isObject(vocabulary)) for (const token of Object.keys(vocabulary)) check(token, vocabulary[token])
  for (const token of added) check(isObject(token) ? token.content : token, isObject(token) ? token.id : undefined)
}

class HubTextTokenizer implements Tokenizer {
  readonly eosTokenId: number | undefined
  readonly bosTokenId: number | undefined
  readonly padTokenId: number | undefined
  readonly #files: DecoderFiles
  readonly #decoder: TokenDecoder
  readonly #templates: TextTemplate[] = []

  constructor(
    private readonly hub: HubTokenizer,
    private readonly pieces: PieceEncoder | undefined,
    { definition, config }: { definition: Record<string, unknown>; config: Record<string, unknown> },
    readonly name: string,
  ) {
    this.#files = { definition, config, name }
    this.#decoder = new TokenDecoder(hub, { config, name })
    this.eosTokenId = this.#specialId(config.eos_token)
    this.bosTokenId = this.#specialId(config.bos_token)
    this.padTokenId = this.#specialId(config.pad_token)
    this.#textTemplate(1)
  }

  tokenId(token: string): number | undefined {
    return this.#ask(() => this.hub.token_to_id(token))
  }

  encode(text: string, options: { specialTokens?: boolean } = {}): number[] {
    const ids = this.#encodeBare(text)
    return options.specialTokens === false ? ids : this.#withSpecial(ids)
  }

  encodePair(prompt: string, completion: string, enough?: number): { ids: number[]; completionStart: number } {
    const text = prompt + completion
    // Without a prompt, the completion starts at token 0, so no offsets are needed.
    const spans = [{ start: prompt.length, end: text.length }]
    const { ids, ranges } = this.encodeSpans(text, prompt === '' ? [] : spans, enough)
    const [start] = ranges[0] ?? [0]
    return { ids: this.#withSpecial(ids), completionStart: this.#textTemplate(1).around[0].ids.length + start }
  }

  encodeSpans(text: string, spans: readonly Span[], enough?: number): EncodedSpans {
    const encoded = this.#ask(() => this.pieces?.encode(text, spans, enough))
    if (encoded !== undefined) return encoded
    const ids = this.#encodeWhole(text)
    const ranges = spans.map(({ start, end }) => {
      return [this.#firstAfter(ids, text, start), this.#firstFrom(ids, text, end)] as const
    })
    return { ids, ranges }
  }

  encodeTexts(first: string, second: string | undefined, maxLength: number): EncodedTexts {
    // How two texts are cut depends on the lengths of both.
    const enough = second === undefined ? maxLength + 1 : undefined
    const texts = [first, second].flatMap((text) => (text === undefined ? [] : [this.#encodeBare(text, enough)]))
    const { around, types } = this.#textTemplate(texts.length)
    const special = around.reduce((sum, { ids }) => sum + ids.length, 0)
    const textLengths = texts.map(({ length }) => length)
    const lengths = longestFirst(textLengths, Math.max(0, maxLength - special))
    const after = around.slice(1)
    const ids = [around[0].ids, after.map(({ ids }, i) => [texts[i].slice(0, lengths[i]), ids])].flat(3)
    const typesAfter = after.map(({ typeIds }, i) => [Array<number>(lengths[i]).fill(types[i]), typeIds])
    const typeIds = [around[0].typeIds, typesAfter].flat(3)
    const isTruncated = lengths.some((length, i) => length < texts[i].length)
    return { ids, typeIds, isTruncated, start: around[0].ids.length, kept: lengths[0] }
  }

  #withSpecial(ids: readonly number[]): number[] {
    const [before, after] = this.#textTemplate(1).around
    return [...before.ids, ...ids, ...after.ids]
  }

  /** Finds the special tokens around `count` texts by encoding the text `a` (twice for a pair). */
  #textTemplate(count: number): TextTemplate {
    const known = this.#templates[count]
    if (known !== undefined) return known
    const bare = this.#encodeBare('a')
    const options = { add_special_tokens: true, return_token_type_ids: true, ...(count === 2 && { text_pair: 'a' }) }
    const { ids, token_type_ids: typeIds = ids.map(() => 0) } = this.#ask(() => this.hub.encode('a', options))
    const around = []
    const types = []
    let from = 0
    for (let i = 0; i < count; i++) {
      let start = from
      while (start + bare.length < ids.length && !bare.every((id, j) => id === ids[start + j])) start++
      around.push({ ids: ids.slice(from, start) as number[], typeIds: typeIds.slice(from, start) })
      types.push(typeIds[start] ?? 0)
      from = start + bare.length
    }
    around.push({ ids: ids.slice(from) as number[], typeIds: typeIds.slice(from) })
    const template = { around, types }
    this.#templates[count] = template
    return template
  }

  decode(ids: readonly number[], options: { specialTokens?: boolean } = {}): string {
    return this.#decoder.decode(ids, { skipsSpecial: options.specialTokens !== true })
  }

  stream(after?: readonly number[], kept?: readonly number[]): TextStream {
    return this.#decoder.stream(after, kept)
  }

  vocabulary(size: number): Vocabulary | undefined {
    return vocabularyOf(this.#files.definition, size)
  }

  decoderFiles(): DecoderFiles {
    return decoderFiles(this.#files)
  }

  #decodeWhole(ids: readonly number[]): string {
    return this.#decoder.decode(ids, { skipsSpecial: false, cleansUp: false })
  }

  #ask<T>(question: () => T): T {
    return asked(`${this.name}/tokenizer.json`, question)
  }

  #encodeBare(text: string, enough?: number): number[] {
    return this.#ask(() => this.pieces?.encode(text, [], enough)?.ids) ?? this.#encodeWhole(text)
  }

  #encodeWhole(text: string): number[] {
    const { ids, tokens } = this.#ask(() => this.hub.encode(text, { add_special_tokens: false }))
    const unknown = ids.indexOf(undefined)
    if (unknown >= 0) {
      throw new FormatError({
        where: `${this.name}/tokenizer.json`,
        what: `it has no token for ${JSON.stringify(tokens[unknown])} and names no unknown token`,
      })
    }
    return ids as number[]
  }

  /**
   * Returns the index of the first token that reaches past character `at` of `text`. The library gives no offsets, so
   * the end of a token is taken to be the end of the decoded tokens up to it. That is exact if decoding gives the text
   * back. If it does not (lower-casing, Unicode normal forms), the answer is the first index where the tokens of the
   * text and those of the text up to `at` differ. It never leaves out a token after `at`, but can include tokens of the
   * word before it.
   */
  #firstAfter(ids: readonly number[], text: string, at: number): number {
    const decoded = this.#decodeWhole(ids)
    const shift = decoded === text ? 0 : decoded === ` ${text}` ? 1 : undefined
    if (shift === undefined) return this.#firstDifference(ids, text.slice(0, at))
    const end = at + shift
    // An incomplete character decodes to U+FFFD, which differs from the text: then the token touches the character
    // after the common part.
    const reachesPast = (index: number): boolean => {
      const upTo = this.#decodeWhole(ids.slice(0, index + 1))
      const common = commonLength(upTo, decoded)
      return common > end || (common === end && upTo.length > end)
    }
    return firstOf(ids.length, reachesPast)
  }

  /** Returns the index of the first token that starts at or after character `at` of `text`. */
  #firstFrom(ids: readonly number[], text: string, at: number): number {
    if (at >= text.length) return ids.length
    const index = this.#firstAfter(ids, text, at)
    // A token that contains the character before `at` too began before `at`.
    const hasBegun = at > 0 && this.#firstAfter(ids, text, at - 1) === index
    return hasBegun ? index + 1 : index
  }

  #firstDifference(ids: readonly number[], prompt: string): number {
    const alone = this.#encodeBare(prompt)
    const length = commonLength(alone, ids)
    // An unknown token stands for text of any length, so if it comes last it may reach into the completion.
    const unknown = this.hub.model?.unk_token_id
    return length > 0 && ids[length - 1] === unknown ? length - 1 : length
  }

  /** The id of a special token as tokenizer_config.json gives it: a string, or an object with `content`. */
  #specialId(token: unknown): number | undefined {
    const content = isObject(token) ? token.content : token
    return typeof content === 'string' ? this.hub.token_to_id(content) : undefined
  }
}

/** Returns how many tokens of each text stay if the longest text is cut first, as in Hugging Face's tokenizers. */
function longestFirst(lengths: readonly number[], limit: number): number[] {
  if (lengths.reduce((sum, length) => sum + length, 0) <= limit) return [...lengths]
  if (lengths.length === 1) return [limit]
  const [shorter, longer] = lengths[0] <= lengths[1] ? [0, 1] : [1, 0]
  const kept = [...lengths]
  kept[longer] = Math.max(lengths[shorter], limit - lengths[shorter])
  if (kept[0] + kept[1] > limit) {
    kept[shorter] = Math.floor(limit / 2)
    kept[longer] = limit - kept[shorter]
  }
  return kept
}
