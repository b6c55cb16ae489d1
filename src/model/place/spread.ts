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

/** The names of the tensors of a head that is computed outside of a graph. `names`: the parts that may be used. */
type HeadOf = (model: ModelGraph, names: ReadonlySet<string>) => ReadonlySet<string> | undefined

/**
 * Returns the names of the parts that each graph has (`parts`), of the parts that none has (`missing`), and of pooler
 * layers that nothing would read (`unused`). Does not compare the shapes of linear layers. A single graph has all parts
 * unless some may be missing: its placement tells what does not fit.
 */
export async function spreadAdapter(
  graphs: readonly ModelGraph[],
  adapter: PlacedAdapter,
  read: ReadPart,
  allowsMissing: boolean,
  headOf: HeadOf,
) {
  const unused = unusedPoolers(graphs, adapter)
  const used = adapter.parts.filter(({ name }) => !unused.includes(name))
  const names = new Set(used.map(({ name }) => name))
  if (graphs.length === 1 && !allowsMissing) return { unused, parts: [names], missing: [] }
  const layers = used.flatMap(({ name, kind }) => (kind === 'linear' ? name : []))
  const parts: ReadonlySet<string>[] = []
  for (const model of graphs) {
    const { graph, linears, role, onnx } = model
    const head = headOf(model, names)
    const held = used.filter(({ name }) => mayHold(role, name))
    const others = held.filter(({ name, kind }) => kind !== 'linear' && head?.has(name) !== true)
    const rest = { ...adapter, parts: others }
    const { problems } = place(model, rest, await readFacts(onnx, model, rest, read))
    const { find } = moduleFinder(withPointwise(graph, linears, layers))
    const isHere = ({ name, kind }: PartShape) =>
      kind === 'linear' ? find(name) !== undefined : problems.every(({ part }) => part !== name)
    parts.push(new Set(held.filter(isHere).map(({ name }) => name)))
  }
  return { unused, parts, missing: [...names].filter((name) => !parts.some((here) => here.has(name))) }
}

/** Finds pooler layers without a module: transformers builds no pooler if the model's head does not read it. */
function unusedPoolers(graphs: readonly ModelGraph[], { parts }: PlacedAdapter): string[] {
  const poolers = parts.flatMap(({ name }) => (POOLER.test(name) ? name : []))
  if (poolers.length === 0 || graphs.length > 1 || !graphs[0].linears.some(({ isHead }) => isHead)) return []
  const { find } = moduleFinder(graphs[0].linears)
  return poolers.filter((name) => find(name.replace(/\.(weight|bias)$/, '')) === undefined)
}

/** The error for parts that no graph has. `names`: all parts. */
export function missingFrom(
  graphs: readonly ModelGraph[],
  names: readonly string[],
  missing: readonly string[],
): MismatchError {
  const modules = graphs.flatMap(({ linears }) => linears.map(({ name }) => name))
  const paths = graphs.map(({ name }) => name)
  return missingError(missing, modules, names, paths)
}

export function nothingFits(): MismatchError {
  return new MismatchError({ where: 'adapter', what: 'the model has no module for any of its layers' })
}

/** Parts without a place stay with the first graph, whose placement then tells why. `onMissing` gets skipped layers. */
export async function shareAdapter(
  graphs: readonly ModelGraph[],
  adapter: RunAdapter,
  allowsMissing: boolean,
  onMissing: (layers: readonly string[]) => void,
  headOf: HeadOf,
): Promise<RunAdapter[]> {
  const spread = await spreadAdapter(graphs, placedAdapter(adapter), linesOf(adapter), allowsMissing, headOf)
  const { unused, parts } = spread
  if (unused.length > 0) onMissing(unused)
  const isRefused = (name: string) => !allowsMissing && adapter.get(name)?.kind !== 'linear'
  const missing = spread.missing.filter((name) => !isRefused(name))
  const names = adapter.names().filter((name) => !unused.includes(name))
  if (missing.length > 0 && !allowsMissing) throw missingFrom(graphs, names, missing)
  if (missing.length > 0 && missing.length === names.length) throw nothingFits()
  if (missing.length > 0) onMissing(missing)
  const first = new Set([...parts[0], ...spread.missing.filter(isRefused)])
  const isWhole = first.size === adapter.size && graphs.length === 1
  return isWhole ? [adapter] : [first, ...parts.slice(1)].map((own) => adapter.only(own))
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
