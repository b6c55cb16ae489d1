// Texts that take their steps together: makes the feeds of each step, holds their cache, and finds the rows of the
// logits. Shorter rows are padded. A plain cache is padded on the left, where the mask hides the padding. If attention
// counts keys from the left (GroupQueryAttention), or the graph has no cache, rows are padded on the right, where no
// token looks.

import { attempt, UnsupportedError } from '../../core/base/errors.js'
import type { NewRows } from '../../model/fuse/new-rows.js'
import { FIRST_INPUT, MISSING_INPUT } from '../../model/inject/sites.js'
import { roleFeeds } from '../../model/inputs/roles.js'
import { sideOf } from '../../model/inputs/rotary-switch.js'
import type { TokenDecoder } from '../../model/text/decoder.js'
import { type Feeds, floatsOf, type RuntimeTensor } from '../../onnx/runtime/runtime.js'
import { type AdapterFeeds, feedsOfRows, isSameMix } from '../adapters/row-factors.js'
import type { GraphEngine } from '../graph-engine.js'
import type { Grammars } from '../schemas/grammars.js'
import { GrowingCache } from './growing-cache.js'
import type { PrefixStore, ReadText } from './prefix-store.js'
import { freeTensors, PlainCache } from './row-cache.js'
import type { RunningText } from './running-text.js'
import type { Padding, TextForm } from './text-form.js'
import type { TokenVectors } from './token-vectors.js'

/** The parts of a session that all of its texts use. */
export interface TextTools {
  readonly form: TextForm
  readonly graph: GraphEngine
  graphOf(role: string): GraphEngine
  readonly prefixes: PrefixStore
  /** Set before the first text with stop strings. */
  decoder?: TokenDecoder
  /** Set before the first text with a schema. */
  grammars?: Grammars
}

export class TextBatch {
  /** The texts whose rows are run: one text for each prompt while prompts are read, then all texts. */
  #readers: readonly RunningText[]
  #adapters: AdapterFeeds
  readonly #newRows: NewRows | undefined
  /** The side on which the cache is padded. Prompts may be padded on the other side, or not at all: see `form`. */
  readonly #cachePadding: Padding
  #cache: GrowingCache | PlainCache
  #vectors: TokenVectors | undefined
  hasBegun = false
  /** True when all prompts are read, and each text has a new token. */
  isRead = false
  /** The number of tokens of each row in the cache, including padding. */
  #width = 0
  #cachedTokens = 0
  /**
   * How many first tokens the text shares with a stored cache that cannot be cut to them, else 0. Reading stops there
   * once to store the states, so that later texts with this start can use them.
   */
  #shared = 0

  constructor(
    private readonly tools: TextTools,
    public texts: readonly RunningText[],
    newRows = tools.graph.newRows,
  ) {
    const { form } = tools
    this.#readers = form.shares ? firstOfPrompts(texts) : texts
    this.#newRows = newRows
    this.#cachePadding = newRows?.takesMissing && form.cachePadding === 'left' ? 'right' : form.cachePadding
    const { length } = this.#readers
    this.#cache = newRows ? new GrowingCache(newRows, length) : new PlainCache(form.cache, length)
    this.#adapters = feedsOfRows(this.#readers.map(({ mix }) => mix))
  }

