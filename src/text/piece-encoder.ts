// Encoding by pieces: a text is cut where no token can reach across (added tokens, the pre-tokenizer's borders, spaces
// of SentencePiece vocabularies), and the tokens of a piece are remembered. Gives the library's ids at ten times its
// speed, and tells which tokens a stretch of characters has, which the library cannot.

import { type AddedToken, AddedTokens, type Section, type Span, sectionsOf } from './added-tokens.js'
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

export class PieceEncoder {
  readonly #hub: PieceModel
  readonly #cutter: Cutter
  readonly #added: AddedTokens | undefined
  readonly #addedNormalized: AddedTokens | undefined
  readonly #trimsSpaces: boolean
  readonly #cache = new Map<string, Piece>()

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

  /** Undefined where the pieces of this text do not tell. `spans` are in order, none reaching into another. */
  encode(text: string, spans: readonly Span[]): EncodedSpans | undefined {
    const ids: number[] = []
    const places: Span[] | undefined = spans.length === 0 ? undefined : []
    const add = ({ id, start, end }: Section) => {
      ids.push(id!)
      places?.push({ start, end })
    }
    let sectionIndex = 0
    for (const section of sectionsOf(text, 0, this.#added)) {
      const index = sectionIndex++
      if (section.id !== undefined) {
        add(section)
        continue
      }
      const plain = text.slice(section.start, section.end)
      // Characters keep their places as long as a normalizer changes none of them.
      if (this.#addedNormalized !== undefined && this.#hub.normalizer?.(plain) !== plain) return undefined
      for (const part of sectionsOf(plain, section.start, this.#addedNormalized)) {
        if (part.id !== undefined) add(part)
        else if (!this.#encodePart(text.slice(part.start, part.end), part.start, index, ids, places)) return undefined
      }
    }
    const ranges = spans.map(({ start, end }) => {
      const first = firstOf(ids.length, (token) => places![token].end > start)
      return [first, firstOf(ids.length, (token) => places![token].start >= end)] as const
    })
    return { ids, ranges }
  }

  #encodePart(part: string, start: number, sectionIndex: number, ids: number[], places: Span[] | undefined): boolean {
    const normalized = this.#cutter.normalize(part)
    const spanOf = normalized === part ? plainSpan(start) : normalizedSpan(part, start, normalized, this.#cutter)
    const pieces = spanOf && this.#cutter.cut(normalized, sectionIndex)
    if (spanOf === undefined || pieces === undefined) return false
    let at = -this.#cutter.prefixLength(normalized, pieces)
    for (const text of pieces) {
      const own = this.#known(text)
      if (own === undefined) return false
      for (let i = 0; i < own.ids.length; i++) ids.push(own.ids[i])
      if (places !== undefined) {
        own.places ??= this.#placesIn(text)
        if (own.places === 'unknown') return false
        for (const { start: from, end, leadingSpaces } of own.places) {
          const span = spanOf(at + from, at + end)
          places.push(this.#trimsSpaces ? { start: span.start + leadingSpaces, end: span.end } : span)
        }
      }
      at += text.length
    }
    return at === normalized.length
  }

  /** Undefined for a piece with a token that the vocabulary lacks. */
  #known(piece: string): Piece | undefined {
    const known = this.#cache.get(piece)
    if (known !== undefined) return known
    const ids = this.#tokensOf(piece).map((token) => this.#hub.token_to_id(token))
    if (ids.includes(undefined)) return undefined
    const made: Piece = { ids: ids as number[], places: undefined }
    if (piece.length <= MAX_CACHED_LENGTH) {
      if (this.#cache.size >= MAX_CACHED_PIECES) this.#cache.clear()
      this.#cache.set(piece, made)
    }
    return made
  }

  #tokensOf(piece: string): string[] {
    return this.#hub.model?.([this.#cutter.toModel(piece)]) ?? []
  }

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
    const places = this.#tokensOf(piece).map((token) => {
      const start = characterOf[byte]
      byte += this.#cutter.byteLength(token)
      const end = endOf[Math.min(byte, endOf.length) - 1]
      const text = piece.slice(start, end)
      return { start, end, leadingSpaces: text.length - text.replace(/^ +/, '').length }
    })
    return byte === characterOf.length ? places : 'unknown'
  }
}

interface Piece {
  readonly ids: readonly number[]
  /** Known once somebody has asked; `unknown` where the tokens do not spell the piece. */
  places: readonly PlacedToken[] | 'unknown' | undefined
}

interface PlacedToken extends Span {
  readonly leadingSpaces: number
}

type SpanOf = (from: number, to: number) => Span

function plainSpan(start: number): SpanOf {
  return (from, to) => ({ start: start + from, end: start + to })
}

/** Halves are normalized as the whole is: no ASCII character combines with one before it. */
const BEFORE_ASCII = /(?=[\0-\x7f])/

/** Undefined when a normalizer changes more than what stands between its cuts. */
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

/** The first of the numbers below `count` for which something holds that holds for all behind it; else `count`. */
export function firstOf(count: number, holds: (index: number) => boolean): number {
  let [low, high] = [0, count]
  while (low < high) {
    const middle = (low + high) >> 1
    if (holds(middle)) high = middle
    else low = middle + 1
  }
  return low
}
