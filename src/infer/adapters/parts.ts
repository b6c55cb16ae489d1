// All parts of an adapter in one graph of a session: its head, which is computed beside the graph, and what the graph takes.

import { LowrankError, MismatchError } from '../../base/errors.js'
import type { Linear } from '../../graph/match/linears.js'
import { findEmbeddings } from '../../graph/match/parameters.js'
import type { Graph } from '../../graph/view/graph.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import { GRAPH_PARTS, requireHandled } from '../../lora/requirements.js'
import type { SessionBase } from '../graphs.js'
import { type Mixable, mixableOf } from './choice.js'
import { type AdapterHead, readHead } from './heads.js'
import { type AdapterSites, adapterSites } from './site-factors.js'

/** What runs have to know of an adapter. */
export interface OpenAdapter extends Mixable {
  readonly head: AdapterHead | undefined
  /** The template of the chats that it was trained on. */
  readonly chatTemplate: string | undefined
}

/** A graph of a session. */
export interface SessionGraph {
  readonly model: SessionBase
  readonly graph: Graph
  readonly linears: readonly Linear[]
}

/**
 * What an adapter does in a graph.
 *
 * @param isShare it may do nothing there, because the model has other graphs
 * @throws UnsupportedError for parts that sessions do not have, MismatchError for an adapter that does not fit or is empty, and what
 *   {@link adapterSites} throws
 */
export async function readParts(
  { model, graph, linears }: SessionGraph,
  adapter: LoraAdapter,
  isShare: boolean,
): Promise<AdapterSites & { readonly about: OpenAdapter }> {
  const head = await headOf({ model, graph, linears }, adapter)
  const names = adapter.parts().flatMap(({ name }) => (head?.tensors.has(name) === true ? [] : [name]))
  const parts = adapter.only(new Set(names))
  requireHandled(parts, GRAPH_PARTS, 'adapters of sessions')
  if (adapter.size === 0 && !isShare) throw new MismatchError({ where: 'adapter', what: 'it has no layers' })
  const places = { model: model.onnx, graph, linears, embeddings: findEmbeddings(graph), config: model.config ?? {} }
  const sites = await adapterSites(places, parts)
  const scales = [...parts.parts('linear'), ...parts.parts('embedding')].some(
    ({ magnitude }) => magnitude !== undefined,
  )
  return { ...sites, about: { head, chatTemplate: adapter.chatTemplate, ...mixableOf(sites.factors, scales) } }
}

/** Whether a graph, or the head beside it, has a place for one part of an adapter. */
export async function hasPlace(base: SessionGraph, adapter: LoraAdapter, part: string): Promise<boolean> {
  try {
    const head = await headOf(base, adapter)
    if (head?.tensors.has(part) !== true) await readParts(base, adapter.only(new Set([part])), false)
    return true
  } catch (error) {
    if (error instanceof LowrankError) return false
    throw error
  }
}

async function headOf({ model, graph, linears }: SessionGraph, adapter: LoraAdapter): Promise<AdapterHead | undefined> {
  if (adapter.parts('replacement').length === 0) return undefined
  return readHead(model, graph, linears, adapter)
}
