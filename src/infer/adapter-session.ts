// One base model, many adapters: a session whose LoRA factors are graph inputs, so that choosing an adapter is feeding
// other arrays. The base's weights are in memory once, whatever the number of adapters.

import { StateError, UnsupportedError } from '../base/errors.js'
import { checkArgument, checkOptions, kind, listOf, NAME, type OptionTable } from '../base/options.js'
import { completeFeeds } from '../graph/inputs/family.js'
import { findLinears, type Linear, type ModuleMap } from '../graph/match/linears.js'
import { placeAdapter } from '../graph/match/place-adapter.js'
import type { ModelGraph } from '../graph/match/spread.js'
import { sessionModel } from '../graph/session-model.js'
import type { Graph } from '../graph/view/graph.js'
import { readGraph } from '../graph/view/read-graph.js'
import type { DecodeImage } from '../images/image.js'
import { LoraAdapter } from '../lora/adapter.js'
import { requireHandled } from '../lora/requirements.js'
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
} from './adapter-choice.js'
import { InferEngine } from './engine.js'
import { checkName, plainFeeds } from './feeds.js'
import { mainRole, otherGraphs, type SessionBase, type SessionExtras, shareAdapter } from './graphs.js'
import { type AdapterHead, readHead, runWithHead } from './heads.js'
import { Readings } from './readings.js'
import { batchOf, checkRanks } from './rows.js'
import type { AdapterSession, AdapterSessionOptions, RunOptions } from './session.js'
import { sessionGraph } from './session-graph.js'
import { adapterFactors, buffersOf } from './site-factors.js'

const ADAPTER = kind('a LoraAdapter', (value) => value instanceof LoraAdapter)

const RUN_OPTIONS: OptionTable<RunOptions> = { adapter: ADAPTER_CHOICE, outputNames: listOf(NAME), graph: NAME }

