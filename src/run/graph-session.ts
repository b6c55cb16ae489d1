// One graph of a session. The factors of adapters are inputs of the graph, so choosing an adapter means feeding other
// arrays, and the base's weights are in memory only once.

import { type LowrankError, RuntimeError, UnsupportedError } from '../core/base/errors.js'
import { Turns } from '../core/base/turns.js'
import type { NewRows } from '../model/fuse/new-rows.js'
import type { Vector } from '../model/inject/other-sites.js'
import { joinNeeds, type SiteNeeds } from '../model/inject/sites.js'
import { findLinears, type Linear, type ModuleMap } from '../model/match/linears.js'
import { atNode, sessionModel, withoutWeights } from '../model/session-model.js'
import type { Engine } from '../onnx/runtime/host.js'
import { transfer } from '../onnx/runtime/rpc.js'
import {
  type Feeds,
  keepsOnGpu,
  type OutputOptions,
  type RuntimeTensor,
  type SessionOptions,
} from '../onnx/runtime/runtime.js'
import { type Graph, readGraph } from '../onnx/view/graph.js'
import type { AllowedKind } from './adapters/allowed.js'
import { type Mix, refuseAdapter } from './adapters/choice.js'
import type { NamedParts, SessionAdapter } from './adapters/parts.js'
import { buffersOf, needsOf } from './adapters/site-factors.js'
import type { InferEngine } from './engine.js'
import type { SessionBase } from './graphs.js'
import { areOnProcessor, type GraphNeeds, type SessionEdit, sessionGraph } from './session-graph.js'

export interface GraphOptions {
  readonly runtime: SessionOptions & OutputOptions
  readonly modules: ModuleMap
  readonly edit?: ((graph: Graph) => void) | undefined
  readonly onWarning: (message: string) => void
  readonly allow: readonly AllowedKind[] | undefined
}

export class GraphSession {
  readonly graph: Graph
  readonly linears: readonly Linear[]
  readonly #adapters = new Map<string, SessionAdapter>()
  #needs: GraphNeeds | undefined
  #given: ReadonlySet<string> = new Set()
  newRows: NewRows | undefined
  /** True if the graph runs as the file has it, and not in the faster form that lowrank makes of it. */
  #isPlain = false
  /** True if the open graph runs in the faster form that lowrank made of it. */
  #isFused = false
  #retreat: Promise<void> | undefined
  #hasWarned = false
  readonly #turns = new Turns()

  /** @param role the name of this graph in the engine, which holds all graphs of a session */
  constructor(
    readonly role: string,
    readonly base: SessionBase,
    private readonly engine: Engine<InferEngine>,
    private readonly options: GraphOptions,
  ) {
    this.graph = readGraph(base.onnx)
    this.linears = findLinears(this.graph, options.modules)
  }

  get inputNames(): readonly string[] {
    return this.graph.inputs.map(({ name }) => name)
  }

  get outputNames(): readonly string[] {
    return this.graph.outputs.map(({ name }) => name)
  }

  adapter(name: string): SessionAdapter {
    return this.#adapters.get(name) ?? refuseAdapter(name, [...this.#adapters.keys()])
  }

