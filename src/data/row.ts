// The rows that every reader of data gives, and which of them are held out.

import { DataError } from '../base/errors.js'
import { Random } from '../base/random.js'

export interface Row {
  readonly row: unknown
  readonly where: string
}

export type OnInvalid = (error: DataError) => void

export function unlessInvalid<T>(read: () => T, onInvalid: OnInvalid | undefined): T | undefined {
  try {
    return read()
  } catch (error) {
    if (onInvalid === undefined || !(error instanceof DataError)) throw error
    onInvalid(error)
    return undefined
  }
}

export type Rows = AsyncIterable<Row>

/**
 * Rows held out for evaluation: a seeded choice while rows stream by. The share is kept to within one row. Row numbers
 * are asked for in order, from 0 on.
 */
export function planSplit(share: number, seed: number): (index: number) => boolean {
  const random = new Random(seed, 'eval-split')
  let taken = 0
  const startOf = (group: number) => Math.ceil(group / share)
  const pick = () => startOf(taken) + random.below(startOf(taken + 1) - startOf(taken))
  let next = pick()
  return (index) => {
    if (index !== next) return false
    taken++
    next = pick()
    return true
  }
}
