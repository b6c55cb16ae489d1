// The part of inference that runs: one session with LoRA inputs, the adapters' arrays, and the caches of texts being
// written. It lives in a worker or in the caller's thread; caches and logits never leave it while a text grows.

import { f16ToF32 } from '../base/dtype.js'
import { StateError, UnsupportedError } from '../base/errors.js'
import { Random } from '../base/random.js'
import type { AffineInputs } from '../graph/inject/inject.js'
import type { CacheEntry } from '../graph/inputs/cache.js'
import { transfer } from '../runtime/rpc.js'
import type { Feeds, Runtime, RuntimeSession, RuntimeTensor, SessionModel, SessionOptions } from '../runtime/runtime.js'
import { type Sampling, sampleToken } from './sampling.js'

/** A module of the graph that can be adapted: its inputs take Aᵀ (k, r) and s·Bᵀ (r, d), and c (d) and t (d) where it has them. */
export interface LoraSite {
  module: string
  weightA: string
  weightB: string
  affine: AffineInputs | undefined
  k: number
  d: number
}

/** What one adapter feeds to one site. */
export interface SiteFactors {
  rank: number
  /** Aᵀ (k, r) */
  weightA: Float32Array
  /** s·Bᵀ (r, d) */
  weightB: Float32Array
  /** What the outputs are multiplied by, and what is added to them; undefined: 1 and 0. Only for sites that have inputs for it. */
  affine: { scale: Float32Array; shift: Float32Array } | undefined
}

/** By module. Sites without an entry stay as the base has them. */
export type AdapterFactors = ReadonlyMap<string, SiteFactors>

export interface OpenRequest {
  model: SessionModel
  sites: readonly LoraSite[]
  /** Rank of the zeros fed where there is nothing to add: 0, or 1 where the runtime takes no empty tensors. */
  idleRank: 0 | 1
  options: SessionOptions
}

/** How a text is to be continued. */
export interface DecodingRequest {
  adapter: string | undefined
  /** Name of the output that holds the logits (1, sequence, vocabulary). */
  logits: string
  cache: readonly CacheEntry[]
  /** What the cache's inputs take first. */
  emptyCache: Feeds
  sampling: Sampling
  seed: number
}

interface Decoding extends DecodingRequest {
  /** The adapter's own arrays: taking the adapter out of the session does not disturb a text under way. */
  factors: AdapterFactors
  past: Feeds
  random: Random
}

interface OpenSession {
  session: RuntimeSession
  sites: readonly LoraSite[]
  idle: Feeds
}

export class InferEngine {
  readonly #runtime: Runtime
  readonly #adapters = new Map<string, AdapterFactors>()
  readonly #decodings = new Map<number, Decoding>()
  #open: OpenSession | undefined
  #nextDecoding = 1
  /** In browsers one run must end before the next begins. */
  #lastRun: Promise<unknown> = Promise.resolve()

  constructor(runtime: Runtime) {
    this.#runtime = runtime
  }

  /** Opens a session in place of the one before, which stays if this one fails. */
  async open({ model, sites, idleRank, options }: OpenRequest): Promise<void> {
    const session = await this.#runtime.createSession(model, options)
    const before = this.#open
    this.#open = { session, sites, idle: idleFeeds(sites, idleRank) }
    await this.#afterRuns(async () => before?.session.dispose())
  }

  addAdapter(name: string, factors: AdapterFactors): void {
    this.#adapters.set(name, factors)
  }

  removeAdapter(name: string): void {
    this.#adapters.delete(name)
  }

  async run(
    feeds: Feeds,
    adapter: string | undefined,
    outputNames: readonly string[] | undefined,
  ): Promise<Record<string, RuntimeTensor>> {
    const outputs = await this.#run(feeds, this.#factorsOf(adapter), outputNames)
    return transfer(outputs, [...new Set(Object.values(outputs).map(({ data }) => data.buffer))])
  }

