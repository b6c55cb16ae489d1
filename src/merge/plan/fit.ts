// Problems of a plan: collected instead of thrown, so that a look at an adapter's fit sees all.

import { attempt, LowrankError } from '../../base/errors.js'
import type { LayerFactors } from './adapters.js'

/** A part of an adapter and its place in a base. */
export interface PlacedPart {
  readonly name: string
  /** The base's tensor; undefined where there is none. */
  readonly info: { readonly name: string; readonly shape: readonly number[]; readonly dtype: string } | undefined
  readonly problem?: LowrankError | undefined
  /** The layer as its tensor has it, and the number of the source that holds the tensor. */
  readonly layer?: LayerFactors
  readonly source?: number
}

/** Findings of a plan about its adapters and its base. */
export class Fit {
  /** All, in the order in which they are found. A merge throws the first. */
  readonly problems: LowrankError[] = []
  /** Problems among them that are no part's. */
  readonly whole: LowrankError[] = []
  readonly parts: PlacedPart[] = []
  readonly notes: string[] = []
  where = ''
  vocabulary: number | null = null
  isTied: boolean | null = null

  /** @param listsAll looks for the problems of each part, where a merge needs the first one */
  constructor(readonly listsAll = false) {}

  /** Adds problems of the whole. */
  add(...problems: readonly LowrankError[]): void {
    this.problems.push(...problems)
    this.whole.push(...problems)
  }

  /** Adds an error as a problem of the whole. Throws what is none of lowrank's. */
  refused(error: unknown): undefined {
    if (!(error instanceof LowrankError)) throw error
    this.add(error)
  }

  /** Does something. Its error is a problem of the whole. */
  note<T>(work: () => T): T | undefined {
    const { value, problems } = attempt(work)
    this.add(...problems)
    return value
  }
}
