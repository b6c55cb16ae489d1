// All parts of an adapter in one graph: its head, which is computed beside the graph, and what the graph takes.

import { LowrankError, MismatchError } from '../../base/errors.js'
import { findEmbeddings } from '../../graph/match/forms/lookup.js'
import type { Linear } from '../../graph/match/linears.js'
import type { Graph } from '../../graph/view/graph.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import { ACTIVATED_PARTS, GRAPH_PARTS, requireHandled } from '../../lora/requirements.js'
import type { SessionBase } from '../graphs.js'
import { type Mixable, mixableOf } from './choice.js'
import { type AdapterHead, readHead } from './heads.js'
import { type AdapterSites, adapterSites } from './site-factors.js'

export interface OpenAdapter extends Mixable {
  readonly head: AdapterHead | undefined
  readonly chatTemplate: string | undefined
}

export type AdapterParts = AdapterSites & { readonly about: OpenAdapter }

export type NamedParts = AdapterParts & { readonly name: string }

interface SessionGraph {
  readonly base: SessionBase
  readonly graph: Graph
  readonly linears: readonly Linear[]
}

/** `mayBeEmpty`: it may have no part there, because the model has other graphs. */
export async function readParts(
  { base: { onnx, config = {} }, graph, linears }: SessionGraph,
  adapter: LoraAdapter,
  mayBeEmpty: boolean,
): Promise<AdapterParts> {
  const invocation = adapter.config.aloraInvocationTokens
  if (invocation !== undefined) requireHandled(adapter, ACTIVATED_PARTS, 'activated LoRA')
  const hasHead = adapter.parts('replacement').length > 0
  const head = hasHead ? await readHead({ config, graph, linears }, adapter) : undefined
  const names = adapter.parts().flatMap(({ name }) => (head?.tensors.has(name) === true ? [] : [name]))
  const parts = adapter.only(new Set(names))
  requireHandled(parts, [...GRAPH_PARTS, 'invocation'], 'adapters of sessions')
  if (adapter.size === 0 && !mayBeEmpty) throw new MismatchError({ where: 'adapter', what: 'it has no layers' })
  const places = { model: onnx, graph, linears, embeddings: findEmbeddings(graph), config }
  const sites = await adapterSites(places, parts)
  const scaled = [...parts.parts('linear'), ...parts.parts('embedding')]
  const scales = scaled.some(({ magnitude }) => magnitude !== undefined)
  const mixable = mixableOf(sites.factors, scales, invocation)
  return { ...sites, about: { head, chatTemplate: adapter.chatTemplate, ...mixable } }
}

export async function hasPlace(session: SessionGraph, adapter: LoraAdapter, part: string): Promise<boolean> {
  try {
    const head = await readHead({ ...session, config: session.base.config ?? {} }, adapter)
    if (head?.tensors.has(part) !== true) await readParts(session, adapter.only(new Set([part])), false)
    return true
  } catch (error) {
    if (error instanceof LowrankError) return false
    throw error
  }
}
