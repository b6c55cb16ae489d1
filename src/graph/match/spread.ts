// How an adapter spreads over the graphs of a model: encoder and decoder, or one alone. Each layer needs a module in at
// least one of them; what an export has dropped can be left out, and what nothing would read is.

import { MismatchError } from '../../base/errors.js'
import type { LoraAdapter } from '../../lora/adapter.js'
import type { GraphRole } from '../graph-file.js'
import type { Graph } from '../view/graph.js'
import { withPointwise } from './forms/pointwise.js'
import type { Linear } from './linears.js'
import { missingError, moduleFinder } from './match.js'
import { sideOf } from './module-names.js'

/** One of a model's graphs, and what it has to adapt. */
export interface ModelGraph {
  readonly role: GraphRole
  /** For messages. */
  readonly name: string
  readonly graph: Graph
  readonly linears: readonly Linear[]
}

/** An adapter over the graphs of a model. */
export interface Spread {
  /** The share of each graph. */
  readonly shares: readonly LoraAdapter[]
  /** Names of parts that are left out. */
  readonly left: readonly string[]
}

/**
 * Gives each graph the parts that it has a place for. Shapes are not compared.
 *
 * @param allowsMissing parts without a place are left out
 * @param hasPlace whether a graph has a place for a part that is no linear layer. What none has stays with the first
 *   one, which says why
 * @throws MismatchError naming the layers that are in no graph, unless they are to be left out, or all are
 */
export async function spreadAdapter(
  graphs: readonly ModelGraph[],
  adapter: LoraAdapter,
  allowsMissing: boolean,
  hasPlace: (graph: number, part: string) => Promise<boolean>,
): Promise<Spread> {
  const unused = graphs.length === 1 ? unusedPoolers(graphs[0].linears, adapter.names()) : []
  const all = adapter.parts().filter(({ name }) => !unused.includes(name))
  if (graphs.length === 1 && !allowsMissing) {
    return { shares: [unused.length === 0 ? adapter : adapter.only(namesOf(all))], left: unused }
  }
  const layers = adapter.parts('linear').map(({ name }) => name)
  const finders = graphs.map(({ graph, linears }) => moduleFinder(withPointwise(graph, linears, layers)))
  const found = graphs.map(() => new Set<string>())
  for (const { kind, name } of all) {
    for (const [i, { role }] of graphs.entries()) {
      if (!mayHold(role, name)) continue
      const isHere = kind === 'linear' ? finders[i].find(name) !== undefined : await hasPlace(i, name)
      if (isHere) found[i].add(name)
    }
  }
  const missing = all.filter(({ name }) => !found.some((names) => names.has(name)))
  if (allowsMissing) {
    if (missing.length === all.length && missing.length > 0) {
      throw new MismatchError({ where: 'adapter', what: 'the model has no module for any of its layers' })
    }
  } else {
    const modules = graphs.flatMap(({ linears }) => linears.map(({ name }) => name))
    const refused = missing.flatMap(({ kind, name }) => (kind === 'linear' ? [name] : []))
    const files = graphs.map(({ name }) => name)
    if (refused.length > 0) throw missingError(refused, modules, adapter.size, files)
    for (const { name } of missing) found[0].add(name)
  }
  const left = allowsMissing ? [...unused, ...namesOf(missing)] : unused
  return { shares: found.map((names) => adapter.only(names)), left }
}

function namesOf(parts: readonly { readonly name: string }[]): Set<string> {
  return new Set(parts.map(({ name }) => name))
}

/**
 * Layers and tensors of a pooler that the one graph of a model lacks, whose head reads something else: transformers
 * builds such a model without it, so that nothing would read what it gives.
 */
export function unusedPoolers(linears: readonly Linear[], names: readonly string[]): string[] {
  const poolers = names.filter((name) => /(^|\.)pooler(\.|$)/.test(name))
  if (poolers.length === 0 || !linears.some(({ isHead }) => isHead)) return []
  const { find } = moduleFinder(linears)
  return poolers.filter((name) => find(name.replace(/\.(weight|bias)$/, '')) === undefined)
}

/**
 * True if a layer of this name can be in a graph of this role. Encoders are exported without the module around them, so
 * that decoder.block.0 would be found as their block.0.
 */
export function mayHold(role: GraphRole, name: string): boolean {
  const side = sideOf(name)
  if (side === 'language' && role === 'vision_encoder') return false
  if (side === 'vision' && (role === 'embed_tokens' || role.startsWith('decoder'))) return false
  const part = name.split('.').find((segment) => segment === 'encoder' || segment === 'decoder')
  if (part === undefined) return true
  return role === 'encoder' ? part === 'encoder' : !role.startsWith('decoder') || part === 'decoder'
}
