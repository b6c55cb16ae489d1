// What a run feeds for the adapters of its rows. Adapters of a mix stand beside one another: [A₁ᵀ A₂ᵀ]·[w₁·s₁·B₁ᵀ; w₂·s₂·B₂ᵀ] is the
// weighted sum of their deltas. Where rows differ, each has a matrix of its own in a product over the batch, filled up with zeros
// to the largest rank.

import type { Feeds } from '../runtime/runtime.js'
import type { AdapterFactors, LoraSite, SiteFactors } from './sites.js'

/** The arrays of an adapter, and how much of it counts. */
export interface WeightedFactors {
  readonly factors: AdapterFactors
  readonly weight: number
}

/** What each row adds to the base; one entry for all rows where they are alike. */
export type RowFactors = readonly (readonly WeightedFactors[])[]

/** Feeds for the sites that some row adapts: for the same sites they are made once. */
export class AdapterFeeds {
  readonly #rows: RowFactors
  readonly #rowOf: readonly number[] | undefined
  #made: { readonly sites: readonly LoraSite[]; readonly feeds: Feeds } | undefined

  /**
   * @param mixes what rows add, each once
   * @param rowOf for each row, its index in `mixes`; undefined: all rows have the first
   */
  constructor(mixes: RowFactors, rowOf?: readonly number[]) {
    const isOne = rowOf === undefined || new Set(rowOf).size <= 1
    this.#rows = isOne ? [mixes[rowOf?.[0] ?? 0] ?? []] : mixes
    this.#rowOf = isOne ? undefined : rowOf
  }

  /** Whether rows differ. */
  get isPerRow(): boolean {
    return this.#rowOf !== undefined
  }

  for(sites: readonly LoraSite[]): Feeds {
    if (this.#made?.sites !== sites) this.#made = { sites, feeds: this.#make(sites) }
    return this.#made.feeds
  }

  #make(sites: readonly LoraSite[]): Feeds {
    const feeds: Feeds = {}
    for (const site of sites) {
      const parts = this.#rows.map((mix) => mixed(mix, site))
      if (parts.every((part) => part === undefined)) continue
      const own = this.#rowOf === undefined ? parts[0] : undefined
      Object.assign(
        feeds,
        own === undefined
          ? rowFeeds(
              site,
              this.#rowOf!.map((i) => parts[i]),
            )
          : siteFeeds(site, own),
      )
    }
    return feeds
  }
}

/** What a mix adds at a site; undefined for nothing. */
function mixed(mix: readonly WeightedFactors[], { module, k, d }: LoraSite): SiteFactors | undefined {
  const parts = mix.flatMap(({ factors, weight }) => {
    const own = factors.get(module)
    return own === undefined || weight === 0 ? [] : [{ ...own, weight }]
  })
  if (parts.length === 0) return undefined
  if (parts.length === 1 && parts[0].weight === 1) return parts[0]
  const rank = parts.reduce((sum, part) => sum + part.rank, 0)
  const [weightA, weightB] = [new Float32Array(k * rank), new Float32Array(rank * d)]
  const shift = new Float32Array(d)
  let start = 0
  for (const part of parts) {
    copyColumns(part.weightA, part.rank, weightA, rank, start)
    weightB.set(
      part.weightB.map((value) => part.weight * value),
      start * d,
    )
    part.affine?.shift.forEach((value, i) => {
      shift[i] += part.weight * value
    })
    start += part.rank
  }
  // The session lets DoRA, which scales outputs, be mixed with nothing.
  const isShifted = parts.some(({ affine }) => affine !== undefined)
  const affine = isShifted ? { scale: new Float32Array(d).fill(1), shift } : undefined
  return { rank, weightA, weightB, affine }
}

/** Puts the columns of (k, r) into those of (k, width) from `start` on. */
function copyColumns(from: Float32Array, r: number, to: Float32Array, width: number, start: number): void {
  for (let row = 0, at = start; row < from.length / Math.max(1, r); row++, at += width) {
    to.set(from.subarray(row * r, (row + 1) * r), at)
  }
}

function siteFeeds({ weightA, weightB, affine, k, d }: LoraSite, own: SiteFactors): Feeds {
  const feeds: Feeds = {
    [weightA]: { type: 'float32', data: own.weightA, dims: [k, own.rank] },
    [weightB]: { type: 'float32', data: own.weightB, dims: [own.rank, d] },
  }
  if (affine !== undefined && own.affine !== undefined) {
    feeds[affine.scale] = { type: 'float32', data: own.affine.scale, dims: [d] }
    feeds[affine.shift] = { type: 'float32', data: own.affine.shift, dims: [d] }
  }
  return feeds
}

/** (rows, k, r) and (rows, r, d) with the largest rank r, and (rows, 1, d) for scales and shifts. */
function rowFeeds({ weightA, weightB, affine, k, d }: LoraSite, rows: readonly (SiteFactors | undefined)[]): Feeds {
  const n = rows.length
  const rank = Math.max(1, ...rows.map((row) => row?.rank ?? 0))
  const [a, b] = [new Float32Array(n * k * rank), new Float32Array(n * rank * d)]
  const scale = affine && new Float32Array(n * d).fill(1)
  const shift = affine && new Float32Array(n * d)
  rows.forEach((row, i) => {
    if (row === undefined) return
    copyColumns(row.weightA, row.rank, a.subarray(i * k * rank, (i + 1) * k * rank), rank, 0)
    b.set(row.weightB, i * rank * d)
    if (row.affine === undefined) return
    scale?.set(row.affine.scale, i * d)
    shift?.set(row.affine.shift, i * d)
  })
  const feeds: Feeds = {
    [weightA]: { type: 'float32', data: a, dims: [n, k, rank] },
    [weightB]: { type: 'float32', data: b, dims: [n, rank, d] },
  }
  if (affine !== undefined && scale !== undefined && shift !== undefined) {
    feeds[affine.scale] = { type: 'float32', data: scale, dims: [n, 1, d] }
    feeds[affine.shift] = { type: 'float32', data: shift, dims: [n, 1, d] }
  }
  return feeds
}
