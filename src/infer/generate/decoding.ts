// Texts that grow together, in the worker: what each call is fed, the cache, and the choice of the next tokens. Rows of
// other lengths are filled up. A plain cache is filled up on the left, where the mask hides it; GroupQueryAttention
// counts keys from the left and a graph without a cache sees what comes before alone, so theirs is filled up on the
// right, where nothing looks.

import { f16ToF32 } from '../../base/dtype.js'
import { UnsupportedError } from '../../base/errors.js'
import { Random } from '../../base/random.js'
import type { NewRows } from '../../graph/fuse/new-rows.js'
import { type CacheEntry, emptyTensor } from '../../graph/inputs/cache.js'
import { type RoleInput, roleFeeds } from '../../graph/inputs/roles.js'
import type { Feeds, RuntimeTensor } from '../../runtime/runtime.js'
import { AdapterFeeds, type RowFactors } from '../adapters/row-factors.js'
import { GrowingCache } from './growing-cache.js'
import { penalizeRepetition, type ScoredToken, sampleToken, scoreTokens } from './next-token.js'
import type { Sampling } from './sampling.js'

/** On which side rows are filled up; `none`: rows of one batch have prompts of one length. */
export type Padding = 'left' | 'right' | 'none'

/** A text to continue. */
export interface RowRequest {
  readonly promptIds: readonly number[]
  readonly sampling: Sampling
  readonly seed: number
  /** How many likely tokens to score at each step, besides the one that is taken; undefined: no scores. */
  readonly scores: number | undefined
}

/** How texts are to be continued. */
export interface TextRequest {
  readonly rows: readonly RowRequest[]
  /** Name of the output that holds the logits (batch, sequence, vocabulary). */
  readonly logits: string
  readonly roles: readonly RoleInput[]
  readonly cache: readonly CacheEntry[]
  readonly padding: Padding
  /** Further feeds of each run, by row: the encoder's output for the prompts. */
  readonly context?: Feeds | undefined
}

/** The next token of one of the texts. */
export interface NextToken {
  /** Index of the text in its request. */
  readonly row: number
  readonly id: number
  readonly scores: { readonly chosen: ScoredToken; readonly top: readonly ScoredToken[] } | undefined
}

interface Row extends RowRequest {
  readonly index: number
  readonly tokens: number[]
  /** All of them, for the penalty on repetition. */
  readonly known: Set<number>
  readonly random: Random
  /** Index of its adapters. */
  readonly mix: number
}

export class Decoding {
  readonly outputNames: readonly string[]
  readonly #request: TextRequest
  readonly #mixes: RowFactors
  #rows: Row[]
  #adapters: AdapterFeeds
  readonly #newRows: string | undefined
  readonly #cache: GrowingCache | undefined
  /** The caches, if the graph gives out whole ones. */
  #past: Feeds
  #context: Feeds
  /** Tokens that the cache holds of each row, those that fill it up included. */
  #width = 0

