// Schedules the texts that a session writes, in the engine's thread. Texts of several calls share steps: a text joins
// others once its prompt is read. Several batches take turns, for texts whose lengths differ much or whose graph cannot
// run texts together.

import { UnsupportedError } from '../../core/base/errors.js'
import { groupBy } from '../../core/base/group.js'
import { nextTurn } from '../../core/base/turns.js'
import { sideOf } from '../../model/inputs/rotary-switch.js'
import { isSameMix } from '../adapters/row-factors.js'
import type { GraphEngine } from '../graph-engine.js'
import { PrefixStore } from './prefix-store.js'
import { type OpenCall, RunningText, type TextCall } from './running-text.js'
import { readsSame, TextBatch, type TextTools } from './text-batch.js'
import type { Padding, TextForm } from './text-form.js'

export interface TextBounds {
  readonly maxBatch: number
  /** The most bytes for the caches of all running texts at their full length. A text that needs more runs alone. */
  readonly cacheBytes: number
  /** The most bytes for caches that are kept for later texts with the same beginning. */
  readonly prefixCache: number
}

/** The most tokens of prompts in a run while other texts wait for their next token. */
const PIECE = 256

/**
 * The most tokens of a prompt in a run if no other text waits. In a run, attention computes the scores of each token
 * with all tokens, even with later ones, whose scores are thrown away. With 9 heads, 4,000 tokens at once have 0.6 GB
 * of scores, and half of the work is wasted.
 */
const LONG_PIECE = 512

/** The most tokens of a prompt that is read together with others. A longer prompt is read alone, as caches need. */
const SHORT = 64

/**
 * What a byte of padding in the cache costs in a step, as a multiple of the cost of reading a byte of the weights.
 * Attention may skip the padding, but ONNX Runtime clears it in each step. The alternative, a second batch, would read
 * all weights once more.
 */
const CLEARING = 3

export class RunningTexts {
  readonly tools: TextTools
  readonly #calls = new Map<number, OpenCall>()
  #batches: TextBatch[] = []
  #isRunning = false
  /** Becomes false if the graph turns out not to allow different adapters for rows. */
  #mixesShare = true

  constructor(
    private readonly form: TextForm,
    graphOf: (role: string) => GraphEngine,
    private readonly bounds: TextBounds,
  ) {
    const prefixes = new PrefixStore(form.takesPieces ? bounds.prefixCache : 0, form.hasStates)
    this.tools = { form, graph: graphOf(form.role), graphOf, prefixes }
  }

  write(id: number, call: TextCall, report: OpenCall['report']): Promise<void> {
    const { texts, batchSize } = call
    const { shares, padding } = this.form
    const lengths = texts.map(({ promptIds, sourceIds = promptIds }) => sourceIds.length)
    const waiting = shares ? lengths.map((_, i) => [i]) : batchesOf(lengths, batchSize, padding)
    return new Promise((resolve, reject) => {
      const over = (settle: (error: unknown) => void) => (error?: unknown) => {
        open.isOver = true
        this.#calls.delete(id)
        settle(error)
      }
      const open: OpenCall = { ...call, waiting, isOver: false, report, end: over(() => resolve()), fail: over(reject) }
      this.#calls.set(id, open)
      if (!this.#isRunning) void this.#run()
    })
  }

  leave(id: number): void {
    this.#calls.get(id)?.end()
  }

  get #texts(): RunningText[] {
    return this.#batches.flatMap(({ texts }) => texts)
  }

  get tokens(): number {
    return this.#texts.reduce((sum, { tokens }) => sum + tokens.length, 0)
  }

