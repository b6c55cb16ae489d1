// How well things are ordered: the place of the right one, and how far two orders agree. How well labels are predicted:
// accuracy, the F1 score of each label and their mean (scikit-learn's `macro`), and the area under the curve.

export function meansOf(values: Readonly<Record<string, readonly number[]>>): Record<string, number> {
  return Object.fromEntries(
    Object.entries(values).map(([name, own]) => [name, own.reduce((sum, value) => sum + value, 0) / own.length]),
  )
}

/** For each query: 1 if its partner, candidate i, is among the best k; and 1 / place. The partner is last of equals. */
export function retrievalValues(
  count: number,
  score: (query: number, candidate: number) => number,
  ks: readonly number[],
): Record<string, number[]> {
  const places = Array.from({ length: count }, (_, query) => {
    const own = score(query, query)
    let place = 1
    for (let other = 0; other < count; other++) if (other !== query && score(query, other) >= own) place++
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
  let [product, own, other] = [0, 0, 0]
  for (let i = 0; i < a.length; i++) {
    product += (a[i] - x) * (b[i] - y)
    own += (a[i] - x) ** 2
    other += (b[i] - y) ** 2
  }
  return product / Math.sqrt(own * other)
}

/** Spearman's: Pearson's of the places, equal values sharing the mean of theirs. */
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
  const [own, told] = [truth, predicted].map((labels) => labels.map((label) => new Set([label])))
  return severalMetrics(own, told, [...truth, ...predicted].reduce((most, label) => Math.max(most, label), 0) + 1)
}

/** `accuracy` counts records whose labels are all right; a score is NaN for a label neither there nor predicted. */
export function severalMetrics(
  truth: readonly ReadonlySet<number>[],
  predicted: readonly ReadonlySet<number>[],
  count: number,
) {
  const [hits, there, told] = [0, 1, 2].map(() => new Float64Array(count))
  let right = 0
  truth.forEach((own, row) => {
    const other = predicted[row]
    for (const label of own) {
      there[label]++
      if (other.has(label)) hits[label]++
    }
    for (const label of other) told[label]++
    if (own.size === other.size && [...own].every((label) => other.has(label))) right++
  })
  const scores = Array.from({ length: count }, (_, label) => (2 * hits[label]) / (there[label] + told[label]))
  const known = scores.filter((score) => !Number.isNaN(score))
  return { accuracy: right / truth.length, f1: known.reduce((sum, score) => sum + score, 0) / known.length, scores }
}

/** The chance that a record with the label scores higher than one without; ties count half (scikit-learn). */
export function areaUnderCurve(truth: readonly boolean[], scores: readonly number[]): number {
  const order = [...scores.keys()].sort((a, b) => scores[a] - scores[b])
  let [sum, below] = [0, 0]
  for (let from = 0; from < order.length; ) {
    let to = from
    let [own, others] = [0, 0]
    for (; to < order.length && scores[order[to]] === scores[order[from]]; to++) truth[order[to]] ? own++ : others++
    sum += own * (below + others / 2)
    below += others
    from = to
  }
  return sum / (below * (truth.length - below))
}
