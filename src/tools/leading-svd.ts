// The leading singular values and vectors of a full matrix, as many as a rank rule asks for. How many these are is known only when they
// are: the search doubles until it has enough.

import type { Matrix } from '../base/tensor.js'
import { norm } from '../linalg/product.js'
import { randomizedSvd } from '../linalg/randomized-svd.js'
import type { Svd } from '../linalg/svd.js'
import { chosenRank, energyOf, energyShare, type RankChoice } from './rank.js'

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

/**
 * @param matrix (d, k), neither side 0
 * @throws NumericError when an element is not finite
 */
export function leadingSvd(matrix: Matrix, choice: RankChoice, tolerance?: number): LeadingSvd {
  const side = Math.min(...matrix.shape)
  const most = Math.min(choice.rank ?? side, side)
  const total = norm(matrix) ** 2
  const share = energyShare(choice)
  let count = share === undefined && choice.ratio === undefined ? most : Math.min(FIRST_RANK, most)
  for (;;) {
    const svd = randomizedSvd(matrix, count, { tolerance })
    const { s } = svd
    const isEnough =
      count === most ||
      (share === undefined ? s[count - 1] < (choice.ratio ?? 0) * s[0] : energyOf(s, 0) >= share * total)
    if (!isEnough) {
      count = Math.min(2 * count, most)
      continue
    }
    const rank = chosenRank(s, choice, total)
    const lost = Math.max(0, total - energyOf(s.subarray(0, rank), 0))
    return { svd, rank, norm: Math.sqrt(total), error: total === 0 ? 0 : Math.sqrt(lost / total) }
  }
}
