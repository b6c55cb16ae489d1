// Encoding by pieces: a text is cut where no token can reach across (added tokens, the pre-tokenizer's borders, spaces of
// SentencePiece vocabularies), and the tokens of a piece are remembered. Gives the library's ids at ten times its speed, and tells
// which tokens a stretch of characters has, which the library cannot.

import * as hub from '@huggingface/tokenizers'

/** A stretch of characters of a text: UTF-16 units from `start` up to `end`. */
export interface Span {
  readonly start: number
  readonly end: number
}

/** Ids of a text, and the tokens that each span touches: indices into `ids`, the second exclusive. */
export interface EncodedSpans {
  readonly ids: number[]
  readonly ranges: (readonly [first: number, end: number])[]
}

/** What is used of the library's tokenizer. */
export interface PieceModel {
  readonly normalizer: ((text: string) => string) | null
  readonly pre_tokenizer: ((text: string, options: { section_index: number }) => string[]) | null
  readonly model: ((pieces: string[]) => string[]) | null
  token_to_id(token: string): number | undefined
}

interface AddedToken {
  readonly id: number
  readonly content: string
  readonly lstrip?: boolean
  readonly rstrip?: boolean
  readonly normalized?: boolean
}

type Json = Readonly<Record<string, unknown>>

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

/** What the ByteLevel pre-tokenizer splits by (GPT-2). */
const BYTE_LEVEL_PATTERN = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

/** SentencePiece's space. */
const SPACE = '▁'

/** A space inside a token, and the character before it. */
const JOINED = /([^▁])▁/gu

/** Pieces that are remembered: the words of a language, some megabytes. */
const MAX_CACHED_PIECES = 1 << 16

/** Longer pieces hardly come again. */
const MAX_CACHED_LENGTH = 64

/** A piece, and where it is in the text. */
interface Piece {
  /** What the vocabulary is searched for. */
  readonly text: string
  readonly start: number
  readonly end: number
}

/** How a kind of tokenizer cuts a section of text without added tokens; undefined where it cannot be told. */
interface Cutter {
  cut(section: string, sectionIndex: number): readonly string[] | undefined
  /** What the model takes for a piece. */
  toModel(piece: string): string
  /** Characters that the pieces of a section have before the section's own. */
  prefixLength(section: string, pieces: readonly string[]): number
  /** Bytes of the section's text that a token stands for. */
  byteLength(token: string): number
}

/** Encodes texts by pieces. */
export class PieceEncoder {
  readonly #hub: PieceModel
  readonly #cutter: Cutter
  readonly #added: AddedTokens | undefined
  readonly #addedNormalized: AddedTokens | undefined
  /** Whether the leading spaces of a token do not belong to it when it is asked where it starts. */
  readonly #trimsSpaces: boolean
  readonly #cache = new Map<string, readonly number[]>()

  /** @returns undefined for tokenizers that cannot be cut into pieces */
  static create(definition: Json, model: PieceModel): PieceEncoder | undefined {
    const cutter = byteLevelCutter(definition) ?? sentencePieceCutter(definition, model)
    return cutter && new PieceEncoder(definition, model, cutter)
  }

