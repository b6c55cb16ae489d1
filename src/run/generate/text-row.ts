// Turns the tokens of a text into pieces that are final, until the text ends. A stop string can be spread over several
// tokens, so text that could be the beginning of a stop string is held back.

import type { TextStream } from '../../model/text/tokenizer.js'

export interface TextLimits {
  readonly endIds: ReadonlySet<number>
  readonly stops: readonly string[]
  /** No stop string ends a text that has fewer tokens. */
  readonly minTokens: number
  /** The largest number of tokens. `atMost` is the reason to end there. */
  readonly maxTokens: number
  readonly atMost: 'max-new-tokens' | 'context'
}

/** What a token adds to a text. `stop` is the stop string that ends it. */
export interface TextPiece {
  readonly piece: string
  readonly finish: 'eos' | 'stop' | TextLimits['atMost'] | undefined
  readonly stop: string | undefined
}

const NO_TEXT: TextStream = { push: () => '', end: () => '' }

export class TextRow {
  readonly tokenIds: number[] = []
  text = ''
  finish: TextPiece['finish']
  stop: string | undefined
  #held = ''

  /** @param stream decodes the tokens. Without it, no text is made and no stop string is found */
  constructor(
    private readonly limits: TextLimits,
    private readonly stream: TextStream = NO_TEXT,
  ) {}

  /** Takes a token that the row of another thread has decoded. */
  take(id: number, { piece, finish, stop }: TextPiece): string {
    if (!this.limits.endIds.has(id)) this.tokenIds.push(id)
    this.text += piece
    this.finish = finish
    this.stop = stop
    return piece
  }

  /** @param isCut whether the limit ends the text, even if an end token comes before */
  push(id: number, isCut = false): string {
    const { endIds, maxTokens, atMost } = this.limits
    if (endIds.has(id)) return this.#end(isCut ? atMost : 'eos')
    this.tokenIds.push(id)
    const piece = this.#give(this.stream.push(id))
    if (this.finish !== undefined || this.tokenIds.length < maxTokens) return piece
    return piece + this.#end(atMost)
  }

  #end(finish: 'eos' | TextLimits['atMost']): string {
    const rest = this.#give(this.stream.end())
    if (this.finish !== undefined) return rest
    this.finish = finish
    this.text += this.#held
    return rest + this.#held
  }

  #give(piece: string): string {
    const text = this.#held + piece
    const stops = this.tokenIds.length < this.limits.minTokens ? [] : this.limits.stops
    let end = text.length - heldBack(text, stops)
    for (const stop of stops) {
      const at = text.indexOf(stop)
      if (at < 0 || (this.stop !== undefined && at >= end)) continue
      this.finish = 'stop'
      this.stop = stop
      end = at
    }
    this.#held = text.slice(end)
    this.text += text.slice(0, end)
    return text.slice(0, end)
  }
}

function heldBack(text: string, stops: readonly string[]): number {
  const longest = stops.reduce((most, stop) => Math.max(most, stop.length - 1), 0)
  for (let length = Math.min(longest, text.length); length > 0; length--) {
    const end = text.slice(-length)
    if (stops.some((stop) => stop.startsWith(end))) return length
  }
  return 0
}
