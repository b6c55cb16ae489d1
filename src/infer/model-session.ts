// One base model, many adapters: a session whose LoRA factors are graph inputs, so that choosing an adapter is feeding
// other arrays. The base's weights are in memory once, whatever the number of adapters.

import { StateError, UnsupportedError } from '../base/errors.js'
import { checkArgument, checkOptions, kind, listOf, NAME, type OptionTable } from '../base/options.js'
import { accuracyEdit } from '../graph/accuracy-level.js'
import type { NewRows } from '../graph/fuse/new-rows.js'
import { joinNeeds, type SiteNeeds } from '../graph/inject/sites.js'
import { completeFeeds } from '../graph/inputs/family.js'
import { findLinears, type Linear, type ModuleMap } from '../graph/match/linears.js'
import type { ModelGraph } from '../graph/match/spread.js'
import { sessionModel } from '../graph/session-model.js'
import { type Graph, readGraph } from '../graph/view/graph.js'
import type { DecodeImage } from '../images/image.js'
import { LoraAdapter } from '../lora/adapter.js'
import { type Engine, openEngine, STOP_MS, settlesWithin } from '../runtime/host.js'
import { type Remote, transfer } from '../runtime/rpc.js'
import type { Feeds, OutputOptions, RuntimeTensor, SessionOptions } from '../runtime/runtime.js'
import {
  ADAPTER_CHOICE,
  type AdapterChoice,
  type Mix,
  mixesOf,
  refuseAdapter,
  requireMixable,
} from './adapters/choice.js'
import { type AdapterHead, runWithHead } from './adapters/heads.js'
import { hasPlace, type OpenAdapter, readParts, type SessionGraph } from './adapters/parts.js'
import { buffersOf, needsOf } from './adapters/site-factors.js'
import type { InferEngine } from './engine.js'
import { batchOf, checkName, checkRanks, plainFeeds } from './feeds.js'
import { mainRole, otherGraphs, type SessionBase, type SessionExtras, shareAdapter } from './graphs.js'
import { Readings } from './readings/readings.js'
import type { AdapterSession, AdapterSessionOptions, RunOptions } from './session.js'
import { type GraphNeeds, sessionGraph, type Vector } from './session-graph.js'

const ADAPTER = kind('a LoraAdapter', (value) => value instanceof LoraAdapter)

const RUN_OPTIONS: OptionTable<RunOptions> = { adapter: ADAPTER_CHOICE, outputNames: listOf(NAME), graph: NAME }