  async requireInputs(adapters: readonly NamedParts[]): Promise<void> {
    if (this.#needs === undefined || this.options.allow === undefined) return
    const { requireAllowed } = await import('./adapters/allowed.js')
    const has = { modules: this.#needs.modules, given: new Set([...this.#given, ...this.outputNames]) }
    for (const adapter of adapters) requireAllowed(adapter, needsOf(adapter.factors), has)
  }

  async add(adapters: readonly NamedParts[]): Promise<void> {
    const { base, graph, linears } = this
    const { allow = [] } = this.options
    const isFirst = this.#needs === undefined && allow.length > 0
    const first = isFirst
      ? await (await import('./adapters/allowed.js')).allowedInputs(allow, {
          config: base.config ?? {},
          graph,
          linears,
        })
      : undefined
    const before = this.#needs ?? { modules: first?.modules ?? new Map(), vectors: new Map<string, Vector>() }
    const modules = joinNeeds([before.modules, ...adapters.map(({ factors }) => needsOf(factors))])
    const newVectors = adapters.flatMap(({ vectors }) => vectors.map((vector) => [vector.name, vector] as const))
    const vectors = new Map<string, Vector>([...before.vectors, ...newVectors])
    const inputs = adapters.flatMap(({ about: { head } }) => head?.input.value ?? [])
    const isNew = (value: string) => !this.outputNames.includes(value)
    const given = new Set([...this.#given, ...(first?.given ?? []), ...inputs.filter(isNew)])
    const isSame = sizeOf(modules) === sizeOf(before.modules) && given.size === this.#given.size
    if (this.#needs === undefined || !isSame) await this.#turns.take(() => this.#open({ modules, vectors }, given))
    for (const { name, about, factors } of adapters) {
      await this.engine.remote.addAdapter(this.role, name, transfer(factors, buffersOf(factors)))
      this.#adapters.set(name, about)
    }
  }

  remove(name: string): void {
    this.#adapters.delete(name)
  }

  /** Runs the graph without the heads of adapters. */
  run(
    feeds: Feeds,
    mixes: readonly Mix[],
    outputNames: readonly string[] = this.outputNames,
  ): Promise<Record<string, RuntimeTensor>> {
    return this.engine.remote.run(this.role, feeds, mixes, outputNames)
  }

  get isPlain(): boolean {
    return this.#isPlain
  }

  /** Opens the graph as the file has it, if the faster form is open. If several runs fail, all wait for one opening. */
  async retreat(): Promise<void> {
    if (this.#isFused) this.#retreat ??= this.#setPlain(true)
    await this.#retreat
  }

  /** Opens the faster form again, for good. */
  async advance(): Promise<void> {
    if (this.#isPlain && this.#retreat !== undefined) await this.#setPlain(false)
  }

  warn({ message }: LowrankError): void {
    if (this.#hasWarned || !this.#isPlain) return
    this.#hasWarned = true
    this.options.onWarning(
      `${this.base.onnx.fileName} runs as it is, and slower: ONNX Runtime refused its faster form (${message})`,
    )
  }

  async #open(needs: GraphNeeds, given: ReadonlySet<string>): Promise<void> {
    const { runtime, modules, edit } = this.options
    const { onnx } = this.base
    const linear = new Set(this.linears.map(({ name }) => name))
    const hasOthers = [...needs.modules.keys()].some((name) => !linear.has(name))
    const others = hasOthers ? await import('../model/inject/other-sites.js') : undefined
    const lower = await loweringFor(this.graph, runtime)
    const changes = { before: edit, lower, names: modules, needs, others, given, isPlain: this.#isPlain }
    const { graph, isFused, ...request } = sessionGraph(onnx, changes, runtime.executionProviders)
    try {
      const gpuOutputs = this.outputNames.filter((name) => name.startsWith('present'))
      if (onnx.isAway) await this.engine.remote.check(withoutWeights(graph), runtime)
      await this.engine.remote.open(this.role, {
        ...request,
        model: await sessionModel(onnx, graph),
        options: { ...runtime, gpuOutputs },
      })
    } catch (error) {
      if (!isFused || !(error instanceof RuntimeError || error instanceof UnsupportedError))
        throw atNode(error, this.graph)
      this.#isPlain = true
      await this.#open(needs, given)
      this.warn(error)
      return
    }
    this.#needs = needs
    this.#given = given
    this.newRows = request.newRows
    this.#isFused = isFused
  }

  async #setPlain(isPlain: boolean): Promise<void> {
    await this.#turns.take(async () => {
      this.#isPlain = isPlain
      if (this.#needs !== undefined) await this.#open(this.#needs, this.#given)
    })
  }
}

/** Loads code only for graphs and runtimes that need it. */
async function loweringFor({ nodes }: Graph, runtime: SessionOptions): Promise<SessionEdit['lower']> {
  if (keepsOnGpu(runtime)) return (await import('../onnx/lower/webgpu.js')).suitWebgpu
  if (!areOnProcessor(runtime.executionProviders) || nodes.every(({ opType }) => opType !== 'GatedDeltaNet')) return
  return (await import('../onnx/lower/gated-delta-net.js')).toLinearAttention
}

function sizeOf(needs: SiteNeeds): number {
  return [...needs.values()].reduce((sum, roles) => sum + roles.size, 0)
}
