// The losses of sentence-transformers over the vectors of a step, under the names of its classes, without "Loss". Each
// adds its gradients to the vectors, and returns its value. Unlike there, equal texts are no negatives of each other.

import type { StepVectors } from './step-vectors.js'

/** One name for each loss, with what its records need. */
export const LOSSES = {
  MultipleNegativesRanking: 'texts',
  CachedGISTEmbed: 'texts',
  MarginMSE: 'teacher',
  DistillKLDiv: 'teacher',
  CoSENT: 'score',
  AnglE: 'score',
  CosineSimilarity: 'score',
  Triplet: 'texts',
} as const

export type LossName = keyof typeof LOSSES

/** Products of text `left` of example i with text `right` of each example j; some are left out. */
export interface Candidates {
  readonly left: number
  readonly right: number
  isLeftOut(i: number, j: number): boolean
}

/**
 * Cross-entropy of scale · product over the candidates of each example. The right one is the example's own in the first
 * group of candidates: the loss of MultipleNegativesRanking, and of CachedGISTEmbed with its masks.
 */
export function rankingLoss(vectors: StepVectors, candidates: readonly Candidates[], scale: number, share = 1): number {
  const { count } = vectors
  let loss = 0
  for (let i = 0; i < count; i++) {
    const logits = candidates.map(({ left, right, isLeftOut }, group) =>
      Float64Array.from({ length: count }, (_, j) => {
        const isRight = group === 0 && i === j
        if (!isRight && isLeftOut(i, j)) return Number.NEGATIVE_INFINITY
        return scale * vectors.product(left, i, right, j)
      }),
    )
    const most = Math.max(...logits.map((list) => list.reduce((a, b) => Math.max(a, b))))
    const sum = logits.reduce((total, list) => total + list.reduce((a, logit) => a + Math.exp(logit - most), 0), 0)
    loss += (share * (most + Math.log(sum) - logits[0][i])) / count
    for (const [group, { left, right }] of candidates.entries()) {
      for (let j = 0; j < count; j++) {
        const probability = Math.exp(logits[group][j] - most) / sum
        const slope = ((probability - (group === 0 && i === j ? 1 : 0)) * scale * share) / count
        if (slope !== 0) vectors.add(left, i, right, j, slope)
      }
    }
  }
  return loss
}

/** Every text that is no query is a candidate of every query; with `isSymmetric`, also every query of a document. */
export function multipleNegatives(
  vectors: StepVectors,
  scale: number,
  isSymmetric = false,
  isSame: (query: number, candidate: number) => boolean = () => false,
): number {
  const { count } = vectors
  const candidates = Array.from({ length: vectors.groups - 1 }, (_, group): Candidates => {
    return { left: 0, right: group + 1, isLeftOut: (i, j) => isSame(i, group * count + j) }
  })
  const loss = rankingLoss(vectors, candidates, scale, isSymmetric ? 0.5 : 1)
  if (!isSymmetric) return loss
  const queries: Candidates = { left: 1, right: 0, isLeftOut: (i, j) => isSame(j, i) }
  return loss + rankingLoss(vectors, [queries], scale, 0.5)
}

export interface GuideOptions {
  readonly temperature: number
  readonly margin: number
  readonly isRelative: boolean
}

/** Leaves out what a guide finds nearer to a query than its own document, also among queries and documents. */
export function guidedLoss(
  vectors: StepVectors,
  guide: StepVectors,
  { temperature, margin, isRelative }: GuideOptions,
) {
  const most = Float64Array.from({ length: vectors.count }, (_, i) => {
    const own = guide.product(0, i, 1, i)
    return own - margin * (isRelative ? Math.abs(own) : 1)
  })
  const among = (left: number, right: number): Candidates => {
    return { left, right, isLeftOut: (i, j) => guide.product(left, i, right, j) > most[i] }
  }
  const negatives = Array.from({ length: vectors.groups - 2 }, (_, column) => among(0, column + 2))
  return rankingLoss(vectors, [among(0, 1), among(0, 0), among(1, 1), ...negatives], 1 / temperature)
}

/** The mean of (cos − score)² over the pairs. */
export function cosineSimilarity(vectors: StepVectors, scores: readonly number[]): number {
  const { count } = vectors
  let loss = 0
  for (let i = 0; i < count; i++) {
    const difference = vectors.product(0, i, 1, i) - scores[i]
    loss += (difference * difference) / count
    vectors.add(0, i, 1, i, (2 * difference) / count)
  }
  return loss
}

/** A similarity of two vectors that is linear in each, with the derivative of its value. */
interface Similarity {
  value(a: Float64Array, b: Float64Array): number
  add(a: Float64Array, b: Float64Array, da: Float64Array, db: Float64Array, slope: number): void
}

const COSINE: Similarity = {
  value: (a, b) => a.reduce((sum, value, k) => sum + value * b[k], 0),
  add(a, b, da, db, slope) {
    for (let k = 0; k < a.length; k++) {
      da[k] += slope * b[k]
      db[k] += slope * a[k]
    }
  },
}

