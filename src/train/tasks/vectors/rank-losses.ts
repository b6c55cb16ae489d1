// The losses of sentence-transformers' rerankers over scores of documents, under the names of its classes, without
// "Loss". Each returns its value and the derivative by each score.

/** One name for each loss, and whether it compares the documents of a question with each other. */
export const RANK_LOSSES = {
  BinaryCrossEntropy: false,
  Lambda: true,
  ListNet: true,
  RankNet: true,
  MarginMSE: true,
} as const

export type RankLossName = keyof typeof RANK_LOSSES

/** The documents of a question: what the model gives them, and what is wanted. */
export interface ScoredList {
  readonly logits: readonly number[]
  /** A label for each document. For MarginMSE also how much better the first one is than each other one. */
  readonly labels: readonly number[]
}

export interface RankLoss {
  readonly loss: number
  readonly gradients: readonly number[][]
}

export interface RankLossSettings {
  readonly posWeight?: number | undefined
  readonly k?: number | undefined
}

/** NDCGLoss2PPScheme's, and the smallest probability. */
const MU = 10
const EPS = 1e-10

export function rankLoss(name: RankLossName, lists: readonly ScoredList[], settings: RankLossSettings): RankLoss {
  const gradients = lists.map(({ logits }) => logits.map(() => 0))
  const { posWeight = 1, k } = settings
  let loss = 0
  if (name === 'Lambda' || name === 'RankNet') return lambdaLoss(lists, gradients, { isWeighted: name === 'Lambda', k })
  if (name === 'ListNet') {
    for (const [list, { logits, labels }] of lists.entries()) {
      const [own, wanted] = [logits, labels].map(logSoftmax)
      for (const [i, value] of own.entries()) {
        const share = Math.exp(wanted[i])
        loss -= (share * value) / lists.length
        gradients[list][i] = (Math.exp(value) - share) / lists.length
      }
    }
    return { loss, gradients }
  }
  const count = lists.reduce((sum, { logits }) => sum + logits.length - (name === 'MarginMSE' ? 1 : 0), 0)
  for (const [list, { logits, labels }] of lists.entries()) {
    for (const [i, logit] of logits.entries()) {
      if (name === 'BinaryCrossEntropy') {
        // softplus(x) − x·y, with the part of the right documents weighed
        const [plus, minus] = [softplus(logit), softplus(-logit)]
        const probability = Math.exp(-minus)
        loss += ((1 - labels[i]) * plus + posWeight * labels[i] * minus) / count
        gradients[list][i] = ((1 - labels[i]) * probability - posWeight * labels[i] * (1 - probability)) / count
      } else if (i > 0) {
        const wanted = labels.length === logits.length ? labels[0] - labels[i] : labels[i - 1]
        const difference = logits[0] - logit - wanted
        loss += difference ** 2 / count
        gradients[list][0] += (2 * difference) / count
        gradients[list][i] -= (2 * difference) / count
      }
    }
  }
  return { loss, gradients }
}

const softplus = (x: number) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)))

function logSoftmax(scores: readonly number[]): number[] {
  const most = Math.max(...scores)
  const sum = scores.reduce((total, score) => total + Math.exp(score - most), 0)
  return scores.map((score) => score - most - Math.log(sum))
}

/** Wang et al. 2018, as LambdaLoss with NDCGLoss2PPScheme and log2; RankNet is the same without weights. */
function lambdaLoss(
  lists: readonly ScoredList[],
  gradients: readonly number[][],
  { isWeighted, k = Number.POSITIVE_INFINITY }: { readonly isWeighted: boolean; readonly k?: number | undefined },
): RankLoss {
  const discount = (place: number) => Math.log2(1 + place)
  const gainOf = (label: number) => 2 ** Math.max(label, 0) - 1
  let [loss, count] = [0, 0]
  for (const [list, { logits, labels }] of lists.entries()) {
    const order = [...logits.keys()].sort((a, b) => logits[b] - logits[a])
    const ideal = labels.map((label) => Math.max(label, 0)).sort((a, b) => b - a)
    const most = ideal.slice(0, k).reduce((sum, label, i) => sum + gainOf(label) / discount(i + 1), 0)
    const gains = order.map((document) => gainOf(labels[document]) / Math.max(most, EPS))
    for (let i = 0; i < Math.min(order.length, k); i++) {
      for (let j = 0; j < Math.min(order.length, k); j++) {
        const [a, b] = [order[i], order[j]]
        if (!(labels[a] > labels[b])) continue
        count++
        const distance = Math.abs(i - j)
        const delta = Math.abs(1 / discount(distance) - 1 / discount(distance + 1))
        const lambda = Math.abs(1 / discount(i + 1) - 1 / discount(j + 1))
        const weight = isWeighted ? (MU * delta + lambda) * Math.abs(gains[i] - gains[j]) : 1
        const probability = Math.exp(-softplus(logits[b] - logits[a]))
        const weighted = Math.max(probability, EPS) ** weight
        loss -= Math.log2(Math.max(weighted, EPS))
        if (probability < EPS || weighted < EPS) continue
        const slope = (-weight * (1 - probability)) / Math.LN2
        gradients[list][a] += slope
        gradients[list][b] -= slope
      }
    }
  }
  // Without a pair there is nothing to learn: the mean there is not a number.
  const share = 1 / Math.max(count, 1)
  return { loss: loss * share, gradients: gradients.map((list) => list.map((value) => value * share)) }
}
