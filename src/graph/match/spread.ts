// How an adapter spreads over the graphs of a model. Each layer needs a module in at least one of them.

import type { PartView } from '../../lora/part.js'
import type { GraphRole } from '../graph-file.js'
import type { Graph } from '../view/graph.js'
import { withPointwise } from './forms/pointwise.js'
import type { Linear } from './linears.js'
import { moduleFinder } from './match.js'
import { sideOf } from './module-names.js'

export interface ModelGraph {
  readonly role: GraphRole
  readonly name: string
  readonly graph: Graph
  readonly linears: readonly Linear[]
}

export interface Spread {
  /** Names of the parts in each graph, in the order of the graphs. */
  readonly parts: readonly ReadonlySet<string>[]
  readonly missing: readonly string[]
}

/** Shapes are not compared. */
export async function spreadAdapter(
  graphs: readonly ModelGraph[],
  adapter: readonly Pick<PartView, 'name' | 'kind'>[],
  hasPlace: (graph: number, part: string) => Promise<boolean>,
): Promise<Spread> {
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

/** transformers builds a model whose head reads something else without the pooler: nothing would read what it gives. */
export function unusedPoolers(graphs: readonly ModelGraph[], names: readonly string[]): string[] {
  const poolers = names.filter((name) => /(^|\.)pooler(\.|$)/.test(name))
  if (poolers.length === 0 || graphs.length > 1 || !graphs[0].linears.some(({ isHead }) => isHead)) return []
  const { find } = moduleFinder(graphs[0].linears)
  return poolers.filter((name) => find(name.replace(/\.(weight|bias)$/, '')) === undefined)
}

/** Encoders are exported without the module around them, so that decoder.block.0 would be found as their block.0. */
export function mayHold(role: GraphRole, name: string): boolean {
  const side = sideOf(name)
  if (side === 'language' && role === 'vision_encoder') return false
  if (side === 'vision' && (role === 'embed_tokens' || role.startsWith('decoder'))) return false
  const part = name.split('.').find((segment) => segment === 'encoder' || segment === 'decoder')
  if (part === undefined) return true
  return role === 'encoder' ? part === 'encoder' : !role.startsWith('decoder') || part === 'decoder'
}