/** The second vector, as complex numbers of its two halves, times 1 + i. A vector of odd length ends with a zero. */
function turned(b: Float64Array): Float64Array {
  const half = Math.ceil(b.length / 2)
  return b.map((value, k) => (k < half ? value - (b[k + half] ?? 0) : b[k - half] + value))
}

/** `pairwise_angle_sim`: the absolute sum of all parts of a quotient of complex numbers. */
const ANGLE: Similarity = {
  value: (a, b) => Math.abs(COSINE.value(a, turned(b))),
  add(a, b, da, db, slope) {
    const other = turned(b)
    const signed = COSINE.value(a, other) < 0 ? -slope : slope
    const half = Math.ceil(b.length / 2)
    for (let k = 0; k < a.length; k++) {
      da[k] += signed * other[k]
      db[k] += signed * (k < half ? a[k] + (a[k + half] ?? 0) : a[k] - a[k - half])
    }
  },
}

/** CoSENT, and AnglE with its own similarity: pairs with a lower score should be less alike, each against each. */
export function orderLoss(
  vectors: StepVectors,
  scores: readonly number[] | undefined,
  scale: number,
  isAngle: boolean,
) {
  const { count, groups } = vectors
  const { value, add } = isAngle ? ANGLE : COSINE
  // Without scores, a query is alike its document, and unlike its negatives.
  const pairs = Array.from({ length: (groups - 1) * count }, (_, at) => {
    const [i, group] = [at % count, 1 + Math.floor(at / count)]
    const score = group === 1 ? (scores?.[i] ?? 1) : 1 - (scores?.[i] ?? 1)
    return { i, group, score, alike: value(vectors.at(0, i), vectors.at(group, i)), slope: 0 }
  })
  const terms = pairs.flatMap((low) =>
    pairs
      .filter(({ score }) => low.score < score)
      .map((high) => ({ low, high, power: scale * (low.alike - high.alike) })),
  )
  const most = terms.reduce((highest, { power }) => Math.max(highest, power), 0)
  const sum = terms.reduce((total, { power }) => total + Math.exp(power - most), Math.exp(-most))
  for (const { low, high, power } of terms) {
    const slope = (scale * Math.exp(power - most)) / sum
    low.slope += slope
    high.slope -= slope
  }
  for (const { i, group, slope } of pairs) {
    add(vectors.at(0, i), vectors.at(group, i), vectors.gradientAt(0, i), vectors.gradientAt(group, i), slope)
  }
  return most + Math.log(sum)
}

/** The mean of max(0, d(query, document) − d(query, negative) + margin), with d = 1 − cos. */
export function tripletLoss(vectors: StepVectors, margin: number): number {
  const { count } = vectors
  let loss = 0
  for (let i = 0; i < count; i++) {
    const excess = vectors.product(0, i, 2, i) - vectors.product(0, i, 1, i) + margin
    if (excess <= 0) continue
    loss += excess / count
    vectors.add(0, i, 2, i, 1 / count)
    vectors.add(0, i, 1, i, -1 / count)
  }
  return loss
}

/** The mean of (margin − teacher's margin)², where a margin is the document's product minus that of a negative. */
export function marginMse(vectors: StepVectors, teacher: readonly (readonly number[])[]): number {
  const { count, groups } = vectors
  const negatives = groups - 2
  let loss = 0
  for (let i = 0; i < count; i++) {
    const scores = teacher[i]
    for (let n = 0; n < negatives; n++) {
      const wanted = scores.length > negatives ? scores[0] - scores[n + 1] : scores[n]
      const difference = vectors.product(0, i, 1, i) - vectors.product(0, i, n + 2, i) - wanted
      const slope = (2 * difference) / (count * negatives)
      loss += (difference * difference) / (count * negatives)
      vectors.add(0, i, 1, i, slope)
      vectors.add(0, i, n + 2, i, -slope)
    }
  }
  return loss
}

/** The mean divergence of the softmax of products from the softmax of the teacher's scores, times T². */
export function distillLoss(
  vectors: StepVectors,
  teacher: readonly (readonly number[])[],
  temperature: number,
): number {
  const { count, groups } = vectors
  let loss = 0
  for (let i = 0; i < count; i++) {
    const products = Array.from({ length: groups - 1 }, (_, n) => vectors.product(0, i, n + 1, i))
    const [own, wanted] = [products, teacher[i]].map((scores) => logSoftmax(scores, temperature))
    for (let n = 0; n < groups - 1; n++) {
      const share = Math.exp(wanted[n])
      if (share > 0) loss += (temperature ** 2 * share * (wanted[n] - own[n])) / count
      vectors.add(0, i, n + 1, i, (temperature * (Math.exp(own[n]) - share)) / count)
    }
  }
  return loss
}

function logSoftmax(scores: readonly number[], temperature: number): number[] {
  const most = Math.max(...scores)
  const sum = scores.reduce((total, score) => total + Math.exp((score - most) / temperature), 0)
  return scores.map((score) => (score - most) / temperature - Math.log(sum))
}
