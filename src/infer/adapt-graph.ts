// The graph of a session: the model's, with inputs for all that its adapters do.

import { injectEmbeddings } from '../graph/inject/embeddings.js'
import { injectLora } from '../graph/inject/inject.js'
import type { Site, SiteNeeds } from '../graph/inject/sites.js'
import { injectVectors, type VectorPlaces } from '../graph/inject/vectors.js'
import { findPointwise } from '../graph/match/forms/pointwise.js'
import { exposeProducts, findLinears, type ModuleMap } from '../graph/match/linears.js'
import { findEmbeddings, placesOf } from '../graph/match/parameters.js'
import type { Graph } from '../graph/view/graph.js'

/** A tensor that becomes an input as a whole. */
export type Vector = Pick<VectorPlaces, 'name'> & { readonly base: Float32Array }

/** What adapters need of a graph. */
export interface GraphNeeds {
  readonly modules: SiteNeeds
  /** By name. */
  readonly vectors: ReadonlyMap<string, Vector>
}

/**
 * Adds the inputs to a fresh view of the model.
 *
 * @param names module names that the graph's own names do not tell
 * @returns where adapters enter it, and whether it has to be told how many rows have factors of their own
 */
export function adaptGraph(graph: Graph, names: ModuleMap, needs: GraphNeeds): { sites: Site[]; takesRows: boolean } {
  const { modules } = needs
  const found = [...findLinears(graph, names), ...findPointwise(graph)]
  const own = found.filter(({ name }) => modules.has(name))
  const linears = exposeProducts(graph, own)
  const embeddings = findEmbeddings(graph).filter(({ name }) => modules.has(name))
  const vectors = [...needs.vectors.values()].map(({ name, base }) => {
    return { name, base, places: placesOf(graph, name, [base.length]) }
  })
  const { takesRows } = injectLora(graph, linears, modules)
  injectEmbeddings(graph, embeddings, modules)
  injectVectors(graph, vectors)
  const sites = new Map<string, Site>()
  const add = (site: Omit<Site, 'roles'>) => void sites.set(site.module, { ...site, roles: modules.get(site.module)! })
  for (const { name, k, d } of linears) add({ kind: 'linear', module: name, k, d })
  for (const { name, vocabulary, features } of embeddings) {
    add({ kind: 'lookup', module: name, k: vocabulary, d: features })
  }
  for (const { name, base } of vectors) add({ kind: 'vector', module: name, k: 1, d: base.length, base })
  return { sites: [...sites.values()], takesRows }
}
