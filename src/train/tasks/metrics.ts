// Metrics of rankings (recall, MRR, correlations) and of predicted labels: accuracy, the F1 score of each label and
// their mean (scikit-learn's `macro`), and the area under the curve.

export function meansOf(values: Readonly<Record<string, readonly number[]>>): Record<string, number> {
  return Object.fromEntries(
    Object.entries(values).map(([name, list]) => [name, list.reduce((sum, value) => sum + value, 0) / list.length]),
  )
}

/**
 * For query i, whose partner is candidate i: recall@k is 1 if the partner is among the best k, and mrr is 1 / its
 * place. Among equal scores the partner comes last. There may be more candidates than queries.
 *
 * @param isLeftOut whether a candidate has no place for a query, such as a copy of its partner
 */
export function retrievalValues(
  count: number,
  score: (query: number, candidate: number) => number,
  ks: readonly number[],
  isLeftOut: (query: number, candidate: number) => boolean = () => false,
  candidates = count,
): Record<string, number[]> {
  const places = Array.from({ length: count }, (_, query) => {
    const partnerScore = score(query, query)
    let place = 1
    for (let candidate = 0; candidate < candidates; candidate++)
      if (candidate !== query && score(query, candidate) >= partnerScore && !isLeftOut(query, candidate)) place++
    return place
  })
  return {
    ...Object.fromEntries(ks.map((k) => [`recall@${k}`, places.map((place) => (place <= k ? 1 : 0))])),
    mrr: places.map((place) => 1 / place),
  }
}

export function pearson(a: readonly number[], b: readonly number[]): number {
  const mean = (list: readonly number[]) => list.reduce((sum, value) => sum + value, 0) / list.length
  const [x, y] = [mean(a), mean(b)]
  let [product, squaresOfA, squaresOfB] = [0, 0, 0]
  for (let i = 0; i < a.length; i++) {
    product += (a[i] - x) * (b[i] - y)
    squaresOfA += (a[i] - x) ** 2
    squaresOfB += (b[i] - y) ** 2
  }
  return product / Math.sqrt(squaresOfA * squaresOfB)
}

/** Spearman's correlation: Pearson's of the ranks. Equal values share their mean rank. */
export function spearman(a: readonly number[], b: readonly number[]): number {
  return pearson(placesOf(a), placesOf(b))
}

function placesOf(values: readonly number[]): number[] {
  const order = [...values.keys()].sort((i, j) => values[i] - values[j])
  const places: number[] = Array(values.length)
  for (let from = 0; from < order.length; ) {
    let to = from + 1
    while (to < order.length && values[order[to]] === values[order[from]]) to++
    for (let i = from; i < to; i++) places[order[i]] = (from + to - 1) / 2
    from = to
  }
  return places
}

export function classificationMetrics(truth: readonly number[], predicted: readonly number[]) {
  const [actual, told] = [truth, predicted].map((labels) => labels.map((label) => new Set([label])))
  return severalMetrics(actual, told, [...truth, ...predicted].reduce((most, label) => Math.max(most, label), 0) + 1)
}

/** `accuracy` counts records with exactly the right labels. A label that is never true nor predicted scores NaN. */
export function severalMetrics(
  truth: readonly ReadonlySet<number>[],
  predicted: readonly ReadonlySet<number>[],
  count: number,
) {
  const [hits, there, told] = [0, 1, 2].map(() => new Float64Array(count))
  let right = 0
  truth.forEach((labels, row) => {
    const guesses = predicted[row]
    for (const label of labels) {
      there[label]++
      if (guesses.has(label)) hits[label]++
    }
    for (const label of guesses) told[label]++
    if (labels.size === guesses.size && [...labels].every((label) => guesses.has(label))) right++
  })
  const scores = Array.from({ length: count }, (_, label) => (2 * hits[label]) / (there[label] + told[label]))
  const known = scores.filter((score) => !Number.isNaN(score))
  return { accuracy: right / truth.length, f1: known.reduce((sum, score) => sum + score, 0) / known.length, scores }
}

/**
 * Computes ROC AUC: the chance that a record with the label has a higher score than one without. Ties count half. It
 * follows from a sum of ranks, like Mann and Whitney's U.
 */
export function areaUnderCurve(truth: readonly boolean[], scores: readonly number[]): number {
  const ranks = placesOf(scores).filter((_, i) => truth[i])
  const positives = ranks.length
  const sum = ranks.reduce((total, rank) => total + rank, 0) - (positives * (positives - 1)) / 2
  return sum / (positives * (truth.length - positives))
}