  /**
   * Mixes and rows as {@link AdapterFeeds} takes them.
   *
   * @param newRows of a graph that gives out what a step adds to the cache. Then no row is filled up on the right
   */
  constructor(request: TextRequest, mixes: RowFactors, rowOf?: readonly number[], newRows?: NewRows) {
    this.#request = request
    this.#mixes = mixes
    this.#newRows = newRows?.output
    this.#cache = newRows && new GrowingCache(newRows, request.rows.length)
    const cache = newRows === undefined ? request.cache : []
    this.outputNames = [
      request.logits,
      ...(newRows === undefined ? cache.map(({ present }) => present) : [newRows.output]),
    ]
    this.#rows = request.rows.map((row, index) => ({
      ...row,
      index,
      tokens: [...row.promptIds],
      known: new Set(row.promptIds),
      random: new Random(row.seed, 'sampling'),
      mix: rowOf?.[index] ?? 0,
    }))
    this.#adapters = this.#adapterFeeds()
    this.#context = request.context ?? {}
    this.#past = Object.fromEntries(cache.map((entry) => [entry.past, emptyTensor(entry, request.rows.length)]))
  }

  get adapters(): AdapterFeeds {
    return this.#adapters
  }

  /**
   * The feeds of the next run: all tokens at first and without a cache, afterwards the newest one of each row.
   *
   * @param given what takes the place of tokens
   */
  feeds(given: Feeds): Feeds {
    const { roles, padding } = this.#request
    const isLeft = padding === 'left'
    const [batch, past] = [this.#rows.length, this.#width]
    const total = past === 0 ? Math.max(...this.#rows.map(({ tokens }) => tokens.length)) : past + 1
    const sequence = total - past
    const inputIds = new Int32Array(batch * sequence)
    const attentionMask = new Uint8Array(batch * total)
    this.#rows.forEach(({ tokens }, row) => {
      const { length } = tokens
      const fed = past === 0 ? tokens : tokens.slice(-1)
      inputIds.set(fed, row * sequence + (isLeft ? sequence - fed.length : 0))
      const start = row * total + (isLeft ? total - length : 0)
      attentionMask.fill(1, start, start + length)
    })
    const isEven = sequence === 1 || this.#rows.every(({ tokens }) => tokens.length === total)
    const logitsToKeep = isLeft || isEven ? 1 : undefined
    const tokens = roleFeeds(roles, { batch, sequence, past, inputIds, attentionMask, logitsToKeep })
    return { ...tokens, ...this.#context, ...given, ...(this.#cache?.feeds ?? this.#past) }
  }

  /** Takes the outputs of the run, and chooses what comes next in each row. */
  take(outputs: Readonly<Record<string, RuntimeTensor>>): NextToken[] {
    const { cache, logits } = this.#request
    const rows = this.#lastLogits(outputs[logits])
    if (cache.length > 0) {
      const isFirst = this.#width === 0
      this.#width = isFirst ? Math.max(...this.#rows.map(({ tokens }) => tokens.length)) : this.#width + 1
      if (this.#newRows !== undefined) this.#cache?.add(outputs[this.#newRows])
      else {
        this.#past = Object.fromEntries(
          cache.map(({ past, present, isOfEncoder }) => [
            past,
            isOfEncoder && !isFirst ? this.#past[past] : outputs[present],
          ]),
        )
      }
    }
    return this.#rows.map((row, i) => {
      const { index, tokens, known, random, sampling, scores } = row
      const id = sampleToken(penalizeRepetition(rows[i], known, sampling.repetitionPenalty), sampling, () =>
        random.uniform(),
      )
      tokens.push(id)
      known.add(id)
      return { row: index, id, scores: scores === undefined ? undefined : scoreTokens(rows[i], id, scores) }
    })
  }

  /** Lets texts that have ended leave. */
  drop(ended: readonly number[]): void {
    const kept = this.#rows.flatMap(({ index }, i) => (ended.includes(index) ? [] : [i]))
    if (kept.length === this.#rows.length) return
    const count = this.#rows.length
    this.#rows = kept.map((i) => this.#rows[i])
    const keep = (feeds: Feeds): Feeds =>
      Object.fromEntries(Object.entries(feeds).map(([name, tensor]) => [name, rowsOf(tensor, kept, count)]))
    this.#cache?.keep(kept)
    this.#past = keep(this.#past)
    this.#context = keep(this.#context)
    this.#adapters = this.#adapterFeeds()
  }

  #adapterFeeds(): AdapterFeeds {
    return new AdapterFeeds(
      this.#mixes,
      this.#rows.map(({ mix }) => mix),
    )
  }

  /**
   * The logits behind the last token of each row, of (batch, sequence, vocabulary); the graph may give those of the
   * last ones alone.
   */
  #lastLogits({ data, dims, type }: RuntimeTensor): Float32Array[] {
    const [batch, sequence, vocabulary] = dims
    const lengths = this.#rows.map(({ tokens }) => tokens.length)
    const longest = Math.max(...lengths)
    const isRight = this.#request.padding === 'right' && this.#width === 0
    if (dims.length !== 3 || batch !== lengths.length) {
      throw new UnsupportedError({
        where: 'logits',
        what: 'texts with adapters of their own cannot be told apart behind this graph',
        expected: `(${lengths.length}, sequence, vocabulary)`,
        got: `(${dims.join(', ')})`,
      })
    }
    return lengths.map((length, row) => {
      const column = isRight ? sequence - 1 - (longest - length) : sequence - 1
      if (column < 0) {
        throw new UnsupportedError({
          where: 'logits',
          what: 'the graph gives logits of the last tokens alone: prompts of different lengths cannot share a batch',
          hint: 'Call generate for one prompt at a time, or with a batchSize of 1',
        })
      }
      const start = (row * sequence + column) * vocabulary
      if (data instanceof Float32Array) return data.subarray(start, start + vocabulary)
      if (data instanceof Uint16Array && type === 'float16') return f16ToF32(data.subarray(start, start + vocabulary))
      throw new UnsupportedError({
        where: 'logits',
        what: 'no text from this type',
        expected: 'float32, float16',
        got: type,
      })
    })
  }
}

/** Some rows of the first axis, of which there are `count`. */
function rowsOf(tensor: RuntimeTensor, rows: readonly number[], count: number): RuntimeTensor {
  const { data, dims } = tensor
  const size = data.length / Math.max(1, count)
  const kept = new (data.constructor as Float32ArrayConstructor)(rows.length * size)
  rows.forEach((row, i) => {
    kept.set((data as Float32Array).subarray(row * size, (row + 1) * size), i * size)
  })
  return { ...tensor, data: kept, dims: [rows.length, ...dims.slice(1)] }
}
