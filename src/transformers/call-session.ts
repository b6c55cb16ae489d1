// The session that a transformers.js model runs instead of its own: lowrank's session with the adapter of a call. It
// hides the inputs for adapters, and returns ONNX Runtime's tensors as they are, so a cache on the GPU is not copied.

import { cacheEntry, isCacheInput } from '../graph/inputs/cache.js'
import { typeOf } from '../graph/inputs/roles.js'
import type { Graph } from '../graph/view/graph.js'
import { type AdapterChoice, type Mix, mixesOf } from '../infer/adapters/choice.js'
import { type AdapterHead, headLogits } from '../infer/adapters/heads.js'
import { batchOf, checkRanks } from '../infer/feeds.js'
import type { ModelSession } from '../infer/model-session.js'
import type { Feeds, RuntimeTensor } from '../runtime/runtime.js'
import type { InputMetadata, PipelineSession } from './module.js'
import type { PipelineCache } from './pipeline-cache.js'

export type CallChoice = AdapterChoice | readonly AdapterChoice[] | undefined

export interface SharedSession {
  readonly session: ModelSession
  /** The graphs of an encoder and its decoder; empty if the model has a single graph. */
  readonly pair: readonly RoleGraph[]
  readonly graph: Graph
  readonly inputMetadata: readonly InputMetadata[]
  readonly config: { readonly dtype: string; readonly device: string }
  readonly cache: PipelineCache
  /** Throws if padded rows would be computed wrongly. */
  checkPadding(feeds: Feeds): void
}

/** A graph for which transformers.js has another name. */
export interface RoleGraph {
  readonly role: string
  readonly name: string
  readonly inputMetadata: readonly InputMetadata[]
  readonly outputNames: readonly string[]
}

interface Plan {
  readonly rows: number | undefined
  /** How often the session's adapters had changed when the plan was made. */
  readonly changes: number
  readonly mixes: readonly Mix[]
  readonly head: AdapterHead | undefined
  readonly kept: readonly string[]
  readonly asked: readonly string[] | undefined
}

/** Makes the sessions of a call, by the names that transformers.js has for them. */
export function sessionsFor(shared: SharedSession, choice: CallChoice): Record<string, PipelineSession> {
  if (shared.pair.length === 0) return { model: new CallSession(shared, choice) }
  return Object.fromEntries(shared.pair.map((graph) => [graph.name, roleSession(shared, graph, choice)]))
}

function roleSession(
  { session, config }: SharedSession,
  { role, inputMetadata, outputNames }: RoleGraph,
  choice: CallChoice,
): PipelineSession {
  return {
    config,
    inputMetadata,
    inputNames: inputMetadata.map(({ name }) => name),
    outputNames,
    run: async (feeds) => session.runGraph(role, feeds, mixesOf(choice, batchOf(feeds))),
    release: () => session.dispose(),
  }
}

/** The session of a call. Releasing it disposes the session that all calls share. */
export class CallSession implements PipelineSession {
  readonly inputMetadata: readonly InputMetadata[]
  readonly inputNames: readonly string[]
  readonly outputNames: readonly string[]
  readonly config: SharedSession['config']
  #plan: Plan | undefined

  constructor(
    private readonly shared: SharedSession,
    private readonly choice: CallChoice,
  ) {
    this.config = shared.config
    this.inputMetadata = shared.inputMetadata
    this.inputNames = shared.session.inputNames
    this.outputNames = shared.session.outputNames
  }

  async run(feeds: Feeds): Promise<Record<string, unknown>> {
    const { graph, checkPadding } = this.shared
    checkPadding(feeds)
    const { mixes, head, kept, asked } = this.#planFor(batchOf(feeds))
    const given = await this.#run(feeds, mixes, asked)
    const outputs = Object.fromEntries(kept.map((name): [string, unknown] => [name, given[name]]))
    if (head !== undefined) {
      // A pipeline recognizes tensors by their class.
      const input = given[head.input.value]
      outputs[head.output] = like(input, headLogits(head, input, feeds))
    }
    if (mixes.length > 1) checkRanks(graph, given)
    return outputs
  }

  /** Runs the graph. If it returns only the new rows of the cache, they are added to the cache in place. */
  async #run(feeds: Feeds, mixes: readonly Mix[], asked: readonly string[] | undefined) {
    const { session, cache } = this.shared
    const { newRows } = session
    const growing = newRows && cache.begin(feeds, newRows)
    if (newRows === undefined || growing === undefined)
      return session.graphNamed(undefined).runPlainly(feeds, mixes, asked)
    try {
      const presents = newRows.parts.map(({ present }) => present)
      const others = (asked ?? this.outputNames).filter((name) => !presents.includes(name))
      const main = session.graphNamed(undefined)
      const given = await main.runPlainly({ ...feeds, ...growing.feeds }, mixes, [...others, newRows.output])
      growing.take(given[newRows.output], given)
      return given
    } finally {
      growing.end()
    }
  }

  /** Returns the plan of a run. It is kept until adapters are added or removed. */
  #planFor(rows: number | undefined): Plan {
    const { session } = this.shared
    const { changes } = session
    const known = this.#plan
    if (known !== undefined && known.rows === rows && known.changes === changes) return known
    const mixes = mixesOf(this.choice, rows)
    session.checkMixes(mixes)
    const head = session.headFor(mixes)
    const kept = this.outputNames.filter((name) => name !== head?.output)
    const isWhole = session.adapters.every((name) => session.headOf(name) === undefined)
    const asked = isWhole ? undefined : [...new Set([...kept, ...(head === undefined ? [] : [head.input.value])])]
    this.#plan = { rows, changes, mixes, head, kept, asked }
    return this.#plan
  }

  async release(): Promise<void> {
    await this.shared.session.dispose()
  }
}

export function metadataOf(graph: Graph): InputMetadata[] {
  return graph.inputs.flatMap((input) => {
    const type = typeOf(input)
    const value = input.type?.value
    if (type === undefined || value?.case !== 'tensorType') return []
    const declared = (value.value.shape?.dim ?? []).map(({ value: dim }) => {
      return dim.case === 'dimValue' ? Number(dim.value) : (dim.value ?? '')
    })
    const shape = isCacheInput(input) && declared.length === 4 ? cacheShape(graph, input) : declared
    return [{ name: input.name, isTensor: true as const, type, shape }]
  })
}

/** Returns the shape of a cache input with numbers if they are known: transformers.js takes unknown sizes as 0. */
function cacheShape(graph: Graph, input: Graph['inputs'][number]): (number | string)[] {
  const { dims, axis } = cacheEntry(graph, input)
  return dims.map((dim, i) => dim ?? (i === axis ? 'past_sequence_length' : 'batch_size'))
}

/** Makes `made` a tensor of the same class as `tensor`: ONNX Runtime's class if tensors stay in its memory. */
function like(tensor: RuntimeTensor, made: RuntimeTensor): RuntimeTensor {
  if (tensor.constructor === Object) return made
  const Tensor = tensor.constructor as new (type: string, data: unknown, dims: readonly number[]) => RuntimeTensor
  return new Tensor(made.type, made.data, made.dims)
}
