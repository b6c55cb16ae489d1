// Spreads an adapter over the graphs of a model. Each layer needs a module in at least one graph.

import { MismatchError } from '../../core/base/errors.js'
import type { RunAdapter } from '../../lora/run-adapter.js'
import type { OnnxModel } from '../../onnx/format/model.js'
import type { GraphRole } from '../graph-file.js'
import { withPointwise } from '../match/forms/pointwise.js'
import { missingError, moduleFinder, POOLER } from '../match/match.js'
import { sideOf } from '../match/module-names.js'
import { linesOf, type ReadPart, readFacts } from './facts.js'
import { place } from './place.js'
import { type PartShape, type PlacedAdapter, type PlacedModel, placedAdapter } from './placement.js'

/** One of the graphs of a model. */
export interface ModelGraph extends PlacedModel {
  readonly role: GraphRole
  readonly name: string
  readonly onnx: OnnxModel
}

/**
 * Returns the names of the parts that each graph has, and of the parts that none has. Does not compare the shapes of
 * linear layers. `heads`: for each graph, the tensors of a head that is computed outside.
 */
export async function spreadAdapter(
  graphs: readonly ModelGraph[],
  adapter: PlacedAdapter,
  read: ReadPart,
  heads: readonly (ReadonlySet<string> | undefined)[],
) {
  const layers = adapter.parts.flatMap(({ name, kind }) => (kind === 'linear' ? name : []))
  const parts: ReadonlySet<string>[] = []
  for (const [i, model] of graphs.entries()) {
    const { graph, linears, role, onnx } = model
    const held = adapter.parts.filter(({ name }) => mayHold(role, name))
    const others = held.filter(({ name, kind }) => kind !== 'linear' && heads[i]?.has(name) !== true)
    const rest = { ...adapter, parts: others }
    const { problems } = place(model, rest, await readFacts(onnx, model, rest, read))
    const { find } = moduleFinder(withPointwise(graph, linears, layers))
    const isHere = ({ name, kind }: PartShape) =>
      kind === 'linear' ? find(name) !== undefined : problems.every(({ part }) => part !== name)
    parts.push(new Set(held.filter(isHere).map(({ name }) => name)))
  }
  const names = adapter.parts.map(({ name }) => name)
  return { parts, missing: names.filter((name) => !parts.some((here) => here.has(name))) }
}

/** Finds pooler layers without a module: transformers builds no pooler if the model's head does not read it. */
export function unusedPoolers(graphs: readonly Pick<ModelGraph, 'linears'>[], names: readonly string[]): string[] {
  const poolers = names.filter((name) => POOLER.test(name))
  if (poolers.length === 0 || graphs.length > 1 || !graphs[0].linears.some(({ isHead }) => isHead)) return []
  const { find } = moduleFinder(graphs[0].linears)
  return poolers.filter((name) => find(name.replace(/\.(weight|bias)$/, '')) === undefined)
}

/** Parts without a place stay with the first graph, whose placement then tells why. `onMissing` gets skipped layers. */
export async function shareAdapter(
  graphs: readonly ModelGraph[],
  whole: RunAdapter,
  allowsMissing: boolean,
  onMissing: (layers: readonly string[]) => void,
  heads: readonly (ReadonlySet<string> | undefined)[],
): Promise<RunAdapter[]> {
  const unused = unusedPoolers(graphs, whole.names())
  if (unused.length > 0) onMissing(unused)
  const adapter =
    unused.length === 0 ? whole : whole.only(new Set(whole.names().filter((name) => !unused.includes(name))))
  if (graphs.length === 1 && !allowsMissing) return [adapter]
  const { parts: found, missing: all } = await spreadAdapter(graphs, placedAdapter(adapter), linesOf(adapter), heads)
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
