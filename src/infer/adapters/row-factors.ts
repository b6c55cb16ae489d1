// Feeds of a run for the adapters of its rows. Adapters of a mix stand beside one another: [w₁·s₁·B₁ w₂·s₂·B₂]·[A₁; A₂]
// is the weighted sum of their deltas.

import { UnsupportedError } from '../../base/errors.js'
import { type Site, type SiteGroup, SLOTS_INPUT } from '../../graph/inject/sites.js'
import type { Feeds } from '../../runtime/runtime.js'
import type { AdapterFactors, SiteFactors } from './site-factors.js'
import { besideFeeds, copyColumns, groupFeeds, ownColumns, ownInputOf } from './site-feeds.js'

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

/**
 * Feeds for rows with these mixes. Rows with the same mix share them.
 *
 * @param like feeds of other rows: what they have made for the same mixes is taken from them
 */
export function feedsOfRows(rows: RowFactors, like?: AdapterFeeds): AdapterFeeds {
  const distinct: RowFactors[number][] = []
  const rowOf = rows.map((mix) => {
    const known = distinct.findIndex((other) => isSameMix(mix, other))
    return known >= 0 ? known : distinct.push(mix) - 1
  })
  return new AdapterFeeds(distinct, rowOf, like)
}

/** Arrays of a list of mixes at the sites of a graph. Batches with the same mixes share them. */
interface Made {
  readonly groups: readonly SiteGroup[]
  /** The factors of each site, by mix. */
  readonly slots: ReadonlyMap<SiteGroup, readonly (readonly (SiteFactors | undefined)[])[]>
  /** Ranks of the mixes, by the input that says which columns a row keeps. */
  readonly ranks: ReadonlyMap<string, readonly number[]>
  /** Factors side by side, once rows have differed. */
  beside: Feeds | undefined
}

/** Feeds for the sites that some row adapts: for the same sites they are made once. */
export class AdapterFeeds {
  readonly #mixes: RowFactors
  readonly #rowOf: readonly number[] | undefined
  readonly #made: { of?: Made }
  #feeds: { readonly groups: readonly SiteGroup[]; readonly feeds: Feeds } | undefined

  /**
   * `rowOf`: for each row, its index in `mixes`; undefined: all rows have the first.
   *
   * @param like feeds of other rows: what they have made for the same mixes is taken from them
   */
  constructor(mixes: RowFactors, rowOf?: readonly number[], like?: AdapterFeeds) {
    const isOne = rowOf === undefined || new Set(rowOf).size <= 1
    const placeIn = (all: RowFactors, mix: RowFactors[number]) => all.findIndex((other) => isSameMix(mix, other))
    const places = isOne || like === undefined ? [] : mixes.map((mix) => placeIn(like.#mixes, mix))
    // Columns that no row keeps cost time too.
    const isAlike = like !== undefined && like.#mixes.length <= 2 * places.length && !places.includes(-1)
    this.#mixes = isAlike ? like.#mixes : isOne ? [mixes[rowOf?.[0] ?? 0] ?? []] : mixes
    this.#rowOf = isOne ? undefined : isAlike ? rowOf.map((row) => places[row]) : rowOf
    this.#made = isAlike ? like.#made : {}
  }

  get rows(): number {
    return this.#rowOf?.length ?? 1
  }

  for(groups: readonly SiteGroup[]): Feeds {
    if (this.#made.of?.groups !== groups) this.#made.of = this.#make(groups)
    if (this.#feeds?.groups !== groups) this.#feeds = { groups, feeds: this.#feedsOf(this.#made.of) }
    return this.#feeds.feeds
  }

  #make(groups: readonly SiteGroup[]): Made {
    const slots = new Map(
      groups.map((group) => [group, group.map((site) => this.#mixes.map((mix) => mixed(mix, site)))] as const),
    )
    const ranks = new Map<string, number[]>()
    for (const [group, own] of slots) {
      const input = ownInputOf(group)
      if (input === undefined) continue
      const known = ranks.get(input)
      const most = this.#mixes.map((_, i) => Math.max(known?.[i] ?? 0, ...own.map((site) => site[i]?.rank ?? 0)))
      ranks.set(input, most)
    }
    return { groups, slots, ranks, beside: undefined }
  }

  #feedsOf(made: Made): Feeds {
    const { groups, slots, ranks } = made
    const feeds: Feeds = {}
    const rowOf = this.#rowOf
    const beside: [group: SiteGroup, ranks: readonly number[]][] = []
    for (const [group, own] of slots) {
      // Rows of a batch look tokens up in the table of their slot, which each embedding has to have then.
      const isIdle = own.flat().every((slot) => slot === undefined)
      const input = ownInputOf(group)
      // A layer that nobody adapts has as many columns as those of its name in other layers.
      const widths = input === undefined ? [] : ranks.get(input)!
      const isAdded = rowOf !== undefined && widths.some((rank) => rank > 0)
      const isApart = isAdded || (rowOf !== undefined && !isIdle)
      const one = isApart ? group.find(({ isForAllRows }) => isForAllRows) : undefined
      if (one !== undefined) {
        throw new UnsupportedError({
          where: one.module,
          what: 'it reads the same values for all rows, so rows cannot have adapters of their own',
          hint: 'Run the rows of each adapter alone',
        })
      }
      if (isAdded) {
        beside.push([group, widths])
        feeds[input!] ??= ownColumns(group.length, widths, rowOf)
      }
      if (!isIdle || (rowOf !== undefined && group[0].kind === 'lookup')) {
        Object.assign(feeds, groupFeeds(group, own, rowOf))
      }
    }
    if (rowOf === undefined) return feeds
    made.beside ??= Object.assign({}, ...beside.map(([group, widths]) => besideFeeds(group, slots.get(group)!, widths)))
    if (groups.flat().some(({ kind }) => kind === 'lookup')) {
      feeds[SLOTS_INPUT] = { type: 'int64', data: BigInt64Array.from(rowOf, BigInt), dims: [rowOf.length, 1] }
    }
    return { ...feeds, ...made.beside }
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
  const [{ kind }] = parts
  let start = 0
  for (const part of parts) {
    const weighted = part.weightB.map((value) => part.weight * value)
    if (kind === 'lookup') {
      copyColumns(part.weightA, part.rank, weightA, rank, start)
      weightB.set(weighted, start * d)
    } else {
      weightA.set(part.weightA, start * k)
      copyColumns(weighted, part.rank, weightB, rank, start)
    }
    part.shift?.forEach((value, i) => {
      shift[i] += part.weight * value
    })
    start += part.rank
  }
  // The session lets DoRA, which scales outputs, be mixed with nothing, and one adapter of a mix replace a tensor.
  const { scale, replaced } = parts.find((part) => part.replaced !== undefined) ?? {}
  return { kind, rank, weightA, weightB, scale, shift, replaced, replacesBias: false }
}
