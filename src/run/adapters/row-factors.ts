// Makes the feeds of a run for the adapters of its rows. The factors of a mix are put side by side:
// [w₁·s₁·B₁ w₂·s₂·B₂]·[A₁; A₂] is the weighted sum of the deltas.

import { UnsupportedError } from '../../core/base/errors.js'
import { type Site, type SiteGroup, SLOTS_INPUT } from '../../model/inject/sites.js'
import type { Feeds } from '../../onnx/runtime/runtime.js'
import type { AdapterFactors, SiteFactors } from './site-factors.js'
import { besideFeeds, copyColumns, groupFeeds, ownColumns, ownInputOf } from './site-feeds.js'

export interface WeightedFactors {
  readonly factors: AdapterFactors
  readonly weight: number
}

/** The adapters of each row, or a single entry if all rows have the same. */
export type RowFactors = readonly (readonly WeightedFactors[])[]

export function isSameMix(a: RowFactors[number], b: RowFactors[number]): boolean {
  return (
    a.length === b.length && a.every(({ factors, weight }, i) => b[i].factors === factors && b[i].weight === weight)
  )
}

/**
 * Makes feeds for rows with these mixes. Rows with the same mix share their arrays.
 *
 * @param like earlier feeds, whose arrays are used again if they were made for the same mixes
 */
export function feedsOfRows(rows: RowFactors, like?: AdapterFeeds): AdapterFeeds {
  const distinct: RowFactors[number][] = []
  const rowOf = rows.map((mix) => {
    const known = distinct.findIndex((seen) => isSameMix(mix, seen))
    return known >= 0 ? known : distinct.push(mix) - 1
  })
  return new AdapterFeeds(distinct, rowOf, like)
}

/** The arrays of a list of mixes at the sites of a graph. Batches with the same mixes share them. */
interface Made {
  readonly groups: readonly SiteGroup[]
  /** For each site of a group, the factors of each mix. */
  readonly slots: ReadonlyMap<SiteGroup, readonly (readonly (SiteFactors | undefined)[])[]>
  /** For each input that says which columns a row keeps: the ranks of the mixes. */
  readonly ranks: ReadonlyMap<string, readonly number[]>
  /** The factors of all mixes side by side. Made when the rows first have different mixes. */
  beside: Feeds | undefined
}

/** The feeds for all sites that the adapter of some row changes. */
export class AdapterFeeds {
  readonly #mixes: RowFactors
  readonly #rowOf: readonly number[] | undefined
  readonly #made: { of?: Made }

  /**
   * @param mixes the distinct mixes
   * @param rowOf for each row, the index of its mix
   * @param like earlier feeds, whose arrays are used again if they were made for the same mixes
   */
  constructor(mixes: RowFactors, rowOf: readonly number[], like: AdapterFeeds | undefined) {
    const isOne = mixes.length <= 1
    const placeIn = (all: RowFactors, mix: RowFactors[number]) =>
      all.findIndex((candidate) => isSameMix(mix, candidate))
    const places = isOne || like === undefined ? [] : mixes.map((mix) => placeIn(like.#mixes, mix))
    // Earlier arrays may hold mixes that no row has now. Their columns cost time, so at most half of them may be
    // unused.
    const isAlike = like !== undefined && like.#mixes.length <= 2 * places.length && !places.includes(-1)
    this.#mixes = isAlike ? like.#mixes : isOne ? [mixes[0] ?? []] : mixes
    this.#rowOf = isOne ? undefined : isAlike ? rowOf.map((row) => places[row]) : rowOf
    this.#made = isAlike ? like.#made : {}
  }

  get rows(): number {
    return this.#rowOf?.length ?? 1
  }

  for(groups: readonly SiteGroup[]): Feeds {
    if (this.#made.of?.groups !== groups) this.#made.of = this.#make(groups)
    return this.#feedsOf(this.#made.of)
  }

  #make(groups: readonly SiteGroup[]): Made {
    const slots = new Map(
      groups.map((group) => [group, group.map((site) => this.#mixes.map((mix) => mixed(mix, site)))] as const),
    )
    const ranks = new Map<string, number[]>()
    for (const [group, sites] of slots) {
      const input = ownInputOf(group)
      if (input === undefined) continue
      const known = ranks.get(input)
      const most = this.#mixes.map((_, i) => Math.max(known?.[i] ?? 0, ...sites.map((site) => site[i]?.rank ?? 0)))
      ranks.set(input, most)
    }
    return { groups, slots, ranks, beside: undefined }
  }

  #feedsOf(made: Made): Feeds {
    const { groups, slots, ranks } = made
    const feeds: Feeds = {}
    const rowOf = this.#rowOf
    const beside: [group: SiteGroup, ranks: readonly number[]][] = []
    for (const [group, sites] of slots) {
      // If rows differ, each row looks its tokens up in the table of its mix, so every embedding needs tables.
      const isIdle = sites.flat().every((slot) => slot === undefined)
      const input = ownInputOf(group)
      // If no adapter changes this layer, it gets as many columns as layers of the same name that are changed.
      const widths = input === undefined ? [] : ranks.get(input)!
      const isAdded = rowOf !== undefined && widths.some((rank) => rank > 0)
      const isApart = isAdded || (rowOf !== undefined && !isIdle)
      const shared = isApart ? group.find(({ isForAllRows }) => isForAllRows) : undefined
      if (shared !== undefined) {
        throw new UnsupportedError({
          where: shared.module,
          what: 'it reads the same values for all rows, so rows cannot have different adapters',
          hint: 'Run the rows of each adapter alone',
        })
      }
      if (isAdded) {
        beside.push([group, widths])
        feeds[input!] ??= ownColumns(group.length, widths, rowOf)
      }
      if (!isIdle || (rowOf !== undefined && group[0].kind === 'lookup')) {
        Object.assign(feeds, groupFeeds(group, sites, rowOf))
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
    const part = factors.get(module)
    return part === undefined || weight === 0 ? [] : [{ ...part, weight }]
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
  // In a mix no adapter scales outputs (DoRA runs alone), and at most one adapter replaces a tensor.
  const { scale, replaced } = parts.find((part) => part.replaced !== undefined) ?? {}
  return { kind, rank, weightA, weightB, scale, shift, replaced, replacesBias: false }
}