/** An {@link AdapterSession}, or over less than a whole model what does not write texts. */
export class OnnxSession<M extends SessionBase = SessionBase>
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
  readonly #allowMissing: boolean
  /** Over the model's other graphs, such as its encoder. They have the same adapters, each its own layers of them. */
  #others: ReadonlyMap<string, OnnxSession> = new Map()
  readonly #graph: Graph
  readonly #linears: readonly Linear[]
  readonly #adapters = new Map<string, OpenAdapter>()
  /** Modules that the open session has LoRA inputs for; undefined before the first session. */
  #adapted: ReadonlySet<string> | undefined
  /** Those of them that take a scale and a shift of their outputs, for DoRA and biases of B. */
  #affine: ReadonlySet<string> = new Set()
  /** Values of the graph that it gives out beside the model's outputs, for heads. */
  #given: ReadonlySet<string> = new Set()
  /** Changes of the session follow one another. */
  #lastChange: Promise<unknown> = Promise.resolve()
  #disposal: Promise<void> | undefined

  private constructor(
    model: M,
    { adapters: _, modules = {}, device, allowMissing = false, ...options }: AdapterSessionOptions,
    closesModel: boolean,
    { edit = () => {}, beforeOpen = async () => {}, openAdapter, decodeImage, ...outputs }: SessionExtras,
  ) {
    super()
    this.model = model
    this.decodeImage = decodeImage
    this.#openAdapter = openAdapter ?? (async (adapter) => adapter as LoraAdapter)
    this.#allowMissing = allowMissing
    this.#closesModel = closesModel
    this.#edit = edit
    this.#beforeOpen = beforeOpen
    this.#options = { ...options, ...outputs, ...(device !== undefined && { executionProviders: [device].flat() }) }
    this.#modules = modules
    this.#graph = readGraph(model.onnx.proto)
    this.#linears = findLinears(this.#graph, modules)
    this.#engine = openEngine(model.runtime, 'infer', (runtime) => new InferEngine(runtime))
  }

  /**
   * See openSession of the entry.
   *
   * @param closesModel disposing the session closes the model too
   */
  static async open<M extends SessionBase>(
    model: M,
    options: AdapterSessionOptions = {},
    closesModel = false,
    extras: SessionExtras = {},
  ): Promise<OnnxSession<M>> {
    const session = new OnnxSession(model, options, closesModel, extras)
    try {
      const others = new Map<string, OnnxSession>()
      session.#others = others
      for (const { role, ...base } of await otherGraphs(model)) {
        others.set(role, await OnnxSession.open(base, { ...options, adapters: {}, allowMissing: false }))
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
    const outputs = await runWithHead(run, own, outputNames, { head: this.headFor(mixes), all: this.outputNames })
    if (mixes.length > 1) checkRanks(this.#graph, outputs)
    return outputs
  }

  /** @internal The session over one of the model's graphs. Throws MismatchError when the model has none of that role. */
  graph(role: string): OnnxSession {
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
    requireMixable(mixes, (name) => this.#requireAdapter(name).scales)
  }

  /** @internal The head that a run's logits come from. Throws UnsupportedError where adapters of several rows or a mix have one. */
  headFor(mixes: readonly Mix[]): AdapterHead | undefined {
    const heads = mixes.flat().flatMap(({ name }) => this.headOf(name) ?? [])
    const isAlone = mixes.length === 1 && mixes[0].length === 1
    if (heads.length === 0 || isAlone) return heads[0]
    throw new UnsupportedError({
      where: 'adapter',
      what: 'an adapter with a head of its own runs alone, for all rows',
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
        const { config } = adapter
        const [own, ...rest] = isShare
          ? [adapter]
          : await shareAdapter(this.#modelGraphs(), adapter, this.#allowMissing)
        rest.forEach((share, i) => {
          shares[i] = [...(shares[i] ?? []), [name, share]]
        })
        const head = await readHead(this.model, this.#graph, this.#linears, own)
        const others = own.parts().filter((part) => head?.tensors.has(part.name) !== true)
        requireHandled({ config, parts: () => others }, ['linear', 'magnitude', 'biasB'], 'adapters of sessions')
        const isPlaceless = others.length === 0 && (head !== undefined || isShare || rest.length > 0)
        const placed = isPlaceless ? [] : placeAdapter(this.#graph, this.#linears, own, true)
        const about: OpenAdapter = {
          head,
          scales: adapter.parts('linear').some(({ magnitude }) => magnitude !== undefined),
          chatTemplate: adapter.chatTemplate,
        }
        added.push({ name, about, factors: await adapterFactors(this.model.onnx, this.#graph, placed) })
      }
      const sites = added.flatMap(({ factors }) => [...factors])
      await this.#openFor(
        sites.map(([module]) => module),
        sites.flatMap(([module, { affine }]) => (affine === undefined ? [] : [module])),
        added.flatMap(({ about: { head } }) => head?.input.value ?? []),
      )
      for (const [i, other] of [...this.#others.values()].entries()) await other.#add(shares[i] ?? [], true)
      for (const { name, about, factors } of added) {
        await engine.addAdapter(name, transfer(factors, buffersOf(factors)))
        this.#adapters.set(name, about)
      }
    })
  }

  #modelGraphs(): ModelGraph[] {
    const graphOf = ({ model, linears }: { model: SessionBase; linears: readonly Linear[] }, role: string) => {
      return { role: role as ModelGraph['role'], name: model.onnx.fileName, linears }
    }
    const others = Array.from(this.#others, ([role, other]) =>
      graphOf({ model: other.model, linears: other.#linears }, role),
    )
    return [graphOf({ model: this.model, linears: this.#linears }, mainRole(this.model)), ...others]
  }

  /** Makes sure that the open session has inputs for these modules, and for the scales and shifts of some of them, and gives these values. */
  async #openFor(
    modules: readonly string[],
    affineModules: readonly string[],
    values: readonly string[],
  ): Promise<void> {
    const adapted = new Set([...(this.#adapted ?? []), ...modules])
    const affine = new Set([...this.#affine, ...affineModules])
    const given = new Set([...this.#given, ...values.filter((value) => !this.outputNames.includes(value))])
    const isSame = adapted.size === this.#adapted?.size && affine.size === this.#affine.size
    if (isSame && given.size === this.#given.size) return
    const edit = { before: this.#edit, modules: this.#modules, adapted, affine, given }
    const { graph, ...open } = sessionGraph(this.model.onnx, edit, this.#options.executionProviders)
    await this.#beforeOpen()
    await this.engine.open({ ...open, model: await sessionModel(this.model.onnx, graph), options: this.#options })
    this.#adapted = adapted
    this.#affine = affine
    this.#given = given
  }

  #change<T>(action: () => Promise<T>): Promise<T> {
    const result = this.#lastChange.then(action)
    this.#lastChange = result.catch(() => {})
    return result
  }
}

/** What runs have to know of an adapter. */
interface OpenAdapter {
  readonly head: AdapterHead | undefined
  /** It scales the outputs of the base. */
  readonly scales: boolean
  /** The template of the chats that it was trained on. */
  readonly chatTemplate: string | undefined
}
