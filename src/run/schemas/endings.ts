// Finds a short way to the end of a text that fits a schema, so that the text can end before its limit of tokens. The
// library has no call for this: its state of the text takes one byte after the other, first those that end something,
// and is rolled back afterwards.

import type { GrammarMatcher } from '@mlc-ai/web-xgrammar'
import { BYTE_LETTERS, type Vocabulary } from '../../model/text/vocabulary.js'

/** Tokens with a longer spelling are not used. */
const LONGEST = 64
/** The most bytes of a way. */
const MOST = 4096

/** Signs that end or divide values, in the order in which they are tried. */
const SIGNS = '}]",:@'
/** Other characters, tried after the signs. */
const CHARACTERS = `0123456789nft[{${Array.from({ length: 94 }, (_, i) => String.fromCharCode(0x21 + i)).join('')} `
/** Bytes that complete a character. */
const REST = Array.from({ length: 64 }, (_, i) => 0x80 + i)
/** If both may come next, the text is inside a string, which a quotation mark ends. */
const INSIDE = '}z'

const codes = (text: string) => [...text].map((character) => character.charCodeAt(0))

export class Endings {
  readonly #ids = new Map<string, number>()
  readonly #isByteLevel: boolean

  constructor({ tokens, spelling }: Vocabulary) {
    for (const [id, token] of tokens.entries()) if (token.length <= LONGEST) this.#ids.set(token, id)
    this.#isByteLevel = spelling === 'byte_level'
  }

  /** Returns the tokens of a way to the end, or undefined if none is found. */
  find(matcher: GrammarMatcher, endId: number): number[] | undefined {
    const bytes: number[] = []
    let taken = 0
    // The library takes bytes too, which half a character needs.
    const accepts = (next: Uint8Array) => matcher._acceptString(next as never)
    const take = (next: Uint8Array) => {
      if (!accepts(next)) return false
      taken++
      bytes.push(...next)
      return true
    }
    const others = [...new Set(codes(CHARACTERS))]
    try {
      while (!canEnd(matcher, endId)) {
        if (bytes.length > MOST) return undefined
        const forced = new TextEncoder().encode(matcher.findJumpForwardString())
        if (forced.length > 0 && take(forced)) continue
        const isInside = codes(INSIDE).every((code) => {
          const isAccepted = accepts(Uint8Array.of(code))
          if (isAccepted) matcher.rollBack(1)
          return isAccepted
        })
        const order = [...codes(isInside ? '"' : SIGNS), ...others, ...REST]
        const next = order.find((code) => take(Uint8Array.of(code)))
        if (next === undefined) return undefined
        // A character comes last when it has been used, so that a pattern such as [0-9]+[a-z] ends.
        const at = others.indexOf(next)
        if (at >= 0) others.push(...others.splice(at, 1))
      }
    } finally {
      if (taken > 0) matcher.rollBack(taken)
    }
    return this.#encode(Uint8Array.from(bytes))
  }

  /** The longest token at each place. */
  #encode(bytes: Uint8Array): number[] | undefined {
    const text = this.#isByteLevel
      ? [...bytes].map((byte) => BYTE_LETTERS[byte]).join('')
      : new TextDecoder().decode(bytes).replaceAll(' ', '▁')
    const ids: number[] = []
    for (let at = 0; at < text.length; ) {
      let length = Math.min(LONGEST, text.length - at)
      while (length > 0 && !this.#ids.has(text.slice(at, at + length))) length--
      if (length === 0) return undefined
      ids.push(this.#ids.get(text.slice(at, at + length))!)
      at += length
    }
    return ids
  }
}

export function canEnd(matcher: GrammarMatcher, endId: number): boolean {
  const isEnd = matcher.acceptToken(endId)
  if (isEnd) matcher.rollBack(1)
  return isEnd
}
