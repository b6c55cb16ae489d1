// Encoding by pieces: a text is cut where no token can reach across (added tokens, the pre-tokenizer's borders, spaces
// of SentencePiece vocabularies), and the tokens of a piece are remembered. Gives the library's ids at ten times its
// speed, and tells which tokens a stretch of characters has, which the library cannot.

import { type AddedToken, AddedTokens, type Span, sectionsOf } from './added-tokens.js'
import {
  byteLevelCutter,
  type Cutter,
  type Json,
  type PieceModel,
  sentencePieceCutter,
  steps,
  utf8Length,
} from './piece-cutters.js'

/** Ids of a text, and the tokens that each span touches: indices into `ids`, the second exclusive. */
export interface EncodedSpans {
  readonly ids: number[]
  readonly ranges: (readonly [first: number, end: number])[]
}

/** Pieces that are remembered: the words of a language, some megabytes. */
const MAX_CACHED_PIECES = 1 << 16

/** Longer pieces hardly come again. */
const MAX_CACHED_LENGTH = 64

/** Encodes texts by pieces. */
export class PieceEncoder {
  readonly #hub: PieceModel
  readonly #cutter: Cutter
  readonly #added: AddedTokens | undefined
  readonly #addedNormalized: AddedTokens | undefined
  /** True if a token starts behind its leading spaces. */
  readonly #trimsSpaces: boolean
  readonly #cache = new Map<string, readonly number[]>()
  /** The places of tokens inside of pieces at whose tokens a span began or ended. */
  readonly #places = new Map<string, readonly PlacedToken[] | 'unknown'>()

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
    const normalized = this.#cutter.normalize(part)
    const spanOf = normalized === part ? plainSpan(start) : normalizedSpan(part, start, normalized, this.#cutter)
    const pieces = spanOf && this.#cutter.cut(normalized, sectionIndex)
    if (spanOf === undefined || pieces === undefined) return false
    let at = -this.#cutter.prefixLength(normalized, pieces)
    const isPlain = normalized === part
    for (const text of pieces) {
      const pieceIds = this.#idsOf(text)
      if (pieceIds === undefined) return false
      const end = at + text.length
      // Most pieces lie between two borders: nothing is made for them.
      if (tracker.isDue(isPlain ? start + end : spanOf(at, end).end, this.#trimsSpaces)) {
        const tokens = this.#tokensIn(text, at, spanOf)
        if (tokens === undefined) return false
        tracker.visit(spanOf(at, end).end, ids.length, tokens, this.#trimsSpaces)
      }
      for (let i = 0; i < pieceIds.length; i++) ids.push(pieceIds[i])
      at = end
    }
    return at === normalized.length
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
   * Finds the place of each token of a piece in the text; the tokens of one character share its place.
   *
   * @param at where the piece starts in its part
   * @returns undefined when the tokens do not spell the piece
   */
  #tokensIn(piece: string, at: number, spanOf: SpanOf): PlacedToken[] | undefined {
    let places = this.#places.get(piece)
    if (places === undefined) {
      places = this.#placesIn(piece)
      if (this.#places.size >= MAX_CACHED_PIECES) this.#places.clear()
      if (piece.length <= MAX_CACHED_LENGTH) this.#places.set(piece, places)
    }
    if (places === 'unknown') return undefined
    return places.map(({ start, end, leadingSpaces }) => ({ ...spanOf(at + start, at + end), leadingSpaces }))
  }

  /** Places inside the piece. */
  #placesIn(piece: string): readonly PlacedToken[] | 'unknown' {
    const characterOf: number[] = []
    const endOf: number[] = []
    let index = 0
    for (const character of piece) {
      for (let i = utf8Length(character); i > 0; i--) {
        characterOf.push(index)
        endOf.push(index + character.length)
      }
      index += character.length
    }
    let byte = 0
    const tokens = this.#tokensOf(piece).map((token) => {
      const start = characterOf[byte]
      byte += this.#cutter.byteLength(token)
      const end = endOf[Math.min(byte, endOf.length) - 1]
      const text = piece.slice(start, end)
      return { start, end, leadingSpaces: text.length - text.replace(/^ +/, '').length }
    })
    return byte === characterOf.length ? tokens : 'unknown'
  }
}

/** A token in the text. */
interface PlacedToken extends Span {
  readonly leadingSpaces: number
}

/** Finds the characters of a normalized part in the text. */
type SpanOf = (from: number, to: number) => Span

function plainSpan(start: number): SpanOf {
  return (from, to) => ({ start: start + from, end: start + to })
}

/**
 * A place to cut a part, so that its halves are normalized as the whole is: no ASCII character combines with one before
 * it.
 */
const BEFORE_ASCII = /(?=[\0-\x7f])/

/**
 * The same for a part that a normalizer changes.
 *
 * @returns undefined when it changes more than what stands between its cuts
 */
function normalizedSpan(part: string, start: number, normalized: string, cutter: Cutter): SpanOf | undefined {
  const starts: number[] = []
  const ends: number[] = []
  let at = start
  let spelled = ''
  for (const given of part.split(BEFORE_ASCII)) {
    const made = cutter.normalize(given)
    const isSame = made === given
    for (let i = 0; i < made.length; i++) {
      starts.push(isSame ? at + i : at)
      ends.push(isSame ? at + i + 1 : at + given.length)
    }
    at += given.length
    spelled += made
  }
  return spelled === normalized ? (from, to) => ({ start: starts[from], end: ends[to - 1] }) : undefined
}

/** Finds the tokens of spans while pieces come by in order. */
class SpanTracker {
  /** Starts and ends in turn. */
  readonly #borders: number[]
  readonly #found: number[] = []

  constructor(spans: readonly Span[]) {
    this.#borders = spans.flatMap(({ start, end }) => [start, end])
  }

  /** True if a border lies in the piece, or lies before it and is not yet found. */
  isDue(end: number, trimsSpaces: boolean): boolean {
    const border = this.#borders[this.#found.length]
    return border !== undefined && (border < end || (border === end && trimsSpaces))
  }

  /**
   * @param end of the piece
   * @param first index of its first token
   */
  visit(end: number, first: number, tokens: readonly PlacedToken[], trimsSpaces: boolean): void {
    while (this.isDue(end, trimsSpaces)) {
      const number = this.#found.length
      const border = this.#borders[number]
      const isStart = number % 2 === 0
      const index = isStart
        ? tokens.findIndex((token) => token.end > border)
        : tokens.findIndex(({ start, leadingSpaces }) => start + (trimsSpaces ? leadingSpaces : 0) >= border)
      if (index < 0 && border === end) return
      this.#found.push(first + (index < 0 ? tokens.length : index))
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
