// The session that a transformers.js model runs instead of its own: lowrank's session with the adapter of a call. It
// hides the inputs for adapters, and returns ONNX Runtime's tensors as they are, so a cache on the GPU is not copied.

import { cacheEntry, isCacheInput } from '../../model/inputs/cache.js'
import type { Feeds, RuntimeTensor } from '../../onnx/runtime/runtime.js'
import type { Graph } from '../../onnx/view/graph.js'
import { typeOf } from '../../onnx/view/value-info.js'
import { type AdapterChoice, type Mix, mixesOf } from '../../run/adapters/choice.js'
import { headLogits } from '../../run/adapters/heads.js'
import { batchOf, checkRanks } from '../../run/feeds.js'
import type { ModelSession } from '../../run/model-session.js'
import type { InputMetadata, PipelineSession } from './module.js'
import type { PipelineCache } from './pipeline-cache.js'

export type CallChoice = AdapterChoice | readonly AdapterChoice[] | undefined

export interface SharedSession {
  readonly session: ModelSession
  /** The only graph, or those of an encoder and its decoder. */
  readonly graphs: readonly NamedGraph[]
  readonly graph: Graph
  readonly config: { readonly dtype: string; readonly device: string }
  readonly cache: PipelineCache
  /** Throws if padded rows would be computed wrongly. */
  checkPadding(feeds: Feeds): void
}

/** A graph with the name that transformers.js has for it. */
export interface NamedGraph {
  /** Its role in a model of several graphs. */
  readonly role?: string | undefined
  readonly name: string
  readonly inputMetadata: readonly InputMetadata[]
  readonly outputNames: readonly string[]
}

/** Makes the sessions of a call. Releasing one disposes the session that all calls share. */
export function sessionsFor(shared: SharedSession, choice: CallChoice): Record<string, PipelineSession> {
  const { session, config } = shared
  const sessions = shared.graphs.map(({ role, name, inputMetadata, outputNames }): [string, PipelineSession] => {
    const inputNames = inputMetadata.map((input) => input.name)
    const run = async (feeds: Feeds) => {
      const mixes = mixesOf(choice, batchOf(feeds))
      return role === undefined ? runAlone(shared, feeds, mixes) : session.runGraph(role, feeds, mixes)
    }
    return [name, { config, inputMetadata, inputNames, outputNames, run, release: () => session.dispose() }]
  })
  return Object.fromEntries(sessions)
}

/** Runs the only graph of a model. The logits of an adapter's head replace the graph's logits. */
async function runAlone(shared: SharedSession, feeds: Feeds, mixes: readonly Mix[]): Promise<Record<string, unknown>> {
  const { session, graph, checkPadding } = shared
  checkPadding(feeds)
  session.checkMixes(mixes)
  const head = session.headFor(mixes)
  const kept = session.outputNames.filter((name) => name !== head?.output)
  const asked = new Set([...kept, ...(head === undefined ? [] : [head.input.value])])
  const given = await runInPlace(shared, feeds, mixes, [...asked])
  if (mixes.length > 1) checkRanks(graph, given)
  const outputs = Object.fromEntries(kept.map((name): [string, unknown] => [name, given[name]]))
  if (head === undefined) return outputs
  // A pipeline recognizes tensors by their class.
  const input = given[head.input.value]
  return { ...outputs, [head.output]: like(input, headLogits(head, input, feeds)) }
}

/** Runs the graph. If it returns only the new rows of the cache, they are added to the cache in place. */
async function runInPlace(
  { session, cache }: SharedSession,
  feeds: Feeds,
  mixes: readonly Mix[],
  asked: readonly string[],
): Promise<Record<string, RuntimeTensor>> {
  const main = session.graphNamed(undefined)
  const { newRows } = session
  const growing = newRows && cache.begin(feeds, newRows)
  if (newRows === undefined || growing === undefined) return main.run(feeds, mixes, asked)
  try {
    const presents = newRows.parts.map(({ present }) => present)
    const others = asked.filter((name) => !presents.includes(name))
    const given = await main.run({ ...feeds, ...growing.feeds }, mixes, [...others, newRows.output])
    growing.take(given[newRows.output], given)
    return given
  } finally {
    growing.end()
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
