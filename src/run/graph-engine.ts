// Runs one graph of a session in the engine: it holds ONNX Runtime's session, whose graph has inputs for adapters, and
// the adapters' arrays.

import { StateError } from '../core/base/errors.js'
import type { Turns } from '../core/base/turns.js'
import type { NewRows } from '../model/fuse/new-rows.js'
import { ROWS_INPUT } from '../model/inject/inject.js'
import { FIRST_INPUT, MISSING_INPUT, type SiteGroup, SLOTS_INPUT } from '../model/inject/sites.js'
import type {
  Feeds,
  OutputOptions,
  Runtime,
  RuntimeSession,
  RuntimeTensor,
  SessionModel,
  SessionOptions,
} from '../onnx/runtime/runtime.js'
import { closedSession, type Mix } from './adapters/choice.js'
import { type AdapterFeeds, feedsOfRows, type RowFactors } from './adapters/row-factors.js'
import type { AdapterFactors } from './adapters/site-factors.js'
import { groupFeeds, inputMajor } from './adapters/site-feeds.js'

export interface OpenRequest {
  model: SessionModel
  groups: readonly SiteGroup[]
  inputNames: ReadonlyMap<string, string>
  takesRows: boolean
  /** The factors of linear layers are fed transposed: Aᵀ (k, r) and s·Bᵀ (r, d). PEFT's order is A (r, k), B (d, r). */
  isInputMajor: boolean
  /** The rank of the zeros that are fed without an adapter: 0, or 1 if the runtime does not accept empty tensors. */
  idleRank: 0 | 1
  /** The output with the rows that a step adds to the cache, if the graph has such an output. */
  newRows: NewRows | undefined
  options: SessionOptions & OutputOptions
}

interface OpenSession extends Omit<OpenRequest, 'model' | 'idleRank' | 'options'> {
  session: RuntimeSession
  idle: Feeds
  /**
   * The outputs that a run returns by default: all except the output of `newRows`. Undefined if the graph has no such
   * output; then a run returns all.
   */
  outputNames: readonly string[] | undefined
  /** The adapters' feeds with the graph's short input names. Kept because making them takes longer than a layer. */
  kept: WeakMap<AdapterFeeds, Feeds>
}

const KEPT_FEEDS = 4

const ZERO: RuntimeTensor = { type: 'int64', data: new BigInt64Array(1), dims: [1] }

/** Default feeds for inputs that sessions add to the graph. Only generation feeds other values. */
const ADDED: Feeds = { [FIRST_INPUT]: ZERO, [MISSING_INPUT]: ZERO }

export class GraphEngine {
  readonly #adapters = new Map<string, AdapterFactors>()
  /** The adapters' feeds of the last runs, by the mix of each row (its adapters with their weights). */
  readonly #feeds = new Map<string, AdapterFeeds>()
  #open: OpenSession | undefined
  /** How the first run of the open graph ended. */
  #firstRun: 'none' | 'succeeded' | 'failed' = 'none'
  keepsTensors = false

  /** @param turns the queue of all graphs of the session, because in browsers a run must end before the next begins */
  constructor(
    private readonly runtime: Runtime,
    private readonly turns: Turns,
  ) {}

  async open({ model, idleRank, options, ...request }: OpenRequest): Promise<void> {
    const session = await this.runtime.createSession(model, options)
    const before = this.#open
    this.keepsTensors = options.keepsTensors === true
    const { groups, newRows } = request
    const outputNames = newRows && session.outputNames.filter((name) => name !== newRows.output)
    const idle = idleFeeds(groups, idleRank)
    this.#open = { ...request, session, idle, outputNames, kept: new WeakMap() }
    this.#firstRun = 'none'
    await this.turns.take(async () => before?.session.dispose())
  }

  get newRows(): NewRows | undefined {
    return this.#open?.newRows
  }

