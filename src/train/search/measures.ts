// Measures of a ranking, as InformationRetrievalEvaluator of sentence-transformers computes them (AP@k divides by the
// smaller of k and the number of relevant documents), and as ir_measures does without a cut. Only nDCG uses grades.

export interface RankedDocument {
  /** From 1. */
  readonly rank: number
  readonly grade: number
}

/** @param ranked the documents with a grade above 0, wherever they are ranked; one of them has at least grade 1 */
export function measuresOf(ranked: readonly RankedDocument[], ks: readonly number[]): Record<string, number> {
  const relevant = ranked.filter(({ grade }) => grade >= 1).map(({ rank }) => rank)
  relevant.sort((a, b) => a - b)
  const within = (k: number) => relevant.filter((rank) => rank <= k)
  const precisions = (k: number) => within(k).reduce((sum, rank, i) => sum + (i + 1) / rank, 0)
  const ideal = ranked.map(({ grade }) => grade).sort((a, b) => b - a)
  const discounted = (grade: number, rank: number) => grade / Math.log2(rank + 1)
  const gain = (k: number) =>
    ranked.reduce((sum, { grade, rank }) => (rank <= k ? sum + discounted(grade, rank) : sum), 0) /
    ideal.slice(0, k).reduce((sum, grade, i) => sum + discounted(grade, i + 1), 0)
  const found: Record<string, number> = {}
  for (const k of ks) {
    found[`recall@${k}`] = within(k).length / relevant.length
    found[`precision@${k}`] = within(k).length / k
    found[`mrr@${k}`] = relevant[0] <= k ? 1 / relevant[0] : 0
    found[`map@${k}`] = precisions(k) / Math.min(k, relevant.length)
    found[`ndcg@${k}`] = gain(k)
  }
  found.map = precisions(Number.POSITIVE_INFINITY) / relevant.length
  return found
}
