// Texts that grow together, in the worker: what each call is fed, the cache, and the choice of the next tokens. Rows of
// other lengths are filled up. A plain cache is filled up on the left, where the mask hides it; GroupQueryAttention
// counts keys from the left and a graph without a cache sees what comes before alone, so theirs is filled up on the
// right, where nothing looks and no time goes.

import { type SerializedError, serializeError, UnsupportedError } from '../../base/errors.js'
import { Random } from '../../base/random.js'
import type { NewRows } from '../../graph/fuse/new-rows.js'
import { FIRST_INPUT, MISSING_INPUT } from '../../graph/inject/sites.js'
import { type CacheEntry, emptyTensor } from '../../graph/inputs/cache.js'
import { type RoleInput, roleFeeds } from '../../graph/inputs/roles.js'
import { type Feeds, floatsOf, freeOnGpu, isOnGpu, type RuntimeTensor } from '../../runtime/runtime.js'
import { AdapterFeeds, isSameMix, type RowFactors } from '../adapters/row-factors.js'
import type { Grammars, TextGrammar } from './grammars.js'
import { GrowingCache, joinRows, type MovedRows } from './growing-cache.js'
import { penalizeRepetition, type ScoredToken, sampleToken, scoreTokens } from './next-token.js'
import type { ReadText } from './prefix-store.js'
import type { Sampling } from './sampling.js'

const BASE = new AdapterFeeds([])

/** On which side rows are filled up; `none`: rows of one batch have prompts of one length. */
export type Padding = 'left' | 'right' | 'none'

export interface RowRequest {
  readonly id: number
  readonly promptIds: readonly number[]
  readonly sampling: Sampling
  readonly seed: number
  /** How many likely tokens to score at each step, besides the one that is taken; undefined: no scores. */
  readonly scores: number | undefined
  /** Texts of another scope do not share what was read. */
  readonly scope: string
  /** Tokens that the base alone reads, before the adapter. Such a text is read alone. */
  readonly baseTokens: number
  readonly schema?: { readonly text: string; readonly ends: readonly number[] } | undefined
}

export interface TextRequest {
  readonly rows: readonly RowRequest[]
  readonly logits: string
  readonly roles: readonly RoleInput[]
  readonly cache: readonly CacheEntry[]
  readonly padding: Padding
  /** Further feeds of each run, by row: the encoder's output for the prompts. */
  readonly context?: Feeds | undefined
}

/** The next token of one of the texts. */
export interface NextToken {
  readonly row: number
  readonly id: number
  readonly scores: { readonly chosen: ScoredToken; readonly top: readonly ScoredToken[] } | undefined
  /** With the first token: how many tokens of the prompt were not read anew. */
  readonly cachedTokens?: number
  /** The reason why there is no token, such as logits that are not finite. The other texts go on. */
  readonly failure?: SerializedError
}

interface Row extends RowRequest {
  readonly tokens: number[]
  readonly known: Set<number>
  readonly random: Random
  readonly mix: RowFactors[number]
  /** The reason why it cannot go on, such as logits that are not finite. */
  failure: unknown
  /** Chooses among the tokens that fit a schema. */
  grammar: TextGrammar | undefined
}

export class Decoding {
  readonly outputNames: readonly string[]
  readonly #request: Omit<TextRequest, 'rows'>
  #rows: Row[]
  #adapters: AdapterFeeds
  readonly #newRows: NewRows | undefined
  /** That of prompts is the request's. */
  readonly #cachePadding: Padding
  #cache: GrowingCache | undefined
  #past: Feeds
  #context: Feeds
  /** Tokens that the cache holds of each row, those that fill it up included. */
  #width = 0
  #cachedTokens = 0