  /** True if the first run of the open graph failed. */
  get hasFailed(): boolean {
    return this.#firstRun === 'failed'
  }

  addAdapter(name: string, factors: AdapterFactors): void {
    this.#adapters.set(name, factors)
    this.#feeds.clear()
  }

  removeAdapter(name: string): AdapterFactors | undefined {
    const factors = this.#adapters.get(name)
    this.#adapters.delete(name)
    this.#feeds.clear()
    return factors
  }

  /** Returns the arrays of these mixes. They stay valid even if an adapter leaves the session. */
  factorsOf(mixes: readonly Mix[]): RowFactors {
    const factorsOf = (name: string): AdapterFactors => {
      const factors = this.#adapters.get(name)
      if (factors === undefined) throw new StateError({ where: name, what: 'no such adapter in the session' })
      return factors
    }
    return mixes.map((mix) => mix.map(({ name, weight }) => ({ factors: factorsOf(name), weight })))
  }

  /** @throws UnsupportedError if the graph cannot tell the adapters of these rows apart */
  checkAdapters(adapters: AdapterFeeds): void {
    adapters.for(this.#open?.groups ?? [])
  }

  runMixes(feeds: Feeds, mixes: readonly Mix[], outputNames: readonly string[] | undefined) {
    return this.run(feeds, this.#feedsOf(mixes), outputNames)
  }

  async run(
    given: Feeds,
    adapters: AdapterFeeds,
    wanted: readonly string[] | undefined,
  ): Promise<Record<string, RuntimeTensor>> {
    try {
      const outputs = await this.turns.take(() => this.#run(given, adapters, wanted))
      this.#firstRun = 'succeeded'
      return outputs
    } catch (error) {
      if (this.#firstRun === 'none') this.#firstRun = 'failed'
      throw error
    }
  }

  async #run(given: Feeds, adapters: AdapterFeeds, wanted: readonly string[] | undefined) {
    if (this.#open === undefined) throw closedSession()
    const { session, groups, inputNames, takesRows, isInputMajor, idle, kept } = this.#open
    const feeds = { ...ADDED, ...given }
    for (const name of Object.keys(ADDED)) if (!session.inputNames.includes(name)) delete feeds[name]
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
    return session.run(feeds, wanted ?? this.#open.outputNames, held)
  }

  readonly toHost = (tensor: RuntimeTensor): Promise<RuntimeTensor> => {
    return this.turns.take(async () => {
      if (this.#open === undefined) throw closedSession()
      return this.runtime.toHost?.(tensor) ?? tensor
    })
  }

  /** Call this only while holding the turn. */
  async dispose(): Promise<void> {
    const last = this.#open
    this.#open = undefined
    this.#adapters.clear()
    this.#feeds.clear()
    await last?.session.dispose()
  }

  /** Returns the adapters' feeds, which are kept for the next runs: a caller may run one token after the other. */
  #feedsOf(mixes: readonly Mix[]): AdapterFeeds {
    const key = JSON.stringify(mixes)
    const feeds = this.#feeds.get(key) ?? feedsOfRows(this.factorsOf(mixes))
    this.#feeds.delete(key)
    this.#feeds.set(key, feeds)
    for (const oldest of [...this.#feeds.keys()].slice(0, -KEPT_FEEDS)) this.#feeds.delete(oldest)
    return feeds
  }
}

/** Makes feeds that change nothing: every site computes what the base computes. */
function idleFeeds(groups: readonly SiteGroup[], rank: 0 | 1): Feeds {
  const slots = (group: SiteGroup) => group.map(() => [undefined])
  const feeds: Feeds = Object.assign({}, ...groups.map((group) => groupFeeds(group, slots(group), undefined, rank)))
  if (groups.flat().some(({ kind }) => kind === 'lookup')) {
    feeds[SLOTS_INPUT] = { type: 'int64', data: BigInt64Array.of(0n), dims: [1] }
  }
  return feeds
}
