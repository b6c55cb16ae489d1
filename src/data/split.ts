// Rows held out for evaluation: a seeded choice while rows stream by. The share is kept to within one row.

import { Random } from '../base/random.js'

/** Row numbers are asked for in order, from 0 on. */
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
