// Problems of a plan: collected instead of thrown, so that a look at an adapter's fit sees all.

import { attempt, LowrankError } from '../../base/errors.js'

export interface PlacedPart {
  readonly name: string
  /** The base's tensor; undefined where there is none. */
  readonly info: { readonly name: string; readonly shape: readonly number[]; readonly dtype: string } | undefined
  readonly problem?: LowrankError | undefined
}

export class FitProblems {
  /** In the order in which they are found. A merge throws the first. */
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

  refused(error: unknown): undefined {
    if (!(error instanceof LowrankError)) throw error
    this.add(error)
  }

  note<T>(work: () => T): T | undefined {
    const { value, problems } = attempt(work)
    this.add(...problems)
    return value
  }
}
