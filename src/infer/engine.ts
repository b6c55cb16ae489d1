// The part of inference that runs: one session with LoRA inputs, the adapters' arrays, and the caches of texts being
// written. It lives in a worker or in the caller's thread; caches and logits never leave it while texts grow.

import { attempt, StateError } from '../base/errors.js'
import { Turns } from '../base/turns.js'
import type { NewRows } from '../graph/fuse/new-rows.js'
import { ROWS_INPUT } from '../graph/inject/inject.js'
import { FIRST_INPUT, MISSING_INPUT, type SiteGroup, SLOTS_INPUT } from '../graph/inject/sites.js'
import type { TokenColumns } from '../graph/inputs/tokens.js'
import { transfer } from '../runtime/rpc.js'
import {
  type Feeds,
  freeOnGpu,
  isOnGpu,
  type OutputOptions,
  type Runtime,
  type RuntimeSession,
  type RuntimeTensor,
  type SessionModel,
  type SessionOptions,
} from '../runtime/runtime.js'
import type { Vocabulary } from '../text/vocabulary.js'
import { distinctMixes, type Mix } from './adapters/choice.js'
import { AdapterFeeds, type RowFactors } from './adapters/row-factors.js'
import type { AdapterFactors } from './adapters/site-factors.js'
import { groupFeeds, inputMajor } from './adapters/site-feeds.js'
import { Decoding, type NextToken, type TextRequest } from './generate/decoding.js'
import { Grammars } from './generate/grammars.js'
import { PrefixStore } from './generate/prefix-store.js'
import { needsTokenByToken, runPiecewise } from './piecewise-runs.js'

export interface OpenRequest {
  model: SessionModel
  groups: readonly SiteGroup[]
  inputNames: ReadonlyMap<string, string>
  takesRows: boolean
  /** Factors of linear layers are Aᵀ (k, r) and s·Bᵀ (r, d), and not as PEFT has them. */
  isInputMajor: boolean
  /** Rank of the zeros fed where there is nothing to add: 0, or 1 where the runtime takes no empty tensors. */
  idleRank: 0 | 1
  /** The token inputs of a graph whose attention takes several texts with a cache one token at a time. */
  columns: TokenColumns | undefined
  /** The output of a graph that gives out the rows that a step adds to the cache. */
  newRows: NewRows | undefined
  options: SessionOptions & OutputOptions
}

/** The tokens from which on the adapters of rows count. */
export interface Activation {
  /** The first one of each row; infinite for the base alone. */
  readonly starts: readonly number[]
  readonly columns: TokenColumns
}

interface OpenSession extends Omit<OpenRequest, 'model' | 'idleRank' | 'options'> {
  session: RuntimeSession
  idle: Feeds
  /** The model's outputs, where the graph gives more: what a run gives when nothing is asked for. */
  outputNames: readonly string[] | undefined
  /** Feeds of a run beside its own inputs, put together once: this takes a step longer than some layers. */
  kept: WeakMap<AdapterFeeds, Feeds>
}

const KEPT_FEEDS = 4

const ZERO: RuntimeTensor = { type: 'int64', data: new BigInt64Array(1), dims: [1] }

/** Inputs that sessions add, which only texts that are written give. */
const ADDED: Feeds = { [FIRST_INPUT]: ZERO, [MISSING_INPUT]: ZERO }

export class InferEngine {
  readonly #adapters = new Map<string, AdapterFactors>()
  /** Feeds of the last runs, by their mixes. */
  readonly #feeds = new Map<string, AdapterFeeds>()
  readonly #decodings = new Map<number, Decoding>()
  readonly #prefixes = new PrefixStore()
  readonly #grammars = new Grammars()
  #prefixBytes = 0
  #open: OpenSession | undefined
  #keepsTensors = false
  #nextDecoding = 1
  /** In browsers one run must end before the next begins. */
  readonly #turns = new Turns()

  constructor(private readonly runtime: Runtime) {}

  async open({ model, idleRank, options, ...request }: OpenRequest): Promise<void> {
    const session = await this.runtime.createSession(model, options)
    const before = this.#open
    this.#keepsTensors = options.keepsTensors === true
    const { groups, newRows } = request
    const outputNames = newRows && session.outputNames.filter((name) => name !== newRows.output)
    const idle = idleFeeds(groups, idleRank)
    this.#open = { ...request, session, idle, outputNames, kept: new WeakMap() }
    await this.#turns.take(async () => before?.session.dispose())
  }

  addAdapter(name: string, factors: AdapterFactors): void {
    this.#adapters.set(name, factors)
    this.#feeds.clear()
  }

