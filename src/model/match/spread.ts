// Spreads an adapter over the graphs of a model. Each layer needs a module in at least one graph.

import { MismatchError } from '../../core/base/errors.js'
import type { PartView } from '../../lora/part.js'
import type { RunAdapter } from '../../lora/run-adapter.js'
import type { Graph } from '../../onnx/view/graph.js'
import type { GraphRole } from '../graph-file.js'
import { withPointwise } from './forms/pointwise.js'
import type { Linear } from './linears.js'
import { missingError, moduleFinder, POOLER } from './match.js'
import { sideOf } from './module-names.js'

export interface ModelGraph {
  readonly role: GraphRole
  readonly name: string
  readonly graph: Graph
  readonly linears: readonly Linear[]
}

/** Returns the names of the parts that each graph has, and of the parts that none has. Does not compare shapes. */
export async function spreadAdapter(
  graphs: readonly ModelGraph[],
  adapter: readonly Pick<PartView, 'name' | 'kind'>[],
  hasPlace: (graph: number, part: string) => Promise<boolean>,
) {
  const layers = adapter.filter(({ kind }) => kind === 'linear').map(({ name }) => name)
  const finders = graphs.map(({ graph, linears }) => moduleFinder(withPointwise(graph, linears, layers)))
  const parts = graphs.map(() => new Set<string>())
  const missing: string[] = []
  for (const part of adapter) {
    let isPlaced = false
    for (const [i, { role }] of graphs.entries()) {
      if (!mayHold(role, part.name)) continue
      const isHere = part.kind === 'linear' ? finders[i].find(part.name) !== undefined : await hasPlace(i, part.name)
      if (isHere) parts[i].add(part.name)
      isPlaced ||= isHere
    }
    if (!isPlaced) missing.push(part.name)
  }
  return { parts, missing }
}

/** Finds pooler layers without a module: transformers builds no pooler if the model's head does not read it. */
export function unusedPoolers(graphs: readonly ModelGraph[], names: readonly string[]): string[] {
  const poolers = names.filter((name) => POOLER.test(name))
  if (poolers.length === 0 || graphs.length > 1 || !graphs[0].linears.some(({ isHead }) => isHead)) return []
  const { find } = moduleFinder(graphs[0].linears)
  return poolers.filter((name) => find(name.replace(/\.(weight|bias)$/, '')) === undefined)
}

/** Parts without a place stay with the first graph, whose placement then tells why. `onMissing` gets skipped layers. */
export async function shareAdapter(
  graphs: readonly ModelGraph[],
  adapter: RunAdapter,
  allowsMissing: boolean,
  onMissing: (layers: readonly string[]) => void,
  hasPlace: (graph: number, part: string) => Promise<boolean>,
): Promise<RunAdapter[]> {
  const unused = unusedPoolers(graphs, adapter.names())
  if (unused.length > 0) {
    onMissing(unused)
    const others = adapter.only(new Set(adapter.names().filter((name) => !unused.includes(name))))
    return shareAdapter(graphs, others, allowsMissing, onMissing, hasPlace)
  }
  if (graphs.length === 1 && !allowsMissing) return [adapter]
  const { parts: found, missing: all } = await spreadAdapter(graphs, adapter.parts(), hasPlace)
  const isRefused = (name: string) => !allowsMissing && adapter.get(name)?.kind !== 'linear'
  const missing = all.filter((name) => !isRefused(name))
  const parts = [new Set([...found[0], ...all.filter(isRefused)]), ...found.slice(1)]
  if (missing.length === adapter.size && missing.length > 0 && allowsMissing) {
    throw new MismatchError({ where: 'adapter', what: 'the model has no module for any of its layers' })
  }
  if (missing.length > 0 && !allowsMissing) {
    const modules = graphs.flatMap(({ linears }) => linears.map(({ name }) => name))
    const names = graphs.map(({ name }) => name)
    throw missingError(missing, modules, adapter.names(), names)
  }
  if (missing.length > 0) onMissing(missing)
  return parts.map((names) => adapter.only(names))
}

/** True if a graph may hold a part. Names do not suffice: an encoder's block.0 would also match decoder.block.0. */
export function mayHold(role: GraphRole, name: string): boolean {
  const side = sideOf(name)
  if (side === 'language' && role === 'vision_encoder') return false
  if (side === 'vision' && (role === 'embed_tokens' || role.startsWith('decoder'))) return false
  const part = name.split('.').find((segment) => segment === 'encoder' || segment === 'decoder')
  if (part === undefined) return true
  return role === 'encoder' ? part === 'encoder' : !role.startsWith('decoder') || part === 'decoder'
}