  async #run(): Promise<void> {
    this.#isRunning = true
    for (;;) {
      // Wait, so that calls that come at the same time start together.
      await nextTurn()
      for (const batch of [...this.#batches]) await this.#end(batch, ({ call }) => call.isOver)
      this.#admit()
      if (this.#batches.length === 0) break
      for (const batch of [...this.#batches]) await this.#step(batch)
      await this.#join()
    }
    this.#isRunning = false
  }

  /** Starts as many texts as fit. Calls with the fewest running texts come first. */
  #admit(): void {
    const running = this.#texts
    const runningOf = (call: OpenCall) => running.filter((text) => text.call === call).length
    const starting: RunningText[] = []
    for (;;) {
      const ready = [...this.#calls.values()].filter((call) => {
        const [next] = call.waiting
        return next !== undefined && (runningOf(call) === 0 || runningOf(call) + next.length <= call.batchSize)
      })
      const [call] = ready.sort((a, b) => runningOf(a) - runningOf(b))
      if (call === undefined || !this.#fits(call, running)) break
      try {
        const numbers = call.waiting.shift()!
        const mixes = this.tools.graph.factorsOf(numbers.map((number) => call.texts[number].mix))
        const texts = numbers.map((number, i) => new RunningText(call, number, mixes[i], this.tools.decoder))
        running.push(...texts)
        if (this.form.shares) starting.push(...texts)
        else this.#batches.push(new TextBatch(this.tools, texts))
      } catch (error) {
        call.fail(error)
      }
    }
    starting.sort((a, b) => lengthOf(a) - lengthOf(b))
    while (starting.length > 0) {
      const [shortest] = starting
      const prompts = new Set<unknown>()
      const together = starting
        .filter((text) => text === shortest || this.#mayStart(shortest, text))
        .filter(({ request: { promptIds } }) => {
          return prompts.add(promptIds).size === 1 || prompts.size * promptIds.length <= PIECE
        })
      for (const text of together) starting.splice(starting.indexOf(text), 1)
      this.#batches.push(new TextBatch(this.tools, together))
    }
  }

  #fits({ waiting: [next], texts, batchSize }: OpenCall, running: readonly RunningText[]): boolean {
    if (running.length === 0) return true
    const { maxBatch, cacheBytes } = this.bounds
    const requests = [...running.map(({ request }) => request), ...next.map((index) => texts[index])]
    const tokens = requests.reduce((sum, { promptIds, limits }) => sum + promptIds.length + limits.maxTokens, 0)
    const bytes = tokens * this.form.tokenBytes + requests.length * this.form.stateBytes
    return requests.length <= Math.max(maxBatch, batchSize) && bytes <= cacheBytes
  }

  /** True if two prompts may be read together. */
  #mayStart(shorter: RunningText, longer: RunningText): boolean {
    if (readsSame(shorter, longer)) return true
    const isFilled = this.form.padding !== 'none' || lengthOf(shorter) === lengthOf(longer)
    const isShort = isFilled && lengthOf(longer) <= SHORT && isSimilar(lengthOf(shorter), lengthOf(longer))
    const isOfSide = this.#side(lengthOf(shorter)) === this.#side(lengthOf(longer))
    return isShort && isOfSide && (this.#mixesShare || isSameMix(shorter.mix, longer.mix))
  }

  async #step(batch: TextBatch): Promise<void> {
    const most = this.form.takesPieces ? (this.#batches.length > 1 ? PIECE : LONG_PIECE) : undefined
    try {
      for (const [call, texts] of groupBy(await batch.step(most), ({ call }) => call)) tell(call, texts)
      await this.#end(batch, ({ hasEnded }) => hasEnded)
      const again = await batch.leaveSide()
      this.#batches = [...this.#batches.filter(({ texts }) => texts.length > 0), ...again]
    } catch (error) {
      await this.#fail(batch, error)
    }
  }

  #side(length: number): number {
    return sideOf(this.form.switches, length)
  }

  /** Handles the error of a batch: its calls fail, unless its texts can run alone. */
  async #fail(batch: TextBatch, error: unknown): Promise<void> {
    const { texts, isRead } = batch
    const isMixed = texts.some(({ mix }) => !isSameMix(mix, texts[0].mix))
    if (this.form.shares && texts.length > 1 && (!isRead || (isMixed && error instanceof UnsupportedError))) {
      if (error instanceof UnsupportedError) this.#mixesShare = false
      // Run each text alone: if a single text caused the error, only that text fails.
      const alone = await batch.split().catch(() => undefined)
      if (alone !== undefined) {
        this.#batches = this.#batches.flatMap((kept) => (kept === batch ? alone : [kept]))
        return
      }
    }
    for (const { call } of texts) call.fail(error)
    await this.#end(batch, () => true)
  }

  /** Removes texts from their batch, and keeps their caches for later texts. */
  async #end(batch: TextBatch, hasEnded: (text: RunningText) => boolean): Promise<void> {
    const ended = batch.texts.filter(hasEnded)
    if (ended.length === 0) return
    // This fails if the engine is closing or has lost its GPU. Then no cache is kept.
    await batch.keep(ended).catch(() => {})
    try {
      await batch.drop(ended)
    } catch (error) {
      for (const { call } of batch.texts) call.fail(error)
      await batch.drop(batch.texts)
    }
    if (batch.texts.length === 0) this.#batches = this.#batches.filter((kept) => kept !== batch)
    const running = new Set(this.#texts.map(({ call }) => call))
    for (const { call } of ended) if (call.waiting.length === 0 && !running.has(call)) call.end()
  }

  async #join(): Promise<void> {
    const ready = this.#batches.filter(({ isRead }) => isRead && this.form.shares)
    for (const [i, batch] of ready.entries()) {
      for (const joining of ready.slice(i + 1)) {
        if (batch.texts.length === 0 || joining.texts.length === 0 || !this.#mayJoin(batch, joining)) continue
        try {
          if (!(await batch.join(joining))) this.#mixesShare = false
        } catch (error) {
          await this.#fail(batch, error)
          await this.#fail(joining, error)
          return
        }
      }
    }
    this.#batches = this.#batches.filter(({ texts }) => texts.length > 0)
  }

  #mayJoin(a: TextBatch, b: TextBatch): boolean {
    const texts = [...a.texts, ...b.texts]
    const lengths = texts.map(({ tokens }) => tokens.length)
    const isOne = this.#mixesShare || texts.every(({ mix }) => isSameMix(mix, texts[0].mix))
    const [shortest, longest] = [Math.min(...lengths), Math.max(...lengths)]
    const { tokenBytes, weightBytes } = this.form
    if (this.#side(shortest) !== this.#side(longest)) return false
    const filled = lengths.reduce((sum, length) => sum + longest - length, 0) * tokenBytes
    return isOne && (isSimilar(shortest, longest) || (a.skipsPadding && CLEARING * filled < weightBytes))
  }
}

/** Reports the tokens of a step. If a text cannot go on, its call fails. */
function tell(call: OpenCall, texts: readonly RunningText[]): void {
  if (call.isOver) return
  const tokens = texts.flatMap(({ newest }) => newest ?? [])
  if (tokens.length > 0) call.report(tokens)
  const failed = texts.find(({ newest }) => newest === undefined)
  if (failed !== undefined) call.fail(failed.failure)
}

/** True if texts of these lengths may share a batch. Padding costs time, so the lengths must not differ much. */
function isSimilar(shorter: number, longer: number): boolean {
  return longer <= 2 * shorter || longer - shorter <= PIECE
}

function lengthOf({ request }: RunningText): number {
  return request.promptIds.length
}

/** Puts prompts of similar length into batches, or prompts of equal length if the graph allows no padding. */
export function batchesOf(lengths: readonly number[], batchSize: number, padding: Padding): number[][] {
  const order = [...lengths.keys()].sort((a, b) => lengths[a] - lengths[b] || a - b)
  const batches: number[][] = []
  for (const index of order) {
    const last = batches.at(-1)
    const fits = padding !== 'none' || (last !== undefined && lengths[last[0]] === lengths[index])
    if (last !== undefined && last.length < batchSize && fits) last.push(index)
    else batches.push([index])
  }
  return batches
}