  removeAdapter(name: string): void {
    const factors = this.#adapters.get(name)
    if (factors !== undefined) this.#prefixes.forget(factors)
    this.#adapters.delete(name)
    this.#feeds.clear()
  }

  /** @param activation for mixes that count from some token on */
  async run(feeds: Feeds, mixes: readonly Mix[], outputNames: readonly string[] | undefined, activation?: Activation) {
    const outputs =
      activation === undefined
        ? await this.#run(feeds, this.#feedsOf(mixes), outputNames)
        : await this.#runActivated(feeds, mixes, outputNames ?? this.#open?.session.outputNames ?? [], activation)
    if (this.#keepsTensors) return outputs
    for (const [name, tensor] of Object.entries(outputs)) {
      if (!isOnGpu(tensor)) continue
      outputs[name] = await this.#toHost(tensor)
      freeOnGpu(tensor)
    }
    return transfer(outputs, [...new Set(Object.values(outputs).map(({ data }) => data.buffer))])
  }

  /**
   * Returns the number of the new texts. They keep their adapters' arrays, even if an adapter leaves the session.
   *
   * @param prefixBytes of the caches that are kept for later texts; 0 where the graph cannot begin behind them
   */
  startDecoding(request: TextRequest, mixes: readonly Mix[], prefixBytes: number): number {
    const id = this.#nextDecoding++
    const { distinct, rowOf } = distinctMixes(mixes)
    const decoding = new Decoding(request, this.#factorsOf(distinct), rowOf, this.#open?.newRows)
    this.#decodings.set(id, decoding)
    this.#prefixBytes = prefixBytes
    const found = decoding.unread && this.#prefixes.find(decoding.unread)
    if (found !== undefined) decoding.skip(found.prefix.cache, found.count)
    return id
  }

  /** Returns false where the vocabulary is missing, which is needed once. */
  async prepareSchema(schema: string, vocabulary?: Vocabulary): Promise<boolean> {
    if (vocabulary !== undefined) this.#grammars.setVocabulary(vocabulary)
    if (!this.#grammars.hasVocabulary) return false
    await this.#grammars.compile(schema)
    return true
  }

  async #keep(decoding: Decoding, ids?: readonly number[]): Promise<void> {
    if (this.#prefixBytes === 0) return
    await decoding.fetch(this.#toHost)
    for (const { text, copy } of decoding.read(ids)) this.#prefixes.keep(text, copy, this.#prefixBytes)
  }

  async #drop(decoding: Decoding, ended: readonly number[]): Promise<void> {
    if (ended.length === 0) return
    await this.#keep(decoding, ended)
    await decoding.fetch(this.#toHost)
    decoding.drop(ended)
  }

  readonly #toHost = (tensor: RuntimeTensor) => {
    return this.#turns.take(async () => {
      if (this.#open === undefined) throw new StateError({ where: 'session', what: 'it is not open' })
      return this.runtime.toHost?.(tensor) ?? tensor
    })
  }

  /** `most`: how many tokens of a prompt that is alone are read at once. There is no token before all are read. */
  async nextTokens(id: number, ended: readonly number[], given: Feeds = {}, most?: number): Promise<NextToken[]> {
    const decoding = this.#decoding(id)
    await this.#drop(decoding, ended)
    const { isReading } = decoding
    await decoding.prepare(this.#grammars)
    const outputs = await this.#run(decoding.feeds(given, most), decoding.adapters, decoding.outputNames)
    const tokens = decoding.take(outputs, most)
    // A prompt that others share may be there for them before its text ends. From a GPU it is read at the end.
    if (isReading && tokens.length === 1 && !decoding.isOnGpu) await this.#keep(decoding)
    return tokens
  }

  /** Returns false, with nothing joined, if the graph cannot tell the adapters of these rows apart. */
  async joinDecodings(id: number, other: number, ended: readonly number[]): Promise<boolean> {
    const [into, from] = [this.#decoding(id), this.#decoding(other)]
    for (const decoding of [into, from]) {
      await this.#drop(decoding, ended)
      await decoding.fetch(this.#toHost)
    }
    if (!into.isLike(from)) return false
    const adapters = into.adaptersWith(from)
    if (attempt(() => adapters.for(this.#open?.groups ?? [])).problems.length > 0) return false
    into.join(from, adapters)
    this.#decodings.delete(other)
    return true
  }

  async splitDecoding(id: number, ended: readonly number[]): Promise<Map<number, number>> {
    const decoding = this.#decoding(id)
    await this.#drop(decoding, ended)
    await decoding.fetch(this.#toHost)
    const alone = decoding.split()
    this.#decodings.delete(id)
    return new Map(
      Array.from(alone, ([row, decoding]) => {
        const own = this.#nextDecoding++
        this.#decodings.set(own, decoding)
        return [row, own]
      }),
    )
  }

  async stopDecoding(id: number): Promise<void> {
    const decoding = this.#decodings.get(id)
    if (decoding === undefined) return
    try {
      await this.#keep(decoding)
    } catch (error) {
      // A session that closes keeps nothing.
      if (this.#open !== undefined) throw error
    }
    decoding.release()
    this.#decodings.delete(id)
  }

  #decoding(id: number): Decoding {
    const decoding = this.#decodings.get(id)
    if (decoding === undefined) throw new StateError({ where: `text ${id}`, what: 'it is finished' })
    return decoding
  }

  dispose(): Promise<void> {
    return this.#turns.take(async () => {
      const last = this.#open
      this.#open = undefined
      for (const decoding of this.#decodings.values()) decoding.release()
      this.#decodings.clear()
      this.#prefixes.clear()
      this.#adapters.clear()
      this.#feeds.clear()
      await last?.session.dispose()
    })
  }

  /** Made once for runs that follow one another, as those of a text that its caller grows. */
  #feedsOf(mixes: readonly Mix[]): AdapterFeeds {
    const key = JSON.stringify(mixes)
    const { distinct, rowOf } = distinctMixes(mixes)
    const feeds = this.#feeds.get(key) ?? new AdapterFeeds(this.#factorsOf(distinct), rowOf)
    this.#feeds.delete(key)
    this.#feeds.set(key, feeds)
    for (const oldest of [...this.#feeds.keys()].slice(0, -KEPT_FEEDS)) this.#feeds.delete(oldest)
    return feeds
  }

  #factorsOf(mixes: readonly Mix[]): RowFactors {
    const factorsOf = (name: string): AdapterFactors => {
      const factors = this.#adapters.get(name)
      if (factors === undefined) throw new StateError({ where: name, what: 'no such adapter in the session' })
      return factors
    }
    return mixes.map((mix) => mix.map(({ name, weight }) => ({ factors: factorsOf(name), weight })))
  }

  /** Rows begin with the base, and go on with their mix. */
  #runActivated(feeds: Feeds, mixes: readonly Mix[], names: readonly string[], { starts, columns }: Activation) {
    const run = (inputs: Feeds, wanted: readonly string[], first: number) => {
      const own = starts.map((start, row) => (start <= first ? (mixes[row] ?? mixes[0]) : []))
      return this.#run(inputs, this.#feedsOf(own), wanted)
    }
    const [, sequence] = feeds[columns.tokens[0]].dims
    const pieces = [...new Set([0, ...starts.filter((start) => start < sequence)])].sort((a, b) => a - b)
    return runPiecewise(run, columns, feeds, names, pieces)
  }

  #run(own: Feeds, adapters: AdapterFeeds, wanted: readonly string[] | undefined) {
    return this.#turns.take(async () => {
      if (this.#open === undefined) throw new StateError({ where: 'session', what: 'it is not open' })
      const { session, groups, inputNames, takesRows, isInputMajor, idle, columns, kept } = this.#open
      const feeds = { ...ADDED, ...own }
      for (const name of Object.keys(ADDED)) if (!session.inputNames.includes(name)) delete feeds[name]
      const outputNames = wanted ?? this.#open.outputNames
      let held = kept.get(adapters)
      if (held === undefined) {
        const { rows } = adapters
        const told: Feeds = takesRows
          ? { [ROWS_INPUT]: { type: 'int64', data: BigInt64Array.of(BigInt(rows)), dims: [1] } }
          : {}
        const all = { ...idle, ...adapters.for(groups), ...told }
        const fed = Object.entries(isInputMajor ? inputMajor(groups, all) : all)
        held = Object.fromEntries(fed.map(([name, tensor]) => [inputNames.get(name) ?? name, tensor]))
        kept.set(adapters, held)
      }
      if (columns === undefined || !needsTokenByToken(columns, feeds)) return session.run(feeds, outputNames, held)
      const run = (inputs: Feeds, names: readonly string[]) => session.run(inputs, names, held)
      return runPiecewise(run, columns, feeds, outputNames ?? session.outputNames)
    })
  }
}

/** Feeds that leave every site as the base has it. */
function idleFeeds(groups: readonly SiteGroup[], rank: 0 | 1): Feeds {
  const slots = (group: SiteGroup) => group.map(() => [undefined])
  const feeds: Feeds = Object.assign({}, ...groups.map((group) => groupFeeds(group, slots(group), undefined, rank)))
  if (groups.flat().some(({ kind }) => kind === 'lookup')) {
    feeds[SLOTS_INPUT] = { type: 'int64', data: BigInt64Array.of(0n), dims: [1] }
  }
  return feeds
}
