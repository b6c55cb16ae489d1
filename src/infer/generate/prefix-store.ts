// Key-value caches of texts that were read, for texts that begin with the same tokens: the next turn of a chat, or a
// system prompt that many share. The store has a bound; what was not used for the longest time leaves.

import { commonLength } from '../../base/group.js'
import type { Feeds } from '../../runtime/runtime.js'
import { isSameMix, type RowFactors } from '../adapters/row-factors.js'
import type { AdapterFactors } from '../adapters/site-factors.js'

export interface ReadText {
  readonly tokens: readonly number[]
  readonly mix: RowFactors[number]
  /** Tokens that the base alone has read: none, all, or those before the invocation of an activated adapter. */
  readonly baseTokens: number
  /** Callers of another scope do not share it. */
  readonly scope: string
  /** The form of the cache: the output that gives new rows, if there is one. */
  readonly form: string | undefined
  /** The side of the length at which it is or was read, with long RoPE. */
  readonly side: number
}

export interface ReadPrefix extends ReadText {
  readonly cache: Feeds
}

/** Shorter ones are read anew as fast. */
const LEAST_TOKENS = 32

export class PrefixStore {
  readonly #kept = new Set<ReadPrefix>()

  /** `mostBytes`: 0 where a text cannot begin after tokens that were read before. */
  constructor(readonly mostBytes: number) {}

  /** The longest cache of tokens that a text begins with. It may hold more than `count` tokens. */
  find(text: ReadText): { cache: Feeds; count: number } | undefined {
    let best: { prefix: ReadPrefix; count: number } | undefined
    for (const prefix of this.#kept) {
      // The last token is read in any case: its logits choose the next one.
      const count = Math.min(sharedTokens(prefix, text), text.tokens.length - 1)
      if (count >= LEAST_TOKENS && count > (best?.count ?? 0)) best = { prefix, count }
    }
    if (best === undefined) return undefined
    this.#touch(best.prefix)
    return { cache: best.prefix.cache, count: best.count }
  }

  /** `copy` makes the cache, if it is to be kept. */
  keep(text: ReadText, copy: () => Feeds): void {
    if (text.tokens.length < LEAST_TOKENS) return
    for (const prefix of this.#kept) {
      const count = sharedTokens(prefix, text)
      if (count === text.tokens.length) {
        this.#touch(prefix)
        return
      }
      if (count === prefix.tokens.length) this.#kept.delete(prefix)
    }
    this.#kept.add({ ...text, cache: copy() })
    let bytes = [...this.#kept].reduce((sum, prefix) => sum + bytesOf(prefix), 0)
    for (const oldest of this.#kept) {
      if (bytes <= this.mostBytes) break
      bytes -= bytesOf(oldest)
      this.#kept.delete(oldest)
    }
  }

  forget(adapter: AdapterFactors): void {
    for (const prefix of this.#kept) {
      if (prefix.mix.some(({ factors }) => factors === adapter)) this.#kept.delete(prefix)
    }
  }

  clear(): void {
    this.#kept.clear()
  }

  #touch(prefix: ReadPrefix): void {
    this.#kept.delete(prefix)
    this.#kept.add(prefix)
  }
}

function sharedTokens(a: ReadText, b: ReadText): number {
  if (a.scope !== b.scope || a.form !== b.form || a.side !== b.side) return 0
  const isSame = a.baseTokens === b.baseTokens && isSameMix(a.mix, b.mix)
  return Math.min(commonLength(a.tokens, b.tokens), isSame ? Infinity : Math.min(a.baseTokens, b.baseTokens))
}

function bytesOf({ cache }: ReadPrefix): number {
  return Object.values(cache).reduce((sum, { data }) => sum + (data as ArrayBufferView).byteLength, 0)
}