  /** `newRows`: of a graph that gives out what a step adds to the cache. */
  constructor({ rows, ...request }: TextRequest, mixes: RowFactors, rowOf?: readonly number[], newRows?: NewRows) {
    this.#request = request
    this.#cachePadding = newRows?.takesMissing && request.padding === 'left' ? 'right' : request.padding
    this.#newRows = newRows
    this.#cache = newRows && new GrowingCache(newRows, rows.length)
    const cache = newRows === undefined ? request.cache : []
    const given = newRows === undefined ? cache.map(({ present }) => present) : [newRows.output]
    this.outputNames = [request.logits, ...given]
    this.#rows = rows.map((row, index) => ({
      ...row,
      tokens: [...row.promptIds],
      known: new Set(row.promptIds),
      random: new Random(row.seed, 'sampling'),
      mix: mixes[rowOf?.[index] ?? 0] ?? [],
      failure: undefined,
      grammar: undefined,
    }))
    this.#adapters = adaptersOf(this.#rows)
    this.#context = request.context ?? {}
    this.#past = Object.fromEntries(cache.map((entry) => [entry.past, emptyTensor(entry, rows.length)]))
  }

  get adapters(): AdapterFeeds {
    return this.#isReadByBase ? BASE : this.#adapters
  }

  get isReading(): boolean {
    return this.#width === 0 || (this.#rows.length === 1 && this.#width < this.#rows[0].promptIds.length)
  }

  get #isReadByBase(): boolean {
    return this.#rows.length === 1 && this.#width < this.#rows[0].baseTokens
  }

  get isOnGpu(): boolean {
    return Object.values(this.#past).some(isOnGpu)
  }

  /** Before rows of the cache are cut or moved, which cannot be done on a GPU. */
  async fetch(toHost: (tensor: RuntimeTensor) => Promise<RuntimeTensor>): Promise<void> {
    for (const [name, tensor] of Object.entries(this.#past)) {
      if (!isOnGpu(tensor)) continue
      this.#past[name] = await toHost(tensor)
      freeOnGpu(tensor)
    }
  }

  *read(ids?: readonly number[]): Iterable<{ text: ReadText; copy: () => Feeds }> {
    for (const [i, row] of this.#rows.entries()) {
      const { id, tokens, failure } = row
      // The newest token is not in the cache yet.
      const count = Math.min(this.#width, tokens.length - 1)
      if (failure !== undefined || count <= 0 || (ids !== undefined && !ids.includes(id))) continue
      const from = this.#cachePadding === 'left' ? this.#width - count : 0
      const copy = () => this.#cut(this.#cache?.feeds ?? this.#past, { rows: [i], from, count, to: 0 })
      yield { text: this.#textOf(row, tokens.slice(0, count)), copy }
    }
  }

  async prepare(grammars: Grammars): Promise<void> {
    for (const row of this.#rows) {
      if (row.schema === undefined) continue
      try {
        row.grammar ??= await grammars.start(row.schema.text, row.schema.ends)
        await row.grammar.prepare()
      } catch (error) {
        row.failure = error
      }
    }
  }

  get unread(): ReadText | undefined {
    const [row] = this.#rows
    return this.#rows.length === 1 && this.#width === 0 ? this.#textOf(row, row.promptIds) : undefined
  }

  #textOf({ mix, scope, baseTokens }: Row, tokens: readonly number[]): ReadText {
    const ofBase = mix.length === 0 ? Number.POSITIVE_INFINITY : baseTokens
    return { tokens, mix, scope, form: this.#newRows?.output, baseTokens: ofBase }
  }

  skip(cache: Feeds, count: number): void {
    const newRows = this.#newRows
    if (newRows === undefined) this.#past = this.#cut(cache, { rows: [0], from: 0, count, to: 0 })
    else {
      const tensors = newRows.parts.map(({ past }) => cache[past])
      this.#cache = new GrowingCache(newRows, 1, { length: count, tensors })
    }
    this.#width = count
    this.#cachedTokens = count
  }

  #cut(feeds: Feeds, moved: MovedRows): Feeds {
    const cut = ({ past, axis = 2 }: CacheEntry) => joinRows([{ ...moved, tensor: feeds[past] }], axis, moved.count)
    return Object.fromEntries(this.#request.cache.map((entry) => [entry.past, cut(entry)]))
  }

  /** All tokens at first and without a cache, afterwards the newest one of each row. */
  feeds(given: Feeds, most = Number.POSITIVE_INFINITY): Feeds {
    const { roles, padding } = this.#request
    const [batch, past] = [this.#rows.length, this.#width]
    const isLeft = (past === 0 ? padding : this.#cachePadding) === 'left'
    const isAlone = batch === 1
    const total = this.#reach(most)
    const sequence = total - past
    const inputIds = new Int32Array(batch * sequence)
    const attentionMask = new Uint8Array(batch * total)
    this.#rows.forEach(({ tokens }, row) => {
      const length = Math.min(tokens.length, total)
      const fed = isAlone ? tokens.slice(past, total) : past === 0 ? tokens : tokens.slice(-1)
      inputIds.set(fed, row * sequence + (isLeft ? sequence - fed.length : 0))
      const start = row * total + (isLeft ? total - length : 0)
      attentionMask.fill(1, start, start + length)
    })
    const isEven = isAlone || sequence === 1 || this.#rows.every(({ tokens }) => tokens.length === total)
    const logitsToKeep = isLeft || isEven ? 1 : undefined
    const tokens = roleFeeds(roles, { batch, sequence, past, inputIds, attentionMask, logitsToKeep })
    const first = (isLeft || isEven ? sequence : Math.min(...this.#rows.map(({ tokens }) => tokens.length))) - 1
    tokens[FIRST_INPUT] = { type: 'int64', data: BigInt64Array.of(BigInt(first)), dims: [1] }
    if (past > 0 && !isLeft) {
      const missing = this.#rows.map(({ tokens }) => BigInt(Math.max(0, total - tokens.length)))
      tokens[MISSING_INPUT] = { type: 'int64', data: BigInt64Array.from(missing), dims: [batch] }
    }
    return { ...tokens, ...this.#context, ...given, ...(this.#cache?.feeds ?? this.#past) }
  }

  #reach(most: number): number {
    const longest = Math.max(...this.#rows.map(({ tokens }) => tokens.length))
    if (this.#rows.length > 1) return this.#width === 0 ? longest : this.#width + 1
    return Math.min(longest, this.#width + most, this.#isReadByBase ? this.#rows[0].baseTokens : longest)
  }

  take(outputs: Readonly<Record<string, RuntimeTensor>>, most = Number.POSITIVE_INFINITY): NextToken[] {
    const { cache, logits, padding } = this.#request
    const rows = this.#lastLogits(outputs[logits])
    const lengths = this.#rows.map(({ tokens }) => tokens.length)
    const longest = Math.max(...lengths)
    if (cache.length > 0) {
      const before = this.#width
      this.#width = this.#reach(most)
      if (this.#newRows !== undefined) {
        const isBehindOwn = this.#cachePadding === 'right' && rows.length > 1 && (before > 0 || padding === 'left')
        const step = before > 0 ? 1 : longest
        this.#cache?.add(outputs[this.#newRows.output], isBehindOwn ? lengths.map((own) => own - step) : undefined)
      } else {
        for (const { past, present, isOfEncoder } of cache) {
          const isKept = isOfEncoder && before > 0
          freeOnGpu(isKept ? outputs[present] : this.#past[past])
          if (!isKept) this.#past[past] = outputs[present]
        }
      }
      if (this.#width < longest) return []
    }
    return this.#rows.map((row, i): NextToken => {
      try {
        return this.#nextToken(row, rows[i])
      } catch (error) {
        row.failure = error
        return { row: row.id, id: -1, scores: undefined, failure: serializeError(error) }
      }
    })
  }

  #nextToken(
    { id: row, promptIds, tokens, known, random, sampling, scores, grammar, failure }: Row,
    logits: Float32Array,
  ): NextToken {
    if (failure !== undefined) throw failure
    const isFirst = tokens.length === promptIds.length
    const penalized = penalizeRepetition(logits, known, sampling.repetitionPenalty)
    const allowed = grammar?.masked(penalized) ?? penalized
    const id = sampleToken(allowed, sampling, () => random.uniform())
    grammar?.accept(id)
    tokens.push(id)
    known.add(id)
    const scored = scores === undefined ? undefined : scoreTokens(logits, id, scores)
    return { row, id, scores: scored, ...(isFirst && { cachedTokens: this.#cachedTokens }) }
  }

  drop(ended: readonly number[]): void {
    this.release(ended)
    const kept = this.#rows.flatMap(({ id }, i) => (ended.includes(id) ? [] : [i]))
    if (kept.length < this.#rows.length && kept.length > 0) this.#become([{ of: this, rows: kept }])
  }

  release(ids?: readonly number[]): void {
    if (ids === undefined) freeOnGpu(...Object.values(this.#past))
    for (const row of this.#rows) {
      if (ids !== undefined && !ids.includes(row.id)) continue
      row.grammar?.dispose()
      row.grammar = undefined
    }
  }

  adaptersWith(other: Decoding): AdapterFeeds {
    return adaptersOf([...this.#rows, ...other.#rows], this.#adapters)
  }

  /** Both are of the same graph and read alike. */
  join(other: Decoding, adapters: AdapterFeeds): void {
    const all = (of: Decoding) => ({ of, rows: [...of.#rows.keys()] })
    this.#become([all(this), all(other)], adapters)
  }

  split(): Map<number, Decoding> {
    const alone = this.#rows.map(({ id }, row) => {
      const one = new Decoding({ ...this.#request, rows: [] }, [], [], this.#newRows)
      one.#become([{ of: this, rows: [row] }])
      return [id, one] as const
    })
    return new Map(alone)
  }

  isLike(other: Decoding): boolean {
    return this.#newRows?.output === other.#newRows?.output
  }

  #become(parts: readonly { readonly of: Decoding; readonly rows: readonly number[] }[], adapters?: AdapterFeeds) {
    const { cache } = this.#request
    // The newest token of each row is not in the cache yet. What only fills rows up is not copied.
    const held = parts.flatMap(({ of, rows }) => {
      return rows.map((row) => ({ of, row, count: of.#width === 0 ? 0 : of.#rows[row].tokens.length - 1 }))
    })
    const width = Math.max(...held.map(({ count }) => count))
    const isLeft = this.#cachePadding === 'left'
    const moved = held.map(({ of, row, count }): MovedRows & { of: Decoding } => {
      return { of, rows: [row], from: isLeft ? of.#width - count : 0, count, to: isLeft ? width - count : 0 }
    })
    const whole = (tensorOf: (of: Decoding) => RuntimeTensor) => {
      const length = tensorOf(this).dims[1]
      const tensors = moved.map(({ of, rows }) => ({ rows, from: 0, count: length, to: 0, tensor: tensorOf(of) }))
      return joinRows(tensors, 1, length)
    }
    const caches = moved.map((part) => ({ ...part, cache: part.of.#cache! }))
    this.#cache?.become(caches, width)
    const axes = new Map(cache.map(({ past, axis, isOfEncoder }) => [past, isOfEncoder ? undefined : axis]))
    this.#past = Object.fromEntries(
      Object.keys(this.#past).map((name) => {
        const axis = axes.get(name)
        if (axis === undefined) return [name, whole((of) => of.#past[name])]
        const tensors = moved.map((part) => ({ ...part, tensor: part.of.#past[name] }))
        return [name, joinRows(tensors, axis, width)]
      }),
    )
    this.#context = Object.fromEntries(
      Object.keys(this.#context).map((name) => [name, whole((of) => of.#context[name])]),
    )
    this.#rows = parts.flatMap(({ of, rows }) => rows.map((row) => of.#rows[row]))
    this.#width = width
    this.#adapters = adapters ?? adaptersOf(this.#rows, this.#adapters)
  }

  /** The graph may give those of the last tokens alone. */
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
          what: 'they are of the last tokens alone: prompts of different lengths cannot share a batch',
          hint: 'Call generate for one prompt at a time, or with a batchSize of 1',
        })
      }
      const start = (row * sequence + column) * vocabulary
      return floatsOf({ type, dims: [vocabulary], data: data.subarray(start, start + vocabulary) })
    })
  }
}

/** Rows with the same adapters share them. */
function adaptersOf(rows: readonly Pick<Row, 'mix'>[], like?: AdapterFeeds): AdapterFeeds {
  const distinct: Row['mix'][] = []
  const rowOf = rows.map(({ mix }) => {
    const known = distinct.findIndex((other) => isSameMix(mix, other))
    return known >= 0 ? known : distinct.push(mix) - 1
  })
  return new AdapterFeeds(distinct, rowOf, like)
}
