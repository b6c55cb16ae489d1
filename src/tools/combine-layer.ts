// One layer of several adapters as one. s is inside of B, so that rsLoRA and patterns are right by construction.

import { ConfigError } from '../base/errors.js'
import { Random } from '../base/random.js'
import { type FloatArray, type Matrix, zeros } from '../base/tensor.js'
import { addScaled, beside, copyAs, norm, normOfProduct, product, stacked } from '../linalg/product.js'
import { randomizedSvd } from '../linalg/randomized-svd.js'
import { type FactorPair, scaled } from '../lora/delta.js'
import type { CombineWay } from './combine-settings.js'
import { type Change, configRank, type FactorPart } from './factor-parts.js'
import { type LeadingSvd, leadingSvd, type RankChoice } from './rank.js'
import { closestPairs, type RankReport, truncatedChange } from './resize.js'
import { sparseSum } from './sparse.js'

export interface Term {
  readonly part: FactorPart
  readonly change: Change
  readonly weight: number
  readonly label: string
  /** The change as a matrix, where it is no product of the factors: that of DoRA. */
  readonly full?: Matrix | undefined
}

interface Combined {
  readonly pairs: readonly FactorPair[]
  readonly report: Pick<RankReport, 'rank' | 'norm' | 'error'>
}

/** The energy that a search may miss where PEFT takes a full SVD. */
const TIGHT = 1e-10

export async function combinedChange(name: string, terms: readonly Term[], way: CombineWay): Promise<Combined> {
  const { type } = way
  const { part, change } = terms[0]
  const largest = Math.max(...terms.map(({ part: own }) => own.rank))
  // `exact` has another rule where no rank is given.
  const choice = type === 'exact' ? way.choice : { ...way.choice, rank: way.choice.rank ?? largest }
  if (type.endsWith('_svd')) return sumOfChanges(name, terms, way, choice)
  if (terms.some(({ full }) => full !== undefined)) return closest(part, [fullSumOf(terms)], choice)
  if (type === 'exact' || type === 'svd') {
    const { change: kept, report } = truncatedChange(part, sumOf(terms), choice)
    return { pairs: kept.pairs, report }
  }
  if (type !== 'cat') checkRanks(name, terms, type)
  const count = change.pairs.length
  const added = () => Array.from({ length: count }, (_, at) => combineFactors(name, terms, at, way))
  const pairs = type === 'cat' ? sumOf(terms).pairs : added()
  const rank = configRank(part, pairs[0].weightA.shape[0], count)
  const error = type === 'linear' ? distance(pairs, sumOf(terms).pairs) : 0
  return { pairs, report: { rank, norm: normOf(pairs), error } }
}

function sumOf(terms: readonly Term[]): Change {
  const pairs = terms[0].change.pairs.map((_, at) => ({
    weightA: stacked(terms.map(({ change }) => change.pairs[at].weightA)),
    weightB: beside(terms.map(({ change, weight }) => scaled(change.pairs[at].weightB, weight))),
  }))
  return { pairs, vectors: {} }
}

function fullSumOf(terms: readonly Term[]): Matrix {
  const [first] = terms
  const [{ weightA, weightB }] = first.change.pairs
  const sum = zeros(weightB.shape[0], weightA.shape[1], new Float32Array())
  for (const { change, weight, full } of terms) {
    if (full !== undefined) addScaled(sum, full, weight)
    else {
      const [pair] = change.pairs
      product(copyAs(pair.weightB, sum.data), copyAs(pair.weightA, sum.data), { scale: weight, addTo: sum })
    }
  }
  return sum
}

function checkRanks(name: string, terms: readonly Term[], type: string): void {
  const ranks = terms.map(({ part }) => part.rank)
  if (new Set(ranks).size === 1) return
  throw new ConfigError({
    where: name,
    what: `${type} adds the factors themselves, so all adapters need the same rank here`,
    expected: `rank ${ranks[0]}`,
    got: ranks.join(', '),
    hint: 'exact, svd and cat take adapters of any ranks',
  })
}

/** With c = weight·s, A gets sgn(c)·√|c| and B √|c| (PEFT's _generalized_task_arithmetic_weighted_adapter). */
function combineFactors(name: string, terms: readonly Term[], at: number, { sum, seed }: CombineWay): FactorPair {
  const own = terms.map(({ part, change, weight }) => {
    const c = weight * part.scaling
    const { weightA, weightB } = change.pairs[at]
    // A change has s in B, and the trimming must see B as it is.
    const b = part.scaling === 0 ? weightB : scaled(weightB, 1 / part.scaling)
    return { weightA, weightB: b, rootA: Math.sign(c) * Math.sqrt(Math.abs(c)), rootB: Math.sqrt(Math.abs(c)) }
  })
  type Own = (typeof own)[number]
  const combine = (role: 'A' | 'B', of: (one: Own) => { data: FloatArray; weight: number }, like: Matrix): Matrix => {
    const random = (index: number) => new Random(seed, `combine/${name}/${at}/${role}/${index}`)
    return copyAs({ data: sparseSum(own.map(of), sum, random), shape: like.shape }, like.data)
  }
  const [{ weightA, weightB }] = own
  return {
    weightA: combine('A', (one) => ({ data: one.weightA.data, weight: one.rootA }), weightA),
    weightB: combine('B', (one) => ({ data: one.weightB.data, weight: one.rootB }), weightB),
  }
}

async function sumOfChanges(
  name: string,
  terms: readonly Term[],
  { sum, seed }: CombineWay,
  choice: RankChoice,
): Promise<Combined> {
  const { part, change } = terms[0]
  const merged = change.pairs.map((_, at): Matrix => {
    const tensors = terms.map(({ change: own, weight, full }) => {
      const { weightA, weightB } = own.pairs[at]
      return { ...(full ?? product(weightB, weightA)), weight }
    })
    const random = (index: number) => new Random(seed, `combine/${name}/${at}/${index}`)
    return { data: sparseSum(tensors, sum, random), shape: tensors[0].shape }
  })
  return closest(part, merged, choice)
}

async function closest(part: FactorPart, matrices: readonly Matrix[], choice: RankChoice): Promise<Combined> {
  const each = configRank(part, 1, matrices.length)
  const most = choice.rank === undefined ? undefined : Math.max(1, Math.floor(choice.rank / each))
  const like = part.tensors.weightA.data
  const found: LeadingSvd[] = []
  for (const matrix of matrices) {
    const decompose = (rank: number) => randomizedSvd(matrix, rank, { tolerance: TIGHT })
    found.push(
      await leadingSvd({ shape: matrix.shape, energy: norm(matrix) ** 2, decompose }, { ...choice, rank: most }),
    )
  }
  const { pairs, rank, ...report } = closestPairs(found, like)
  return { pairs, report: { rank: rank * each, ...report } }
}

function normOf(pairs: readonly FactorPair[]): number {
  return Math.hypot(...pairs.map(({ weightA, weightB }) => normOfProduct(weightB, weightA)))
}

function distance(got: readonly FactorPair[], wanted: readonly FactorPair[]): number {
  const total = normOf(wanted)
  const off = normOf(
    wanted.map((pair, at) => ({
      weightA: stacked([pair.weightA, got[at].weightA]),
      weightB: beside([pair.weightB, scaled(got[at].weightB, -1)]),
    })),
  )
  return total === 0 ? 0 : off / total
}
