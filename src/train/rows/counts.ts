// Counts of the labels and lengths of records.

import { isObject } from '../../base/options.js'

/** Different labels that are counted. */
export const MAX_LABELS = 1000
/** Lengths up to this are counted one by one. */
const EXACT_LENGTHS = 4096

/** How long records are. */
export interface LengthReport {
  /** Tokens of the examples, if a model is given; else characters of all texts of a record. */
  readonly unit: 'tokens' | 'characters'
  readonly total: number
  readonly least: number
  /** Above 4096 rounded by up to 0.05 %. */
  readonly median: number
  readonly most: number
  /** How many are below each power of two, and not below the one before it. */
  readonly histogram: readonly { readonly below: number; readonly count: number }[]
}

export function countOne<K extends string | number>(counts: Map<K, number>, key: K, most?: number): void {
  const own = most === undefined || counts.size < most || counts.has(key) ? key : ('others' as K)
  counts.set(own, (counts.get(own) ?? 0) + 1)
}

export function mostFrequent(counts: ReadonlyMap<string, number>): Record<string, number> {
  return Object.fromEntries([...counts].sort(([, a], [, b]) => b - a))
}

export function labelsOf({ label, labels, tags, entities }: Readonly<Record<string, unknown>>): string[] {
  if (label === undefined && labels === undefined && tags === undefined && entities === undefined) return []
  const ofEntities = Array.isArray(entities) ? entities.map((one) => (isObject(one) ? one.label : undefined)) : []
  return [label ?? labels, tags, ofEntities]
    .flat()
    .flatMap((value) => (['string', 'boolean'].includes(typeof value) || Number.isInteger(value) ? String(value) : []))
}

export function rounded(length: number): number {
  if (length < EXACT_LENGTHS) return length
  const step = 2 ** (Math.floor(Math.log2(length)) - Math.log2(EXACT_LENGTHS) + 1)
  return Math.round(length / step) * step
}

export function lengthsOf(counts: ReadonlyMap<number, number>, unit: LengthReport['unit']): LengthReport | null {
  const sorted = [...counts].sort(([a], [b]) => a - b)
  if (sorted.length === 0) return null
  const count = sorted.reduce((sum, [, times]) => sum + times, 0)
  let seen = 0
  const median = sorted.find(([, times]) => {
    seen += times
    return seen * 2 >= count
  })![0]
  const histogram: { below: number; count: number }[] = []
  for (const [length, times] of sorted) {
    const below = 2 ** Math.floor(Math.log2(Math.max(1, length)) + 1)
    const last = histogram.at(-1)
    if (last?.below === below) last.count += times
    else histogram.push({ below, count: times })
  }
  const total = sorted.reduce((sum, [length, times]) => sum + length * times, 0)
  return { unit, total, least: sorted[0][0], median, most: sorted[sorted.length - 1][0], histogram }
}