  /** The row of a text in the logits and the cache. */
  #rowOf(text: RunningText): number {
    const row = this.#readers.indexOf(text)
    return row >= 0 ? row : this.#readers.findIndex((reader) => readsSame(reader, text))
  }

  /** The lengths of the texts whose rows are run. */
  get lengths(): number[] {
    return this.#readers.map(({ tokens }) => tokens.length)
  }

  /** True if attention skips the padding. */
  get skipsPadding(): boolean {
    return this.tools.form.cachePadding === 'right' || this.#newRows?.takesMissing === true
  }

  /**
   * Takes a step: reads the newest token of each text, or at first the prompts. Returns the texts that have a new
   * token, which is an empty list until a prompt is read to its end.
   *
   * @param most the largest number of tokens to read at once, if the batch is a single prompt
   */
  async step(most?: number): Promise<readonly RunningText[]> {
    const { graph, grammars } = this.tools
    if (!this.hasBegun) await this.#begin()
    const readers = this.#readers
    const isAlone = readers.length === 1
    const isReading = this.#width === 0 || (isAlone && this.#width < readers[0].request.promptIds.length)
    for (const text of this.texts) await text.prepare(grammars)
    const vectors = await this.#vectors?.feeds()
    const fed = Object.values(this.#cache.feeds)
    const outputs = await graph.run(this.#feeds(vectors, most), this.#adapters, this.#outputNames)
    const hasTaken = this.#take(outputs, most)
    // The garbage collector would let the logits and states of many steps pile up, and then collect all at once.
    const held = new Set(Object.values(this.#cache.feeds))
    freeTensors([...fed, ...Object.values(outputs)].filter((tensor) => !held.has(tensor)))
    if (this.#width === this.#shared) await this.keep(readers)
    if (!hasTaken) return []
    if (readers.length < this.texts.length) {
      await this.#cache.fetch(graph.toHost)
      this.#become(new Map([[this, this.texts]]))
    }
    // Keep the cache of the prompt now, so that other texts can use it before this text ends. On a GPU copying is slow,
    // so there it is kept at the end.
    if (isReading && isAlone && !this.#cache.isOnGpu) await this.keep(readers)
    return this.texts
  }

  async #begin(): Promise<void> {
    const { form, graphOf, prefixes } = this.tools
    const { encoder, embedding } = form
    if (encoder !== undefined) {
      const { readSources } = await import('./encoder-states.js')
      this.#cache.hold(await readSources(encoder, graphOf(encoder.role), this.texts))
    }
    if (embedding !== undefined) {
      const { TokenVectors } = await import('./token-vectors.js')
      this.#vectors = new TokenVectors(embedding, graphOf(embedding.role), this.texts, form.padding)
    }
    this.hasBegun = true
    const [text, ...more] = this.#readers
    if (more.length > 0) return
    const { found, shared } = prefixes.find(this.#readText(text, text.tokens))
    this.#shared = shared
    if (found === undefined) return
    const { cache: feeds, count } = found
    this.#cache.become([{ cache: { feeds }, rows: [0], from: 0, count, to: 0 }], count)
    this.#width = count
    this.#cachedTokens = count
  }

  /** Keeps the caches of texts for later texts that may begin with the same tokens. */
  async keep(texts: readonly RunningText[]): Promise<void> {
    const { prefixes } = this.tools
    if (prefixes.mostBytes === 0) return
    await this.#cache.fetch(this.tools.graph.toHost)
    const { tokenBytes, stateBytes } = this.tools.form
    const whole = texts.filter((text) => text.failure === undefined && this.#countOf(text) > 0)
    for (const text of prefixes.fitting(whole, (each) => this.#countOf(each) * tokenBytes + stateBytes)) {
      const row = this.#rowOf(text)
      const count = this.#countOf(text)
      const from = this.#cachePadding === 'left' ? this.#width - count : 0
      const copy = () => this.#cache.cut(row, from, count)
      prefixes.keep(this.#readText(text, text.tokens.slice(0, count)), copy)
    }
  }

  /** Returns how many tokens of a text are in the cache. The newest token is not there yet. */
  #countOf({ tokens }: RunningText): number {
    return Math.min(this.#width, tokens.length - 1)
  }

  #readText({ mix, request: { scope } }: RunningText, tokens: readonly number[]): ReadText {
    const side = sideOf(this.tools.form.switches, tokens.length)
    return { tokens, mix, scope, side, form: this.#newRows?.output }
  }

  get #outputNames(): readonly string[] {
    const { logits, cache } = this.tools.form
    return [logits, ...(this.#newRows === undefined ? cache.map(({ present }) => present) : [this.#newRows.output])]
  }

  /**
   * Makes the feeds: all tokens in the first step and in graphs without a cache, later the newest token of each row.
   */
  #feeds(vectors: Feeds | undefined, most = Number.POSITIVE_INFINITY): Feeds {
    const { roles, padding } = this.tools.form
    const [batch, past] = [this.#readers.length, this.#width]
    const isLeft = (past === 0 ? padding : this.#cachePadding) === 'left'
    const isAlone = batch === 1
    const total = this.#reach(most)
    const sequence = total - past
    const inputIds = new Int32Array(batch * sequence)
    const attentionMask = new Uint8Array(batch * total)
    this.#readers.forEach(({ tokens }, row) => {
      const length = Math.min(tokens.length, total)
      const fed = isAlone ? tokens.slice(past, total) : past === 0 ? tokens : tokens.slice(-1)
      inputIds.set(fed, row * sequence + (isLeft ? sequence - fed.length : 0))
      const start = row * total + (isLeft ? total - length : 0)
      attentionMask.fill(1, start, start + length)
    })
    const isEven = isAlone || sequence === 1 || this.#readers.every(({ tokens }) => tokens.length === total)
    const logitsToKeep = isLeft || isEven ? 1 : undefined
    const feeds = roleFeeds(roles, { batch, sequence, past, inputIds, attentionMask, logitsToKeep })
    const first = (isLeft || isEven ? sequence : Math.min(...this.lengths)) - 1
    feeds[FIRST_INPUT] = { type: 'int64', data: BigInt64Array.of(BigInt(first)), dims: [1] }
    if (past > 0 && !isLeft) {
      const missing = this.#readers.map(({ tokens }) => BigInt(Math.max(0, total - tokens.length)))
      feeds[MISSING_INPUT] = { type: 'int64', data: BigInt64Array.from(missing), dims: [batch] }
    }
    return { ...feeds, ...vectors, ...this.#cache.feeds }
  }

  /** Returns how many tokens of the longest row will be read after the next run. */
  #reach(most: number): number {
    const longest = Math.max(...this.lengths)
    if (this.#readers.length > 1) return this.#width === 0 ? longest : this.#width + 1
    const { switches } = this.tools.form
    const side = sideOf(switches, longest)
    const least = side === 0 ? 0 : switches[side - 1] + 1
    const stop = this.#shared > this.#width ? this.#shared : longest
    return Math.max(least, Math.min(stop, this.#width + most))
  }

  /** Takes the outputs of a run. Returns false if a prompt is not read to its end yet. */
  #take(outputs: Readonly<Record<string, RuntimeTensor>>, most = Number.POSITIVE_INFINITY): boolean {
    const { cache, logits, padding } = this.tools.form
    const rows = this.#lastLogits(outputs[logits])
    const { lengths } = this
    const longest = Math.max(...lengths)
    if (cache.length > 0) {
      const before = this.#width
      this.#width = this.#reach(most)
      if (this.#cache instanceof PlainCache) this.#cache.add(outputs, before === 0)
      else {
        const isBehindText = this.#cachePadding === 'right' && rows.length > 1 && (before > 0 || padding === 'left')
        const fed = before > 0 ? 1 : longest
        const places = isBehindText ? lengths.map((length) => length - fed) : undefined
        this.#cache.add(outputs[this.#newRows!.output], places)
      }
      if (this.#width < longest) return false
    }
    for (const text of this.texts) {
      const isFirst = text.tokens.length === text.request.promptIds.length
      // If another text read the prompt, this one counts as if it found it in the store, and read its last token again.
      const shared = this.tools.prefixes.mostBytes === 0 ? 0 : text.request.promptIds.length - 1
      const cachedTokens = this.#readers.includes(text) ? this.#cachedTokens : shared
      text.step(rows[this.#rowOf(text)], isFirst ? cachedTokens : 0)
    }
    this.isRead = true
    return true
  }

  /**
   * @throws UnsupportedError, with nothing changed, if the logits do not have a row for each text, or lack those of a
   *   shorter text's last token
   */
  #lastLogits({ data, dims, type }: RuntimeTensor): Float32Array[] {
    const [batch, sequence, vocabulary] = dims
    const { lengths } = this
    const longest = Math.max(...lengths)
    const isRight = this.tools.form.padding === 'right' && this.#width === 0
    if (dims.length !== 3 || batch !== lengths.length) {
      throw new UnsupportedError({
        where: 'logits',
        what: 'this graph cannot run texts with different adapters together',
        expected: `(${lengths.length}, sequence, vocabulary)`,
        got: `(${dims.join(', ')})`,
      })
    }
    return lengths.map((length, row) => {
      // The graph may return the logits of the last tokens only.
      const column = isRight ? sequence - 1 - (longest - length) : sequence - 1
      if (column < 0) {
        throw new UnsupportedError({
          where: 'logits',
          what: 'the graph returns them for the last tokens only, so prompts of different lengths cannot share a batch',
          hint: 'Call generate for one prompt at a time, or with a batchSize of 1',
        })
      }
      const start = (row * sequence + column) * vocabulary
      return floatsOf({ type, dims: [vocabulary], data: data.subarray(start, start + vocabulary) })
    })
  }

  /**
   * Removes texts that have reached another side of a switch of long RoPE, and returns batches that read them again:
   * their keys get other factors there, as in transformers.
   */
  async leaveSide(): Promise<TextBatch[]> {
    const { switches, shares } = this.tools.form
    const sides = (length: number) => sideOf(switches, length)
    const leaving = this.texts.filter(({ tokens: { length } }) => this.isRead && sides(length) !== sides(length - 1))
    if (leaving.length === 0) return []
    await this.#leave(leaving)
    return (shares ? leaving.map((text) => [text]) : [leaving]).map((texts) => new TextBatch(this.tools, texts))
  }

  /** Removes texts from the batch. */
  async drop(texts: readonly RunningText[]): Promise<void> {
    for (const text of texts) text.dispose()
    await this.#leave(texts)
  }

  async #leave(texts: readonly RunningText[]): Promise<void> {
    const kept = this.texts.filter((text) => !texts.includes(text))
    this.#vectors?.drop(texts)
    if (kept.length === 0) {
      this.texts = []
      this.#cache.release()
    } else if (kept.length < this.texts.length) {
      await this.#cache.fetch(this.tools.graph.toHost)
      this.#become(new Map([[this, kept]]))
    }
  }

  /** Joins the texts of another batch. Returns false, and joins nothing, if the graph allows no different adapters. */
  async join(joining: TextBatch): Promise<boolean> {
    await this.#cache.fetch(this.tools.graph.toHost)
    await joining.#cache.fetch(joining.tools.graph.toHost)
    if (this.#newRows?.output !== joining.#newRows?.output) return false
    const mixes = [...this.texts, ...joining.texts].map(({ mix }) => mix)
    const adapters = feedsOfRows(mixes, this.#adapters)
    if (attempt(() => this.tools.graph.checkAdapters(adapters)).problems.length > 0) return false
    this.#become(new Map([this, joining].map((from) => [from, from.texts])), adapters)
    joining.#cache.release()
    joining.texts = []
    return true
  }

  /** Splits the batch into batches of one text each. Texts whose prompts are not read begin again. */
  async split(): Promise<TextBatch[]> {
    await this.#cache.fetch(this.tools.graph.toHost)
    return this.texts.map((text) => {
      const alone = new TextBatch(this.tools, [text], this.#newRows)
      if (this.isRead) alone.#become(new Map([[this, [text]]]))
      return alone
    })
  }

  /** Replaces the texts of this batch by texts of several batches, which may include this one. */
  #become(parts: ReadonlyMap<TextBatch, readonly RunningText[]>, adapters?: AdapterFeeds): void {
    const from = new Map([...parts].flatMap(([batch, texts]) => texts.map((text) => [text, batch] as const)))
    const batches = [...parts.keys()]
    const texts = [...from.keys()]
    const isRead = batches.every((batch) => batch.isRead)
    const readers = isRead ? texts : firstOfPrompts(texts)
    const held = readers.map((text) => ({ text, from: from.get(text)!, count: from.get(text)!.#countOf(text) }))
    // Padding is not copied.
    const width = Math.max(...held.map(({ count }) => count))
    const isLeft = this.#cachePadding === 'left'
    const moved = held.map(({ from, text, count }) => ({
      cache: from.#cache,
      rows: [from.#rowOf(text)],
      from: isLeft ? from.#width - count : 0,
      count,
      to: isLeft ? width - count : 0,
    }))
    this.#cache.become(moved, width)
    this.texts = texts
    this.#readers = readers
    this.#width = width
    this.hasBegun = batches.every(({ hasBegun }) => hasBegun)
    this.isRead = isRead
    const mixes = readers.map(({ mix }) => mix)
    this.#adapters = adapters ?? feedsOfRows(mixes, this.#adapters)
  }
}

function firstOfPrompts(texts: readonly RunningText[]): RunningText[] {
  return texts.filter((text, i) => texts.findIndex((other) => readsSame(other, text)) === i)
}

/** True if two texts have the same prompt and adapters, so that one of them can read the prompt for both. */
export function readsSame(a: RunningText, b: RunningText): boolean {
  return a.request.promptIds === b.request.promptIds && isSameMix(a.mix, b.mix)
}
