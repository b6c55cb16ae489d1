// How well labels are predicted: accuracy, the F1 score of each label and their mean (scikit-learn's `macro`), and the
// area under the curve.

export function classificationMetrics(truth: readonly number[], predicted: readonly number[]) {
  const [own, told] = [truth, predicted].map((labels) => labels.map((label) => new Set([label])))
  return severalMetrics(own, told, Math.max(0, ...truth, ...predicted) + 1)
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
  return {
    accuracy: right / truth.length,
    f1: known.reduce((sum, score) => sum + score, 0) / known.length,
    scores,
  }
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