  private constructor(definition: Json, model: PieceModel, cutter: Cutter) {
    this.#hub = model
    this.#cutter = cutter
    const added = definition.added_tokens as AddedToken[]
    const isNormalized = (token: AddedToken) => token.normalized === true && model.normalizer !== null
    this.#added = AddedTokens.of(added.filter((token) => !isNormalized(token)))
    this.#addedNormalized = AddedTokens.of(added.filter(isNormalized))
    this.#trimsSpaces = steps(definition.post_processor, 'processors').some(
      ({ type, trim_offsets }) => type === 'ByteLevel' && trim_offsets !== false,
    )
  }

  /**
   * Ids without the special tokens of the tokenizer's template.
   *
   * @param spans in order, none reaching into another
   * @returns undefined where the pieces of this text do not tell
   */
  encode(text: string, spans: readonly Span[]): EncodedSpans | undefined {
    const ids: number[] = []
    const tracker = new SpanTracker(spans)
    let sectionIndex = 0
    for (const section of sectionsOf(text, 0, this.#added)) {
      const index = sectionIndex++
      if (section.id !== undefined) {
        tracker.visitToken(section, ids.length)
        ids.push(section.id)
        continue
      }
      const plain = text.slice(section.start, section.end)
      // Characters keep their places as long as a normalizer changes none of them.
      if (this.#addedNormalized !== undefined && this.#hub.normalizer?.(plain) !== plain) return undefined
      for (const part of sectionsOf(plain, section.start, this.#addedNormalized)) {
        if (part.id !== undefined) {
          tracker.visitToken(part, ids.length)
          ids.push(part.id)
        } else if (!this.#encodePart(text.slice(part.start, part.end), part.start, index, ids, tracker))
          return undefined
      }
    }
    return { ids, ranges: tracker.finish(ids.length) }
  }

  #encodePart(part: string, start: number, sectionIndex: number, ids: number[], tracker: SpanTracker): boolean {
    const pieces = this.#cutter.cut(part, sectionIndex)
    if (pieces === undefined) return false
    let at = start - this.#cutter.prefixLength(part, pieces)
    for (const text of pieces) {
      const piece = { text, start: at, end: at + text.length }
      at = piece.end
      const pieceIds = this.#idsOf(text)
      if (pieceIds === undefined) return false
      if (tracker.isDue(piece, this.#trimsSpaces)) {
        const offsets = this.#offsetsOf(piece)
        if (offsets === undefined) return false
        tracker.visit(piece, ids.length, offsets, this.#trimsSpaces)
      }
      for (let i = 0; i < pieceIds.length; i++) ids.push(pieceIds[i])
    }
    return at === start + part.length
  }

  #idsOf(piece: string): readonly number[] | undefined {
    const known = this.#cache.get(piece)
    if (known !== undefined) return known
    const ids = this.#tokensOf(piece).map((token) => this.#hub.token_to_id(token))
    if (ids.includes(undefined)) return undefined
    if (piece.length <= MAX_CACHED_LENGTH) {
      if (this.#cache.size >= MAX_CACHED_PIECES) this.#cache.clear()
      this.#cache.set(piece, ids as number[])
    }
    return ids as number[]
  }

  #tokensOf(piece: string): string[] {
    return this.#hub.model?.([this.#cutter.toModel(piece)]) ?? []
  }

  /**
   * Where each token of a piece starts and ends in the text; the tokens of one character share its place.
   *
   * @returns undefined when the tokens do not spell the piece
   */
  #offsetsOf({ text, start }: Piece): Span[] | undefined {
    const characterOf: number[] = []
    const lengthOf: number[] = []
    let index = 0
    for (const character of text) {
      const byteLength = utf8Length(character)
      for (let i = 0; i < byteLength; i++) {
        characterOf.push(start + index)
        lengthOf.push(character.length)
      }
      index += character.length
    }
    let at = 0
    const offsets = this.#tokensOf(text).map((token) => {
      const first = at
      at += this.#cutter.byteLength(token)
      const last = Math.min(at, characterOf.length) - 1
      return { start: characterOf[first], end: characterOf[last] + lengthOf[last] }
    })
    return at === characterOf.length ? offsets : undefined
  }
}

/** Finds the tokens of spans while pieces come by in order. */
class SpanTracker {
  /** Starts and ends in turn. */
  readonly #borders: number[]
  readonly #found: number[] = []

  constructor(spans: readonly Span[]) {
    this.#borders = spans.flatMap(({ start, end }) => [start, end])
  }

  /** Whether a border lies in the piece, or before it and not yet found. */
  isDue({ end }: Piece, trimsSpaces: boolean): boolean {
    const border = this.#borders[this.#found.length]
    return border !== undefined && (border < end || (border === end && trimsSpaces))
  }

  /** @param first index of the piece's first token */
  visit(piece: Piece, first: number, offsets: readonly Span[], trimsSpaces: boolean): void {
    while (this.isDue(piece, trimsSpaces)) {
      const number = this.#found.length
      const border = this.#borders[number]
      const isStart = number % 2 === 0
      const spacesOf = ({ start, end }: Span) => {
        const token = piece.text.slice(start - piece.start, end - piece.start)
        return trimsSpaces ? token.length - token.replace(/^ +/, '').length : 0
      }
      const index = isStart
        ? offsets.findIndex(({ end }) => end > border)
        : offsets.findIndex((offset) => offset.start + spacesOf(offset) >= border)
      if (index < 0 && border === piece.end) return
      this.#found.push(first + (index < 0 ? offsets.length : index))
    }
  }

  /** An added token: it has its place alone. */
  visitToken({ start, end }: Span, index: number): void {
    for (let border = this.#borders[this.#found.length]; border < end; border = this.#borders[this.#found.length]) {
      const isStart = this.#found.length % 2 === 0
      this.#found.push(isStart || border <= start ? index : index + 1)
    }
  }

