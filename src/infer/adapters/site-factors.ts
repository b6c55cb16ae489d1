// The arrays that a session feeds for one adapter: factors as they are multiplied, scales and shifts of outputs, and
// values in the place of the base's. sites.ts of the graph says which part becomes which input. What most adapters do
// not have stands in other-parts.ts.

import { NumericError } from '../../base/errors.js'
import { isAllFinite } from '../../base/tensor.js'
import type { VectorPlaces } from '../../graph/inject/other-sites.js'
import type { Site, SiteNeeds, SiteRole } from '../../graph/inject/sites.js'
import type { Linear } from '../../graph/match/linears.js'
import { placeAdapter } from '../../graph/match/place-adapter.js'
import type { Graph } from '../../graph/view/graph.js'
import type { LinearValues } from '../../lora/run-adapter.js'

export interface SiteFactors {
  readonly kind: Site['kind']
  readonly rank: number
  /** A (r, k); of an embedding Aᵀ (V, r) */
  readonly weightA: Float32Array
  /** s·B (d, r), with DoRA's scale in it; of an embedding s·Bᵀ (r, D) */
  readonly weightB: Float32Array
  /** Factors of outputs (d); undefined: 1. */
  readonly scale: Float32Array | undefined
  /** Values added to outputs (d); undefined: 0. */
  readonly shift: Float32Array | undefined
  readonly replaced: ReplacedValues | undefined
  /** The shift is what a replaced bias differs by, or holds it. */
  readonly replacesBias: boolean
}

export interface ReplacedValues {
  /** (k, d), or (k, 1 + m) for m outputs; (1 + m, D) for m tokens: column or row 0 is zeros; (d) for a vector. */
  readonly data: Float32Array
  /** Which outputs or tokens; undefined: all. */
  readonly lines: readonly number[] | undefined
}

/** Factors by module. Sites without an entry stay as the base has them. */
export type AdapterFactors = ReadonlyMap<string, SiteFactors>

export interface AdapterSites {
  readonly factors: AdapterFactors
  /** The vectors that it replaces, and what reads them. */
  readonly vectors: readonly (VectorPlaces & { readonly base: Float32Array })[]
}

export const NOTHING = {
  rank: 0,
  weightA: new Float32Array(),
  weightB: new Float32Array(),
  scale: undefined,
  shift: undefined,
  replaced: undefined,
  replacesBias: false,
}

/** The factors of an adapter that has linear layers alone, without magnitudes and biases. */
export function plainSites(graph: Graph, linears: readonly Linear[], layers: readonly LinearValues[]): AdapterSites {
  const factors = new Map<string, SiteFactors>()
  for (const { name, layer, linear } of layers.length === 0 ? [] : placeAdapter(graph, linears, layers, true)) {
    if (factors.has(linear.name)) continue
    factors.set(linear.name, { ...NOTHING, ...layerFactors(name, layer), kind: 'linear' })
  }
  return { factors, vectors: [] }
}

/** Sums of 4e9 times as much are finite: rows multiply the columns of others' adapters by 0, and infinity gives NaN. */
const LARGEST_A = 2 ** 96

/** Sizes of A that no adapter should have go into B, as powers of two. */
export function layerFactors(
  name: string,
  { weightA, weightB, rank, scaling }: Pick<LinearValues, 'weightA' | 'weightB' | 'rank' | 'scaling'>,
  scale?: Float32Array,
): Pick<SiteFactors, 'rank' | 'weightA' | 'weightB'> {
  const a = checkFinite(name, new Float32Array(weightA.data))
  const largest = a.reduce((most, value) => Math.max(most, Math.abs(value)), 0)
  const size = 2 ** Math.ceil(Math.log2(Math.max(1, largest / LARGEST_A)))
  const b = new Float32Array(weightB.data.length)
  for (let i = 0; i < b.length; i++) b[i] = size * scaling * weightB.data[i] * (scale?.[Math.floor(i / rank)] ?? 1)
  return { rank, weightA: size === 1 ? a : a.map((value) => value / size), weightB: checkFinite(name, b) }
}

export function checkFinite(name: string, values: Float32Array): Float32Array {
  if (isAllFinite(values)) return values
  throw new NumericError({ where: name, what: 'the adapter holds values that are not finite' })
}

export function needsOf(factors: AdapterFactors): SiteNeeds {
  return new Map(Array.from(factors, ([module, own]) => [module, rolesOf(own)]))
}

function rolesOf({ kind, rank, scale, shift, replaced }: SiteFactors): Set<SiteRole> {
  if (kind === 'vector') return new Set(['values'])
  const roles: SiteRole[] = rank > 0 ? ['A', 'B'] : []
  if (scale !== undefined) roles.push('scale')
  if (shift !== undefined) roles.push('shift')
  if (replaced !== undefined) roles.push(...(kind === 'linear' ? (['weight'] as const) : (['rows', 'rowOf'] as const)))
  if (replaced?.lines !== undefined && kind === 'linear') roles.push('columns')
  return new Set(roles)
}

export function buffersOf(factors: AdapterFactors): ArrayBufferLike[] {
  const buffers = [...factors.values()].flatMap(({ weightA, weightB, scale, shift, replaced }) =>
    [weightA, weightB, scale, shift, replaced?.data].flatMap((values) => values?.buffer ?? []),
  )
  return [...new Set(buffers)].filter((buffer) => buffer.byteLength > 0)
}
