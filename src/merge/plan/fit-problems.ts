// Collects the problems of a plan instead of throwing them, so that a report of an adapter's fit has all of them.

import { attempt, type LowrankError } from '../../core/base/errors.js'

export interface PlacedPart {
  readonly name: string
  /** The base's tensor, if it has one. */
  readonly info: { readonly name: string; readonly shape: readonly number[]; readonly dtype: string } | undefined
  readonly problem?: LowrankError | undefined
}

export class FitProblems {
  /** The problems in the order in which they were found. A merge throws the first. */
  readonly problems: LowrankError[] = []
  readonly whole: LowrankError[] = []
  readonly parts: PlacedPart[] = []
  readonly notes: string[] = []
  vocabulary: number | null = null
  isTied: boolean | null = null

  constructor(readonly listsAll = false) {}

  add(...problems: readonly LowrankError[]): void {
    this.problems.push(...problems)
    this.whole.push(...problems)
  }

  note<T>(work: () => T): T | undefined {
    const { value, problems } = attempt(work)
    this.add(...problems)
    return value
  }
}