/** An {@link AdapterSession}, or over less than a whole model what does not write texts. */
export class ModelSession<M extends SessionBase = SessionBase>
  extends Readings
  implements Omit<AdapterSession, 'model' | keyof Readings>
{
  readonly model: M
  /** @internal */
  readonly decodeImage: DecodeImage | undefined
  readonly #engine: Engine<InferEngine>
  readonly #options: SessionOptions & OutputOptions
  readonly #edit: (graph: Graph) => void
  readonly #beforeOpen: () => Promise<void>
  readonly #modules: ModuleMap
  readonly #closesModel: boolean
  readonly #openAdapter: (adapter: unknown) => Promise<LoraAdapter>
  readonly #onMissing: SessionExtras['onMissing']
  /** Over the model's other graphs, such as its encoder. They have the same adapters, each its own layers of them. */
  #others: ReadonlyMap<string, ModelSession> = new Map()
  readonly #graph: Graph
  readonly #linears: readonly Linear[]
  readonly #adapters = new Map<string, OpenAdapter>()
  #changes = 0
  #isOpen = false
  /** The inputs of the open session. */
  #needs: GraphNeeds = { modules: new Map(), vectors: new Map() }
  /** Values of the graph that it gives out beside the model's outputs, for heads. */
  #given: ReadonlySet<string> = new Set()
  #newRows: NewRows | undefined
  /** Changes of the session follow one another. */
  #lastChange: Promise<unknown> = Promise.resolve()
  #disposal: Promise<void> | undefined

  private constructor(
    model: M,
    engine: Engine<InferEngine>,
    graph: Pick<SessionGraph, 'graph' | 'linears'>,
    {
      adapters: _,
      modules = {},
      device,
      allowMissing = false,
      ...options
    }: Omit<AdapterSessionOptions, 'accuracyLevel'>,
    closesModel: boolean,
    {
      edit = () => {},
      beforeOpen = async () => {},
      openAdapter,
      onMissing = () => {},
      decodeImage,
      ...outputs
    }: SessionExtras,
  ) {
    super()
    this.model = model
    this.decodeImage = decodeImage
    this.#openAdapter = openAdapter ?? (async (adapter) => adapter as LoraAdapter)
    this.#onMissing = allowMissing ? onMissing : undefined
    this.#closesModel = closesModel
    this.#edit = edit
    this.#beforeOpen = beforeOpen
    this.#options = { ...options, ...outputs, ...(device !== undefined && { executionProviders: [device].flat() }) }
    this.#modules = modules
    this.#graph = graph.graph
    this.#linears = graph.linears
    this.#engine = engine
  }

  /**
   * See openSession of the entry.
   *
   * @param closesModel disposing the session closes the model too
   */
  static async open<M extends SessionBase>(
    model: M,
    { accuracyLevel, ...options }: AdapterSessionOptions = {},
    closesModel = false,
    extras: SessionExtras = {},
  ): Promise<ModelSession<M>> {
    const graph = readGraph(model.onnx.proto)
    const linears = findLinears(graph, options.modules)
    const parts = await otherGraphs(model)
    const edits = [...(extras.edit === undefined ? [] : [extras.edit])]
    if (accuracyLevel !== undefined) {
      edits.push(accuracyEdit(accuracyLevel, [model, ...parts]))
    }
    const edit = (graph: Graph) => {
      for (const one of edits) one(graph)
    }
    const load = async () => (await import('./engine.js')).InferEngine
    const engine = await openEngine(model.runtime, 'infer', load, options.threads)
    const session = new ModelSession(model, engine, { graph, linears }, options, closesModel, { ...extras, edit })
    try {
      const others = new Map<string, ModelSession>()
      session.#others = others
      for (const { role, ...base } of parts) {
        others.set(
          role,
          await ModelSession.open(base, { ...options, adapters: {}, allowMissing: false }, false, { edit }),
        )
      }
      await session.#add(Object.entries(options.adapters ?? {}))
      return session
    } catch (error) {
      await session.dispose()
      throw error
    }
  }

  get adapters(): readonly string[] {
    return [...this.#adapters.keys()]
  }

  /** @internal How often adapters have come or gone: what is worked out of them holds until then. */
  get changes(): number {
    return this.#changes
  }

  /** @internal What a step adds to the cache, where the open session gives it out. */
  get newRows(): NewRows | undefined {
    return this.#newRows
  }

  get inputNames(): readonly string[] {
    return this.#graph.inputs.map(({ name }) => name)
  }

  get outputNames(): readonly string[] {
    return this.#graph.outputs.map(({ name }) => name)
  }

  async add(name: string, adapter: unknown): Promise<void> {
    return this.#add([[name, await this.#openAdapter(adapter)]])
  }

  async remove(name: string): Promise<void> {
    checkArgument(name, NAME, 'name')
    return this.#change(async () => {
      this.#requireAdapter(name)
      this.#adapters.delete(name)
      this.#changes++
      await this.engine.removeAdapter(name)
      for (const other of this.#others.values()) await other.remove(name)
    })
  }

  async run(feeds: Feeds, options: RunOptions = {}): Promise<Record<string, RuntimeTensor>> {
    checkOptions(options, { of: 'run', table: RUN_OPTIONS })
    const { adapter, outputNames, graph } = options
    if (graph !== undefined) return this.graph(graph).run(feeds, { adapter, outputNames })
    for (const name of outputNames ?? []) checkName('output', name, this.outputNames)
    const own = completeFeeds(this.#graph, plainFeeds(feeds, this.inputNames))
    const mixes = mixesOf(adapter as AdapterChoice | readonly AdapterChoice[], batchOf(own))
    this.checkMixes(mixes)
    const run = (all: Feeds, names: readonly string[] | undefined) => this.engine.run(all, mixes, names)
    const heads = this.headsFor(mixes)
    const all = this.outputNames
    const outputs = heads.every((head) => head === undefined)
      ? await run(own, outputNames ?? all)
      : await runWithHead(run, own, outputNames, { heads, all })
    if (mixes.length > 1) checkRanks(this.#graph, outputs)
    return outputs
  }

  /** @internal The session over one of the model's graphs. Throws MismatchError when the model has none of that role. */
  graph(role: string): ModelSession {
    const other = this.#others.get(role)
    if (other !== undefined) return other
    checkName('graph', role, this.graphs)
    return this
  }

  /** @internal */
  runGraph(role: string, feeds: Feeds, mixes: readonly Mix[]): Promise<Record<string, RuntimeTensor>> {
    return this.graph(role).engine.run(feeds, mixes, undefined)
  }

  get graphs(): readonly string[] {
    return [mainRole(this.model), ...this.#others.keys()]
  }

  /** @internal */
  headOf(name: string): AdapterHead | undefined {
    return this.#adapters.get(name)?.head
  }

  dispose(): Promise<void> {
    this.#disposal ??= this.#close()
    return this.#disposal
  }

  async #close(): Promise<void> {
    // A change that waits for a run which never ends is over when the engine is given up.
    const startedAt = performance.now()
    await settlesWithin(this.#lastChange, STOP_MS / 2)
    const leftMs = STOP_MS - (performance.now() - startedAt)
    try {
      await Promise.all([...this.#others.values()].map((other) => other.dispose()).concat(this.#engine.close(leftMs)))
    } finally {
      if (this.#closesModel) await this.model.close?.()
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }

  /** @internal */
  get engine(): Remote<InferEngine> {
    this.checkOpen()
    return this.#engine.remote
  }

  /** @internal Throws StateError when the session is disposed. */
  checkOpen(): void {
    if (this.#disposal !== undefined) throw new StateError({ where: 'session', what: 'the session is closed' })
  }

  /**
   * @internal Throws MismatchError unless runs can choose these adapters, UnsupportedError for a mix that is no sum.
   */
  checkMixes(mixes: readonly Mix[]): void {
    for (const session of this.#all) requireMixable(mixes, (name) => session.#requireAdapter(name))
  }

  /** @internal The heads that the rows' logits come from. Throws UnsupportedError where an adapter of a mix has one. */
  headsFor(mixes: readonly Mix[]): (AdapterHead | undefined)[] {
    return mixes.map((mix) => {
      const heads = mix.flatMap(({ name }) => this.headOf(name) ?? [])
      if (heads.length === 0 || (mix.length === 1 && mix[0].weight === 1)) return heads[0]
      throw new UnsupportedError({
        where: 'adapter',
        what: 'an adapter with a head of its own is in no mix, and has weight 1',
        got: mix.map(({ name, weight }) => `${name}: ${weight}`).join(', '),
      })
    })
  }

  /** @internal The head of all rows together. Throws UnsupportedError where they have different ones. */
  headFor(mixes: readonly Mix[]): AdapterHead | undefined {
    const heads = new Set(this.headsFor(mixes))
    if (heads.size === 1) return [...heads][0]
    throw new UnsupportedError({
      where: 'adapter',
      what: 'adapters with heads of their own have different labels, so that the texts of each go one by one',
      hint: 'Run the rows of each adapter at a time',
    })
  }

  /** @internal */
  chatTemplateOf(mix: Mix): string | undefined {
    return mix.map(({ name }) => this.#adapters.get(name)?.chatTemplate).find((template) => template !== undefined)
  }

  /** Throws MismatchError unless runs can choose this adapter. */
  #requireAdapter(name: string): OpenAdapter {
    return this.#adapters.get(name) ?? refuseAdapter(name, this.adapters)
  }

  /** @param isShare the session is over one of several graphs, in which an adapter may have no layers */
  #add(adapters: readonly (readonly [string, LoraAdapter])[], isShare = false): Promise<void> {
    return this.#change(async () => {
      const engine = this.engine
      const added = []
      const shares: [name: string, share: LoraAdapter][][] = []
      for (const [name, adapter] of adapters) {
        checkArgument(name, NAME, 'name')
        checkArgument(adapter, ADAPTER, this.#adapters.size + adapters.length > 1 ? `adapter ${name}` : 'adapter')
        if (this.#adapters.has(name)) {
          throw new StateError({
            where: 'adapter',
            what: `the session has an adapter ${JSON.stringify(name)} already`,
            hint: 'Call remove first, or choose another name',
          })
        }
        const [own, ...rest] = isShare
          ? [adapter]
          : await shareAdapter(this.#modelGraphs(), adapter, this.#onMissing?.bind(undefined, name), (graph, part) =>
              hasPlace(this.#all[graph].#base, adapter, part),
            )
        rest.forEach((share, i) => {
          shares[i] = [...(shares[i] ?? []), [name, share]]
        })
        added.push({ name, ...(await readParts(this.#base, own, isShare || rest.length > 0)) })
      }
      await this.#openFor(
        joinNeeds([this.#needs.modules, ...added.map(({ factors }) => needsOf(factors))]),
        added.flatMap(({ vectors }) => vectors),
        added.flatMap(({ about: { head } }) => head?.input.value ?? []),
      )
      for (const [i, other] of [...this.#others.values()].entries()) await other.#add(shares[i] ?? [], true)
      for (const { name, about, factors } of added) {
        await engine.addAdapter(name, transfer(factors, buffersOf(factors)))
        this.#adapters.set(name, about)
        this.#changes++
      }
    })
  }

  get #base(): SessionGraph {
    return { model: this.model, graph: this.#graph, linears: this.#linears }
  }

  /** This session and those over the model's other graphs. */
  get #all(): readonly ModelSession[] {
    return [this, ...this.#others.values()]
  }

  #modelGraphs(): ModelGraph[] {
    const roles = this.graphs as readonly ModelGraph['role'][]
    return this.#all.map((one, i) => {
      const { fileName: name } = one.model.onnx
      return { role: roles[i], name, graph: one.#graph, linears: one.#linears }
    })
  }

  /** Makes sure that the open session has these inputs, those of these vectors, and gives these values. */
  async #openFor(modules: SiteNeeds, newVectors: readonly Vector[], values: readonly string[]): Promise<void> {
    const before = this.#needs
    const vectors = new Map([...before.vectors, ...newVectors.map((vector) => [vector.name, vector] as const)])
    const given = new Set([...this.#given, ...values.filter((value) => !this.outputNames.includes(value))])
    const size = (needs: SiteNeeds) => [...needs.values()].reduce((sum, roles) => sum + roles.size, 0)
    const isSame = this.#isOpen && size(modules) === size(before.modules) && given.size === this.#given.size
    if (isSame) return
    const needs = { modules, vectors }
    const edit = { before: this.#edit, names: this.#modules, needs, given }
    const { graph, ...open } = sessionGraph(this.model.onnx, edit, this.#options.executionProviders)
    await this.#beforeOpen()
    await this.engine.open({ ...open, model: await sessionModel(this.model.onnx, graph), options: this.#options })
    this.#isOpen = true
    this.#needs = needs
    this.#given = given
    this.#newRows = open.newRows
  }

  #change<T>(action: () => Promise<T>): Promise<T> {
    const result = this.#lastChange.then(action)
    this.#lastChange = result.catch(() => {})
    return result
  }
}
