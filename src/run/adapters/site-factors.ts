// The arrays that a session feeds for one adapter: the factors, scales and shifts of outputs, and values that replace
// the base's. graph/inject/sites.ts says which part becomes which input; other-parts.ts reads the rarer parts.

import { NumericError } from '../../core/base/errors.js'
import { isAllFinite } from '../../core/base/tensor.js'
import type { LinearValues } from '../../lora/run-adapter.js'
import type { VectorPlaces } from '../../model/inject/other-sites.js'
import type { Site, SiteNeeds, SiteRole } from '../../model/inject/sites.js'
import type { Linear } from '../../model/match/linears.js'
import { placeAdapter } from '../../model/place/linears.js'
import type { Graph } from '../../onnx/view/graph.js'

export interface SiteFactors {
  readonly kind: Site['kind']
  readonly rank: number
  /** A (r, k); for an embedding Aᵀ (V, r) */
  readonly weightA: Float32Array
  /** s·B (d, r), already multiplied by DoRA's scale; for an embedding s·Bᵀ (r, D) */
  readonly weightB: Float32Array
  /** Factors for the outputs (d). Undefined: 1. */
  readonly scale: Float32Array | undefined
  /** Values added to the outputs (d). Undefined: 0. */
  readonly shift: Float32Array | undefined
  readonly replaced: ReplacedValues | undefined
  /** The shift includes the difference between a replaced bias and the base's. */
  readonly replacesBias: boolean
}

export interface ReplacedValues {
  /**
   * A linear layer's weight (k, d), or (k, 1 + m) if m outputs are replaced; an embedding (1 + m, D) for m tokens; a
   * vector (d). Column 0 of (k, 1 + m) and row 0 of (1 + m, D) are zeros.
   */
  readonly data: Float32Array
  /** The outputs or tokens that are replaced. Undefined: all. */
  readonly lines: readonly number[] | undefined
}

/** Factors by module. Sites without an entry are computed as in the base. */
export type AdapterFactors = ReadonlyMap<string, SiteFactors>

export interface AdapterSites {
  readonly factors: AdapterFactors
  /** The vectors that the adapter replaces, and the nodes that read them. */
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

/** Returns the factors of an adapter that has only linear layers, without magnitudes and biases. */
export function plainSites(graph: Graph, linears: readonly Linear[], layers: readonly LinearValues[]): AdapterSites {
  const factors = new Map<string, SiteFactors>()
  for (const { name, layer, linear } of layers.length === 0 ? [] : placeAdapter(graph, linears, layers)) {
    if (factors.has(linear.name)) continue
    factors.set(linear.name, { ...NOTHING, ...layerFactors(name, layer), kind: 'linear' })
  }
  return { factors, vectors: [] }
}

/**
 * The largest value of A. Each row multiplies the columns of other rows' adapters by 0, and 0 times infinity is NaN.
 * Inputs whose magnitudes sum to less than 4e9 keep products with such values finite.
 */
const LARGEST_A = 2 ** 96

/** Returns A and s·B. If A holds larger values than LARGEST_A, a power of two moves from A to B. */
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
  return new Map(Array.from(factors, ([module, site]) => [module, rolesOf(site)]))
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
