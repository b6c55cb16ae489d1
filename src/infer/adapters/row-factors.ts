// Feeds of a run for the adapters of its rows. Adapters of a mix stand beside one another: [A₁ᵀ A₂ᵀ]·[w₁·s₁·B₁ᵀ;
// w₂·s₂·B₂ᵀ] is the weighted sum of their deltas.

import { UnsupportedError } from '../../base/errors.js'
import { SLOTS_INPUT } from '../../graph/inject/inject.js'
import type { Site, SiteGroup } from '../../graph/inject/sites.js'
import type { Feeds } from '../../runtime/runtime.js'
import type { AdapterFactors, SiteFactors } from './site-factors.js'
import { copyColumns, groupFeeds } from './site-feeds.js'

export interface WeightedFactors {
  readonly factors: AdapterFactors
  readonly weight: number
}

/** The adapters of each row; one entry for all rows where they are alike. */
export type RowFactors = readonly (readonly WeightedFactors[])[]

export function isSameMix(a: RowFactors[number], b: RowFactors[number]): boolean {
  return (
    a.length === b.length && a.every(({ factors, weight }, i) => b[i].factors === factors && b[i].weight === weight)
  )
}

/** Feeds for the sites that some row adapts: for the same sites they are made once. */
export class AdapterFeeds {
  readonly #rows: RowFactors
  readonly #rowOf: readonly number[] | undefined
  #made: { readonly groups: readonly SiteGroup[]; readonly feeds: Feeds } | undefined

  /** `rowOf`: for each row, its index in `mixes`; undefined: all rows have the first. */
  constructor(mixes: RowFactors, rowOf?: readonly number[]) {
    const isOne = rowOf === undefined || new Set(rowOf).size <= 1
    this.#rows = isOne ? [mixes[rowOf?.[0] ?? 0] ?? []] : mixes
    this.#rowOf = isOne ? undefined : rowOf
  }

  get rows(): number {
    return this.#rowOf?.length ?? 1
  }

  for(groups: readonly SiteGroup[]): Feeds {
    if (this.#made?.groups !== groups) this.#made = { groups, feeds: this.#make(groups) }
    return this.#made.feeds
  }

  #make(groups: readonly SiteGroup[]): Feeds {
    const feeds: Feeds = {}
    const rowOf = this.#rowOf
    for (const group of groups) {
      const slots = group.map((site) => this.#rows.map((mix) => mixed(mix, site)))
      // Rows of a batch look tokens up in the table of their slot, which each embedding has to have then.
      const isIdle = slots.flat().every((slot) => slot === undefined)
      const one = isIdle || rowOf === undefined ? undefined : group.find(({ isForAllRows }) => isForAllRows)
      if (one !== undefined) {
        throw new UnsupportedError({
          where: one.module,
          what: 'it reads the same values for all rows, so rows cannot have adapters of their own',
          hint: 'Run the rows of each adapter alone',
        })
      }
      if (isIdle && (rowOf === undefined || group[0].kind !== 'lookup')) continue
      Object.assign(feeds, groupFeeds(group, slots, rowOf))
    }
    if (rowOf !== undefined && groups.flat().some(({ kind }) => kind === 'lookup')) {
      feeds[SLOTS_INPUT] = { type: 'int64', data: BigInt64Array.from(rowOf, BigInt), dims: [rowOf.length, 1] }
    }
    return feeds
  }
}

function mixed(mix: readonly WeightedFactors[], { module, k, d }: Site): SiteFactors | undefined {
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
    part.shift?.forEach((value, i) => {
      shift[i] += part.weight * value
    })
    start += part.rank
  }
  // The session lets DoRA, which scales outputs, be mixed with nothing, and one adapter of a mix replace a tensor.
  const { kind } = parts[0]
  const { scale, replaced } = parts.find((part) => part.replaced !== undefined) ?? {}
  return { kind, rank, weightA, weightB, scale, shift, replaced, replacesBias: false }
}
