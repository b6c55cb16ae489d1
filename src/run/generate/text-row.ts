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

const NO_TEXT: TextStream = { push: () => '', end: () => '' }

export class TextRow {
  readonly tokenIds: number[] = []
  text = ''
  finish: 'eos' | 'stop' | TextLimits['atMost'] | undefined
  #held = ''

  /** @param stream decodes the tokens. Without it, no text is made and no stop string is found */
  constructor(
    private readonly limits: TextLimits,
    private readonly stream: TextStream = NO_TEXT,
  ) {}

  push(id: number): string {
    const { endIds, maxTokens, atMost } = this.limits
    if (endIds.has(id)) return this.#end('eos')
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
    const found = stops.map((stop) => text.indexOf(stop)).filter((at) => at >= 0)
    if (found.length > 0) this.finish = 'stop'
    const end = found.length > 0 ? Math.min(...found) : text.length - heldBack(text, stops)
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
