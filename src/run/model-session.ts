// A session over a model: its graphs, which one engine runs, and its adapters, whose parts are spread over the graphs.

import {
  ConfigError,
  didYouMean,
  MismatchError,
  RuntimeError,
  StateError,
  UnsupportedError,
} from '../core/base/errors.js'
import { checkArgument, checkOptions, NAME } from '../core/base/options.js'
import { Turns } from '../core/base/turns.js'
import type { LoraAdapter } from '../lora/adapter.js'
import { isPlain, type LinearValues, type RunAdapter } from '../lora/run-adapter.js'
import type { NewRows } from '../model/fuse/new-rows.js'
import type { DecodeImage } from '../model/images/image.js'
import { POOLER } from '../model/match/match.js'
import { weightBytes } from '../model/memory.js'
import type { Prompts } from '../model/sentence-modules.js'
import { type Engine, openEngine, settlesWithin, stopMs } from '../onnx/runtime/host.js'
import type { Remote } from '../onnx/runtime/rpc.js'
import type { Feeds, RuntimeTensor } from '../onnx/runtime/runtime.js'
import type { Graph } from '../onnx/view/graph.js'
import { closedSession, type Mix, mixableOf, mixesOf, refuseAdapter, requireMixable } from './adapters/choice.js'
import type { AdapterHead } from './adapters/heads.js'
import type { AdapterParts, NamedParts } from './adapters/parts.js'
import { plainSites } from './adapters/site-factors.js'
import type { InferEngine } from './engine.js'
import { RUN_OPTIONS } from './gen/options.js'
import { generate, streamText, type TextSession } from './generate/generate.js'
import type { TextBounds } from './generate/running-texts.js'
import { GraphSession } from './graph-session.js'
import { mainRole, otherGraphs, type SessionBase, type SessionExtras } from './graphs.js'
import type {
  AdapterSession,
  AdapterSessionOptions,
  ClassifyInput,
  ClassifyOptions,
  EmbedOptions,
  EncodeOptions,
  GenerateOptions,
  Prompt,
  RunOptions,
  ScoreOptions,
  TagOptions,
  TextOrWords,
  TokenPrompt,
} from './session.js'

/** Implements {@link AdapterSession}. Over less than a whole model, only the methods that need no tokenizer work. */
export class ModelSession<M extends SessionBase = SessionBase> implements Omit<AdapterSession, 'model'> {
  /** @internal */
  readonly told = new Map<string, Promise<unknown>>()
  /** The graphs by role. Runs that name no graph take the first. */
  readonly #graphs = new Map<string, GraphSession>()
  #adapters: readonly string[] = []
  readonly #turns = new Turns()
  #disposal: Promise<void> | undefined
  #loading: Promise<unknown> | undefined

  private constructor(
    readonly model: M,
    private readonly closesModel: boolean,
    private readonly allowMissing: boolean,
    private readonly extras: SessionExtras,
    private readonly host: Engine<InferEngine>,
    /** @internal */
    readonly bounds: TextBounds,
  ) {}

  static async open<M extends SessionBase>(
    model: M,
    {
      accuracyLevel,
      adapters = {},
      allow,
      allowMissing = false,
      modules = {},
      device,
      memory,
      maxBatch = 8,
      cacheBytes = 2 ** 30,
      prefixCache = 2 ** 28,
      ...options
    }: Omit<AdapterSessionOptions, 'adapters'> & { adapters?: Readonly<Record<string, RunAdapter>> } = {},
    closesModel = false,
    extras: SessionExtras = {},
  ): Promise<ModelSession<M>> {
    const { edit, keepsTensors, onWarning = console.warn } = extras
    const others = await otherGraphs(model)
    const setLevel =
      accuracyLevel === undefined
        ? undefined
        : (await import('../model/accuracy-level.js')).accuracyEdit(accuracyLevel, [model, ...others])
    const lowMemory = memory === 'low'
    const runtime = { ...options, lowMemory, ...(device !== undefined && { executionProviders: [device].flat() }) }
    const load = async () => (await import('./engine.js')).InferEngine
    const host = await openEngine(model.runtime, 'infer', load, options.threads)
    const bounds = { maxBatch, cacheBytes, prefixCache }
    const session = new ModelSession(model, closesModel, allowMissing, extras, host, bounds)
    try {
      const all = { runtime: { ...runtime, keepsTensors }, modules, allow, edit: setLevel, onWarning }
      const editMain = (graph: Graph) => {
        edit?.(graph)
        setLevel?.(graph)
      }
      const main = mainRole(model)
      session.#graphs.set(main, new GraphSession(main, model, host, { ...all, edit: editMain }))
      for (const { role, ...base } of others) session.#graphs.set(role, new GraphSession(role, base, host, all))
      await session.#add(Object.entries(adapters))
      return session
    } catch (error) {
      await session.dispose()
      throw error
    }
  }