  /** @returns the number of the new text */
  startDecoding(request: DecodingRequest): number {
    const id = this.#nextDecoding++
    const factors = this.#factorsOf(request.adapter)
    this.#decodings.set(id, {
      ...request,
      factors,
      past: request.emptyCache,
      random: new Random(request.seed, 'sampling'),
    })
    return id
  }

  /** Feeds tokens (1, sequence) that follow those in the cache, and draws the one that comes next. */
  async nextToken(id: number, feeds: Feeds): Promise<number> {
    const decoding = this.#decodings.get(id)
    if (decoding === undefined) throw new StateError({ where: `text ${id}`, what: 'it is finished' })
    const { logits, cache, factors, random, sampling } = decoding
    const outputNames = [logits, ...cache.map(({ present }) => present)]
    const outputs = await this.#run({ ...feeds, ...decoding.past }, factors, outputNames)
    decoding.past = Object.fromEntries(cache.map(({ past, present }) => [past, outputs[present]]))
    return sampleToken(lastRow(outputs[logits]), sampling, () => random.uniform())
  }

  stopDecoding(id: number): void {
    this.#decodings.delete(id)
  }

  /** Closes the session after the runs that were asked for before. */
  dispose(): Promise<void> {
    return this.#afterRuns(async () => {
      const last = this.#open
      this.#open = undefined
      this.#decodings.clear()
      this.#adapters.clear()
      await last?.session.dispose()
    })
  }

  #factorsOf(adapter: string | undefined): AdapterFactors {
    if (adapter === undefined) return new Map()
    const factors = this.#adapters.get(adapter)
    if (factors === undefined) throw new StateError({ where: adapter, what: 'no such adapter in the session' })
    return factors
  }

  #run(feeds: Feeds, factors: AdapterFactors, outputNames: readonly string[] | undefined) {
    return this.#afterRuns(async () => {
      if (this.#open === undefined) throw new StateError({ where: 'session', what: 'it is not open' })
      const { session, sites, idle } = this.#open
      const all: Feeds = { ...feeds, ...idle }
      for (const { module, weightA, weightB, affine, k, d } of sites) {
        const own = factors.get(module)
        if (own === undefined) continue
        all[weightA] = { type: 'float32', data: own.weightA, dims: [k, own.rank] }
        all[weightB] = { type: 'float32', data: own.weightB, dims: [own.rank, d] }
        if (affine === undefined || own.affine === undefined) continue
        all[affine.scale] = { type: 'float32', data: own.affine.scale, dims: [d] }
        all[affine.shift] = { type: 'float32', data: own.affine.shift, dims: [d] }
      }
      return session.run(all, outputNames)
    })
  }

  #afterRuns<T>(action: () => Promise<T>): Promise<T> {
    const result = this.#lastRun.then(action)
    this.#lastRun = result.catch(() => {})
    return result
  }
}

/** What leaves every site as the base has it. */
function idleFeeds(sites: readonly LoraSite[], rank: 0 | 1): Feeds {
  const feeds: Feeds = {}
  for (const { weightA, weightB, affine, k, d } of sites) {
    feeds[weightA] = { type: 'float32', data: new Float32Array(k * rank), dims: [k, rank] }
    feeds[weightB] = { type: 'float32', data: new Float32Array(rank * d), dims: [rank, d] }
    if (affine === undefined) continue
    feeds[affine.scale] = { type: 'float32', data: new Float32Array(d).fill(1), dims: [d] }
    feeds[affine.shift] = { type: 'float32', data: new Float32Array(d), dims: [d] }
  }
  return feeds
}

/** The logits of the last position: the last row of (1, sequence, vocabulary). */
function lastRow({ data, dims, type }: RuntimeTensor): Float32Array {
  const vocabulary = dims[dims.length - 1]
  if (data instanceof Float32Array) return data.subarray(data.length - vocabulary)
  if (data instanceof Uint16Array && type === 'float16') return f16ToF32(data.subarray(data.length - vocabulary))
  throw new UnsupportedError({
    where: 'logits',
    what: 'no text from this type',
    expected: 'float32, float16',
    got: type,
  })
}
