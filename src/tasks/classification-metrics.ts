// How well labels are predicted: accuracy, and the F1 score of each label, averaged over the labels (scikit-learn's `macro`).

/** @param truth number of the label of each example; `predicted` likewise */
export function classificationMetrics(
  truth: readonly number[],
  predicted: readonly number[],
): { accuracy: number; f1: number } {
  const labels = [...new Set([...truth, ...predicted])]
  const count = (accepts: (truth: number, predicted: number) => boolean) =>
    truth.reduce((sum, label, i) => sum + (accepts(label, predicted[i]) ? 1 : 0), 0)
  const scores = labels.map((label) => {
    const hits = count((a, b) => a === label && b === label)
    return (2 * hits) / (count((a) => a === label) + count((_, b) => b === label))
  })
  return {
    accuracy: count((a, b) => a === b) / truth.length,
    f1: scores.reduce((sum, score) => sum + score, 0) / labels.length,
  }
}