  /** @internal */
  get decodeImage(): DecodeImage | undefined {
    return this.extras.decodeImage
  }

  get adapters(): readonly string[] {
    return this.#adapters
  }

  get graphs(): readonly string[] {
    return [...this.#graphs.keys()]
  }

  get inputNames(): readonly string[] {
    return this.#main.inputNames
  }

  get outputNames(): readonly string[] {
    return this.#main.outputNames
  }

  /** @internal See {@link GraphSession.newRows}. */
  get newRows(): NewRows | undefined {
    return this.#main.newRows
  }

  get engine(): Remote<InferEngine> {
    this.checkOpen()
    return this.host.remote
  }

  async add(name: string, adapter: unknown): Promise<void> {
    const { openAdapter } = this.extras
    return this.#add([[name, openAdapter === undefined ? (adapter as RunAdapter) : await openAdapter(adapter)]])
  }

  async remove(name: string): Promise<void> {
    checkArgument(name, NAME, 'name')
    return this.#turns.take(async () => {
      this.checkOpen()
      if (!this.#adapters.includes(name)) refuseAdapter(name, this.#adapters)
      this.#adapters = this.#adapters.filter((kept) => kept !== name)
      for (const graph of this.#graphs.values()) graph.remove(name)
      await this.engine.removeAdapter(name)
    })
  }

  async run(feeds: Feeds, options: RunOptions = {}): Promise<Record<string, RuntimeTensor>> {
    checkOptions(options, 'run', RUN_OPTIONS)
    const { adapter, outputNames, graph: role } = options
    if (outputNames?.length === 0) {
      throw new ConfigError({ where: 'outputNames', what: 'it is empty', hint: 'Leave it out to get all outputs' })
    }
    this.checkOpen()
    const { batchOf, checkName, checkRanks, completeFeeds, plainFeeds } = await this.#load(import('./feeds.js'))
    const session = this.graphNamed(role)
    const allFeeds = completeFeeds(session.graph, plainFeeds(feeds, session.inputNames))
    const mixes = mixesOf(adapter, batchOf(allFeeds))
    this.checkMixes(mixes)
    const heads = headsFor(mixes, (name) => session.adapter(name).head)
    const [head] = heads.flatMap((found) => found ?? [])
    const { outputNames: graphOutputs } = session
    const names = [...new Set([...graphOutputs, ...(head === undefined ? [] : [head.output])])]
    const wanted = outputNames ?? names
    for (const name of wanted) checkName('output', name, names)
    const run = (given: Feeds, asked: readonly string[]) => session.run(given, mixes, asked)
    const outputs = await this.tried(
      () => head?.run(run, allFeeds, heads, { wanted, graphOutputs }) ?? run(allFeeds, wanted),
    )
    if (mixes.length > 1) checkRanks(session.graph, outputs)
    return outputs
  }

  async runGraph(role: string | undefined, feeds: Feeds, mixes: readonly Mix[], outputs?: readonly string[]) {
    this.checkOpen()
    this.checkMixes(mixes)
    return this.tried(() => this.graphNamed(role).run(feeds, mixes, outputs))
  }

  /**
   * @internal Runs an action. If the faster form of a graph fails when the graph runs first, opens the graph as the
   * file has it, warns, and runs the action again.
   */
  async tried<T>(action: () => Promise<T>): Promise<T> {
    const graphs = [...this.#graphs.values()]
    const faster = graphs.filter(({ isPlain }) => !isPlain)
    const failing = async () => {
      const roles = await this.engine.failing()
      return graphs.filter(({ role }) => roles.includes(role))
    }
    try {
      return await action()
    } catch (error) {
      if (!(error instanceof RuntimeError) || this.host.isGivenUp()) throw error
      for (const graph of await failing()) await graph.retreat()
      if (faster.every(({ isPlain }) => !isPlain)) throw error
      try {
        const result = await action()
        for (const graph of faster) graph.warn(error)
        return result
      } catch {
        // If the graph also fails as the file has it, the faster form is not the cause, but, say, the feeds are.
        for (const graph of await failing()) await graph.advance()
        throw error
      }
    }
  }

  readonly generate = ((prompts: Prompt | readonly Prompt[], options?: GenerateOptions) =>
    generate(this.#whole, prompts, options)) as AdapterSession['generate']

  readonly stream: AdapterSession['stream'] = (prompt, options) => streamText(this.#whole, prompt, options)

  readonly classify = (async (inputs: ClassifyInput | readonly ClassifyInput[], options?: ClassifyOptions) =>
    (await import('./readings/classify.js')).classify(this.#whole, inputs, options)) as AdapterSession['classify']

  readonly embed = (async (texts: string | readonly string[], options?: EmbedOptions) =>
    (await import('./readings/embed.js')).embed(this.#whole, texts, options)) as AdapterSession['embed']

  readonly calibrate: AdapterSession['calibrate'] = async (...given) =>
    (await import('./readings/embed.js')).calibrate(this.#whole, ...given)

  readonly rerank: AdapterSession['rerank'] = async (...given) =>
    (await import('./readings/rerank.js')).rerank(this as unknown as AdapterSession, ...given)

  readonly tag = (async (texts: TextOrWords | readonly TextOrWords[], options?: TagOptions) =>
    (await import('./readings/tag.js')).tag(this.#whole, texts, options)) as AdapterSession['tag']

  readonly encode = (async (prompt: Prompt, options?: EncodeOptions) =>
    (await import('./readings/prompt-facts.js')).encode(this.#whole, prompt, options)) as AdapterSession['encode']

  readonly score = (async (text: string | TokenPrompt, options?: ScoreOptions) =>
    (await import('./readings/score.js')).score(this.#whole, text, options)) as AdapterSession['score']

  readonly call = (async (...given: Parameters<AdapterSession['call']>) =>
    (await import('./readings/call.js')).call(
      this.#whole as unknown as AdapterSession,
      ...given,
    )) as AdapterSession['call']

  readonly knownTools = (async (options?: EncodeOptions) =>
    (await import('./readings/prompt-facts.js')).knownTools(this.#whole, options)) as AdapterSession['knownTools']

  readonly toolForm = (async (options?: EncodeOptions) =>
    (await import('./readings/prompt-facts.js')).toolForm(this.#whole, options)) as AdapterSession['toolForm']

  readonly cacheUse: AdapterSession['cacheUse'] = async () =>
    (await import('./readings/prompt-facts.js')).cacheUse(this.#whole)

  /** This session as one over a whole model, which it is if its caller writes or reads texts. */
  get #whole(): TextSession {
    return this as unknown as TextSession
  }

  dispose(): Promise<void> {
    this.#disposal ??= this.#close()
    return this.#disposal
  }

  /** Remembers code that a run is loading. Closing the session waits for it. */
  #load<T>(code: Promise<T>): Promise<T> {
    this.#loading = code
    return code
  }

  async #close(): Promise<void> {
    for (let code: unknown; code !== this.#loading; ) {
      code = this.#loading
      await code
    }
    // A change of adapters may wait for a run that never ends. It ends when the engine is given up.
    const limitMs = stopMs(weightBytes(this.model.onnx))
    const startedAt = performance.now()
    await settlesWithin(this.#turns.idle, limitMs / 2)
    const leftMs = limitMs - (performance.now() - startedAt)
    try {
      // No run begins after this: texts that are being written end with the current run.
      await this.host.close(limitMs, leftMs)
    } finally {
      if (this.closesModel) await this.model.close?.()
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }

  checkOpen(): void {
    if (this.#disposal !== undefined) throw closedSession()
  }

  checkMixes(mixes: readonly Mix[]): void {
    for (const graph of this.#graphs.values()) requireMixable(mixes, (name) => graph.adapter(name))
  }

  headOf(name: string): AdapterHead | undefined {
    return this.#main.adapter(name).head
  }

  headFor(mixes: readonly Mix[]): AdapterHead | undefined {
    const heads = new Set(headsFor(mixes, (name) => this.headOf(name)))
    if (heads.size === 1) return [...heads][0]
    throw new UnsupportedError({
      where: 'adapter',
      what: 'these adapters have heads with different labels',
      hint: 'Run the rows of each adapter at a time',
    })
  }

  chatTemplateOf(mix: Mix): string | undefined {
    return mix.map(({ name }) => this.#main.adapter(name).chatTemplate).find((template) => template !== undefined)
  }

  promptsOf(mix: Mix): Prompts | undefined {
    return mix.map(({ name }) => this.#main.adapter(name).prompts).find((prompts) => prompts !== undefined)
  }

  /** @internal Warns, once in a session. */
  warnOnce(message: string): void {
    if (this.told.has(message)) return
    this.told.set(message, Promise.resolve())
    const { onWarning = console.warn } = this.extras
    onWarning(message)
  }

  get #main(): GraphSession {
    const [main] = this.#graphs.values()
    return main
  }

  /** @internal */
  graphNamed(role: string | undefined): GraphSession {
    if (role === undefined) return this.#main
    const graph = this.#graphs.get(role)
    if (graph !== undefined) return graph
    throw new MismatchError({
      where: `graph ${JSON.stringify(role)}`,
      what: 'the model has no such graph',
      expected: this.graphs.join(', '),
      hint: didYouMean(role, this.graphs),
    })
  }

  #add(adapters: readonly (readonly [string, RunAdapter])[]): Promise<void> {
    return this.#turns.take(async () => {
      this.checkOpen()
      const { onMissing, onWarning = console.warn } = this.extras
      const graphs = [...this.#graphs.values()]
      const spread: (readonly [string, readonly RunAdapter[]])[] = []
      for (const [name, adapter] of adapters) {
        checkArgument(name, NAME, 'name')
        if (this.#adapters.includes(name)) {
          throw new StateError({
            where: 'adapter',
            what: `the session has an adapter ${JSON.stringify(name)} already`,
            hint: 'Call remove first, or choose another name',
          })
        }
        const tell = (layers: readonly string[]) => onMissing?.(name, layers)
        const isAlone = graphs.length === 1 && !this.allowMissing && !adapter.names().some((part) => POOLER.test(part))
        const share = () => import('./adapters/other-parts.js').then(({ shareOver }) => shareOver)
        const shares = isAlone ? [adapter] : await (await share())(graphs, adapter, this.allowMissing, tell)
        spread.push([name, shares])
      }
      const parts = graphs.map((): NamedParts[] => [])
      // Adapters with other parts come last, because weights may be read for them.
      const isLate = ([, shares]: (typeof spread)[number]) => Number(!shares.every(isPlainShare))
      for (const [name, shares] of spread.toSorted((a, b) => isLate(a) - isLate(b))) {
        for (const [i, share] of shares.entries()) {
          parts[i].push({ name, ...(await readParts(graphs[i], share, shares.length > 1)) })
        }
      }
      for (const [i, graph] of graphs.entries()) await graph.requireInputs(parts[i])
      for (const [i, graph] of graphs.entries()) await graph.add(parts[i])
      this.#adapters = [...this.#adapters, ...adapters.map(([name]) => name)]
      for (const [name, { trainedOn }] of adapters) {
        if (trainedOn === undefined) continue
        const { otherWeights } = await import('../model/base-record.js')
        const warning = await otherWeights(trainedOn, this.model)
        if (warning !== undefined) onWarning(`${name}: ${warning}`)
      }
    })
  }
}

const isPlainShare = (adapter: RunAdapter) => adapter.isPlain ?? isPlain(adapter as LoraAdapter)

/** @param mayBeEmpty the adapter may have no part in this graph, because the model has other graphs */
async function readParts(session: GraphSession, adapter: RunAdapter, mayBeEmpty: boolean): Promise<AdapterParts> {
  if (!isPlainShare(adapter)) {
    const { readOtherParts } = await import('./adapters/other-parts.js')
    return readOtherParts(session, adapter as LoraAdapter)
  }
  if (adapter.size === 0 && !mayBeEmpty) throw new MismatchError({ where: 'adapter', what: 'it has no layers' })
  const { chatTemplate, prompts } = adapter
  const sites = plainSites(session.graph, session.linears, adapter.parts() as readonly LinearValues[])
  const mixable = mixableOf(sites.factors, false)
  return { ...sites, about: { head: undefined, chatTemplate, prompts, ...mixable } }
}

function headsFor(
  mixes: readonly Mix[],
  headOf: (name: string) => AdapterHead | undefined,
): (AdapterHead | undefined)[] {
  return mixes.map((mix) => {
    const heads = mix.flatMap(({ name }) => headOf(name) ?? [])
    if (heads.length === 0 || (mix.length === 1 && mix[0].weight === 1)) return heads[0]
    throw new UnsupportedError({
      where: 'adapter',
      what: 'an adapter that brings a head cannot be mixed with others, and must have weight 1',
      got: mix.map(({ name, weight }) => `${name}: ${weight}`).join(', '),
    })
  })
}
