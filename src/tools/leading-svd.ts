// The leading singular values and vectors of a full matrix, as many as a rank rule asks for. How many these are is known only when they
// are: the search doubles until it has enough.

import type { Svd } from '../linalg/svd.js'
import { chosenRank, energyOf, energyShare, type RankChoice } from './rank.js'

/** A matrix, and the way to its SVD. */
export interface Decomposable {
  readonly shape: readonly [number, number]
  /** Σ of all squares. */
  readonly energy: number
  /** The first `rank` singular values and vectors; `rank` is at most the smaller side. */
  decompose(rank: number): Svd | Promise<Svd>
}

/** A part of an SVD, and what the whole has. */
export interface LeadingSvd {
  readonly svd: Svd
  /** As the rule says; `svd` can hold more. */
  readonly rank: number
  /** ‖matrix‖, Frobenius. */
  readonly norm: number
  /** ‖matrix − U·S·Vᵀ‖/‖matrix‖ at that rank. */
  readonly error: number
}

/** The first search, where a rule other than a rank decides. */
const FIRST_RANK = 32

/** @throws NumericError when an element is not finite */
export async function leadingSvd({ shape, energy, decompose }: Decomposable, choice: RankChoice): Promise<LeadingSvd> {
  const side = Math.min(...shape)
  const most = Math.min(choice.rank ?? side, side)
  const share = energyShare(choice)
  let count = share === undefined && choice.ratio === undefined ? most : Math.min(FIRST_RANK, most)
  for (;;) {
    const svd = await decompose(count)
    const { s } = svd
    const isEnough =
      count === most ||
      (share === undefined ? s[count - 1] < (choice.ratio ?? 0) * s[0] : energyOf(s, 0) >= share * energy)
    if (!isEnough) {
      count = Math.min(2 * count, most)
      continue
    }
    const rank = chosenRank(s, choice, energy)
    const lost = Math.max(0, energy - energyOf(s.subarray(0, rank), 0))
    return { svd, rank, norm: Math.sqrt(energy), error: energy === 0 ? 0 : Math.sqrt(lost / energy) }
  }
}
