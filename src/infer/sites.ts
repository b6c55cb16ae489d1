// Where adapters enter a graph, and the arrays that one adapter feeds there.

import { type AffineInputs, affineInputs, loraInputs } from '../graph/inject/inject.js'
import type { Linear } from '../graph/match/linears.js'

/** A module of the graph that can be adapted: its inputs take Aᵀ (k, r) and s·Bᵀ (r, d), and c (d) and t (d) where it has them. */
export interface LoraSite {
  module: string
  weightA: string
  weightB: string
  affine: AffineInputs | undefined
  k: number
  d: number
}

/** What one adapter feeds to one site. */
export interface SiteFactors {
  rank: number
  /** Aᵀ (k, r) */
  weightA: Float32Array
  /** s·Bᵀ (r, d) */
  weightB: Float32Array
  /** What the outputs are multiplied by, and what is added to them; undefined: 1 and 0. Only for sites that have inputs for it. */
  affine: { scale: Float32Array; shift: Float32Array } | undefined
}

/** By module. Sites without an entry stay as the base has them. */
export type AdapterFactors = ReadonlyMap<string, SiteFactors>

/** What can be handed over to a worker. */
export function buffersOf(factors: AdapterFactors): ArrayBufferLike[] {
  return [...factors.values()].flatMap(({ weightA, weightB, affine }) => {
    const vectors = affine === undefined ? [] : [affine.scale.buffer, affine.shift.buffer]
    return [weightA.buffer, weightB.buffer, ...vectors]
  })
}

/** One site a module: linears of one name share their inputs. */
export function sitesOf(linears: readonly Linear[], affine: ReadonlySet<string>): LoraSite[] {
  const site = ({ name, k, d }: Linear): LoraSite => {
    return { module: name, ...loraInputs(name), affine: affine.has(name) ? affineInputs(name) : undefined, k, d }
  }
  return [...new Map(linears.map((linear) => [linear.name, site(linear)])).values()]
}