  finish(length: number): (readonly [number, number])[] {
    while (this.#found.length < this.#borders.length) this.#found.push(length)
    return Array.from({ length: this.#found.length / 2 }, (_, i) => [this.#found[2 * i], this.#found[2 * i + 1]])
  }
}

interface Section extends Span {
  /** Of the added token that the section is. */
  readonly id: number | undefined
}

/**
 * Finds added tokens in a text: the leftmost, of several there the longest, as the library does. Not one regular expression of them
 * all: a vocabulary can have thousands.
 */
class AddedTokens {
  readonly #tokens: ReadonlyMap<string, AddedToken>
  readonly #firstCharacter: RegExp
  /** First two characters → lengths of the tokens that begin so, longest first. */
  readonly #lengths = new Map<string, number[]>()

  static of(tokens: readonly AddedToken[]): AddedTokens | undefined {
    const some = tokens.filter(({ content }) => content !== '')
    return some.length === 0 ? undefined : new AddedTokens(some)
  }

  private constructor(tokens: readonly AddedToken[]) {
    this.#tokens = new Map(tokens.map((token) => [token.content, token]))
    const first = new Set(tokens.map(({ content }) => escaped(content.charAt(0))))
    this.#firstCharacter = new RegExp([...first].join('|'), 'g')
    for (const content of this.#tokens.keys()) {
      const begin = content.slice(0, 2)
      const lengths = new Set([...(this.#lengths.get(begin) ?? []), content.length])
      this.#lengths.set(
        begin,
        [...lengths].sort((a, b) => b - a),
      )
    }
  }

  /** The first token at or after `from`. */
  find(text: string, from: number): { index: number; token: AddedToken } | undefined {
    const candidates = this.#firstCharacter
    candidates.lastIndex = from
    for (let match = candidates.exec(text); match !== null; match = candidates.exec(text)) {
      const token = this.#at(text, match.index)
      if (token !== undefined) return { index: match.index, token }
    }
    return undefined
  }

  #at(text: string, index: number): AddedToken | undefined {
    for (const length of this.#lengths.get(text.slice(index, index + 2)) ?? []) {
      const token = this.#tokens.get(text.slice(index, index + length))
      if (token !== undefined) return token
    }
    return this.#tokens.get(text.charAt(index))
  }
}

/** A regular expression that matches the text itself. */
function escaped(text: string): string {
  return text.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&')
}

/** The text in order: added tokens, and what lies between them. Spaces that a token takes in belong to no section. */
function* sectionsOf(text: string, offset: number, added: AddedTokens | undefined): Generator<Section> {
  let start = 0
  for (let found = added?.find(text, 0); found !== undefined; found = added?.find(text, start)) {
    const { index, token } = found
    const before = text.slice(start, index)
    const end = start + (token.lstrip ? before.trimEnd() : before).length
    if (end > start) yield { start: offset + start, end: offset + end, id: undefined }
    start = index + token.content.length
    yield { start: offset + index, end: offset + start, id: token.id }
    if (token.rstrip) start = text.length - text.slice(start).trimStart().length
  }
  if (start < text.length) yield { start: offset + start, end: offset + text.length, id: undefined }
}

/** Byte-level BPE: GPT-2, Llama 3, Qwen, SmolLM. The pre-tokenizer's own borders, found on the text before bytes are mapped. */
function byteLevelCutter(definition: Json): Cutter | undefined {
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
    cut: (section) => (isNormalized && section.normalize('NFC') !== section ? undefined : splitBy(section, splitters)),
    toModel: (piece) => toBytes(piece)[0],
    prefixLength: () => 0,
    byteLength: (token) => token.length,
  }
}

/** The text cut by each splitter in turn. Where the matches of its expression are the whole text, they are found faster here. */
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
 * SentencePiece's BPE with bytes for what it lacks: Llama 2, Mistral, Gemma. The whole text is one word to it; but no merge reaches
 * across a space that no token has behind the character before it, and such tokens are few (`>▁</` in Gemma's).
 */
function sentencePieceCutter(definition: Json, model: PieceModel): Cutter | undefined {
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

/** The steps of a part of the definition, which is one or a sequence of them. */
function steps(part: unknown, key: string): Json[] {
  const one = part as Json | null | undefined
  if (one === null || one === undefined) return []
  return one.type === 'Sequence' ? ((one[key] ?? []) as Json[]).flatMap((step) => steps(step, key)) : [one]
}

function utf8Length(text: string): number {
  let length = 0
  for (const character of text) {
    const code = character.codePointAt(0) as number
    length += code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4
  }
  return length
}
