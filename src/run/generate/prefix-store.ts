// Keeps key-value caches of texts for later texts that begin with the same tokens: the next turn of a chat, or a system
// prompt that many chats share. If the store is full, the cache that was not used for the longest time is dropped.

import { commonLength } from '../../core/base/group.js'
import type { Feeds } from '../../onnx/runtime/runtime.js'
import { isSameMix, type RowFactors } from '../adapters/row-factors.js'
import type { AdapterFactors } from '../adapters/site-factors.js'
import { freeBuffers } from './row-cache.js'

export interface ReadText {
  readonly tokens: readonly number[]
  readonly mix: RowFactors[number]
  /** Only callers of the same scope share this cache. */
  readonly scope: string
  /** The form of the cache: the name of the output with new rows, if the graph has one. */
  readonly form: string | undefined
  /** With long RoPE: which rotary values the text is read with, as `sideOf` tells from its length. */
  readonly side: number
}

export interface ReadPrefix extends ReadText {
  readonly cache: Feeds
}

/** Shorter texts are not kept: reading them again takes no longer. */
const LEAST_TOKENS = 32

export class PrefixStore {
  readonly #kept = new Set<ReadPrefix>()

  /**
   * @param mostBytes 0 if the graph cannot continue a cache
   * @param isWhole caches have states, and cannot be cut to fewer tokens
   */
  constructor(
    readonly mostBytes: number,
    private readonly isWhole = false,
  ) {}

  /**
   * `found`: the cache that shares the most first tokens with a text. It may hold more than the shared `count` tokens.
   * `shared`: more first tokens that a cache shares, but cannot be cut to; else 0.
   */
  find(text: ReadText): { found: { cache: Feeds; count: number } | undefined; shared: number } {
    let best: { prefix: ReadPrefix; count: number } | undefined
    let shared = 0
    for (const prefix of this.#kept) {
      // The last token is always read again, because its logits choose the next token.
      const count = Math.min(sharedTokens(prefix, text), text.tokens.length - 1)
      if (count < LEAST_TOKENS) continue
      if (this.isWhole && count < prefix.tokens.length) shared = Math.max(shared, count)
      else if (count > (best?.count ?? 0)) best = { prefix, count }
    }
    if (best !== undefined) this.#touch(best.prefix)
    const { prefix, count = 0 } = best ?? {}
    return { found: prefix && { cache: prefix.cache, count }, shared: shared > count ? shared : 0 }
  }

  /** Keeps the cache of a text if it is worth it. `copy` is called only then. */
  keep(text: ReadText, copy: () => Feeds): void {
    if (text.tokens.length < LEAST_TOKENS) return
    for (const prefix of this.#kept) {
      const count = sharedTokens(prefix, text)
      if (count === text.tokens.length && (!this.isWhole || count === prefix.tokens.length)) {
        this.#touch(prefix)
        return
      }
      if (count === prefix.tokens.length && !this.isWhole) this.#drop(prefix)
    }
    this.#kept.add({ ...text, cache: copy() })
    let bytes = [...this.#kept].reduce((sum, prefix) => sum + bytesOf(prefix), 0)
    for (const oldest of this.#kept) {
      if (bytes <= this.mostBytes) break
      bytes -= bytesOf(oldest)
      this.#drop(oldest)
    }
  }

  /** The last of some texts, as many as there is room for together. Caches of earlier ones would be copied in vain. */
  fitting<T>(texts: readonly T[], bytesOf: (text: T) => number): T[] {
    let bytes = 0
    const fits = (text: T) => {
      bytes += bytesOf(text)
      return bytes <= this.mostBytes
    }
    return texts.toReversed().filter(fits).reverse()
  }

  forget(adapter: AdapterFactors): void {
    for (const prefix of this.#kept) {
      if (prefix.mix.some(({ factors }) => factors === adapter)) this.#drop(prefix)
    }
  }

  clear(): void {
    this.#drop(...this.#kept)
  }

  #drop(...prefixes: readonly ReadPrefix[]): void {
    for (const prefix of prefixes) this.#kept.delete(prefix)
    freeBuffers(prefixes.flatMap(({ cache }) => Object.values(cache).map(({ data }) => data.buffer)))
  }

  #touch(prefix: ReadPrefix): void {
    this.#kept.delete(prefix)
    this.#kept.add(prefix)
  }
}

function sharedTokens(a: ReadText, b: ReadText): number {
  const isSame = a.scope === b.scope && a.form === b.form && a.side === b.side && isSameMix(a.mix, b.mix)
  return isSame ? commonLength(a.tokens, b.tokens) : 0
}

function bytesOf({ cache }: ReadPrefix): number {
  return Object.values(cache).reduce((sum, { data }) => sum + (data as ArrayBufferView).byteLength, 0)
}
