// Where adapters enter a graph, and the arrays that one adapter feeds there.

import type { AffineInputs } from '../graph/inject/inject.js'

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
