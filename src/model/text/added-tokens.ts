// Finds added tokens such as <|im_end|>. A text is split at them before anything else happens to it.

/** A stretch of a text, in UTF-16 units: from `start` up to, but without, `end`. */
export interface Span {
  readonly start: number
  readonly end: number
}

export interface AddedToken {
  readonly id: number
  readonly content: string
  readonly lstrip?: boolean
  readonly rstrip?: boolean
  readonly normalized?: boolean
}

export interface Section extends Span {
  /** The id if the section is an added token, undefined if it is ordinary text. */
  readonly id: number | undefined
}

/** A set of added tokens. There can be thousands, too many for one regular expression. */
export class AddedTokens {
  readonly #tokens: ReadonlyMap<string, AddedToken>
  readonly #firstCharacter: RegExp
  /** First two characters → lengths of the tokens that begin with them, longest first. */
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
      const longestFirst = [...lengths].sort((a, b) => b - a)
      this.#lengths.set(begin, longestFirst)
    }
  }

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

export function escaped(text: string): string {
  return text.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&')
}

/** Splits a text into added tokens and the text between them. Spaces that a token swallows belong to no section. */
export function* sectionsOf(text: string, offset: number, added: AddedTokens | undefined): Generator<Section> {
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
