// Exact search by vectors: products in blocks of queries, and the best of a list.

import { MismatchError } from '../../core/base/errors.js'
import { gemm } from '../../core/kernels/index.js'

/** Scores in one block: few enough for memory, enough for fast products. */
const BLOCK = 1 << 24

/** Gives for each query, in order, its products with all documents. The list is used again for later queries. */
export function* similarities(
  queries: readonly Float32Array[],
  documents: readonly Float32Array[],
): Generator<{ readonly query: number; readonly scores: Float32Array }> {
  const [n, k] = [documents.length, documents[0].length]
  const other = [...queries, ...documents].find(({ length }) => length !== k)
  if (other !== undefined) {
    throw new MismatchError({ where: 'vectors', what: 'of different sizes', expected: `${k}`, got: `${other.length}` })
  }
  const b = stacked(documents, k)
  const rows = Math.max(1, Math.min(64, Math.floor(BLOCK / n)))
  for (let from = 0; from < queries.length; from += rows) {
    const block = queries.slice(from, from + rows)
    const out = new Float32Array(block.length * n)
    gemm({ m: block.length, n, k, a: stacked(block, k), b, transposeB: true, out })
    for (let i = 0; i < block.length; i++) yield { query: from + i, scores: out.subarray(i * n, (i + 1) * n) }
  }
}

function stacked(vectors: readonly Float32Array[], width: number): Float32Array {
  const all = new Float32Array(vectors.length * width)
  for (const [i, vector] of vectors.entries()) all.set(vector, i * width)
  return all
}

/** The places of the k highest scores, the highest first. Of equal scores, the earlier place comes first. */
export function best(scores: ArrayLike<number>, k: number): number[] {
  const found: number[] = []
  for (let i = 0; i < scores.length; i++) {
    if (found.length >= k && !(scores[i] > scores[found[k - 1]])) continue
    let [low, high] = [0, found.length]
    while (low < high) {
      const middle = (low + high) >> 1
      if (scores[found[middle]] >= scores[i]) low = middle + 1
      else high = middle
    }
    found.splice(low, 0, i)
    if (found.length > k) found.pop()
  }
  return found
}

/** The rank of a document among all, from 1. Of equal scores, the earlier place comes first. */
export function rankOf(scores: ArrayLike<number>, document: number): number {
  const own = scores[document]
  let rank = 1
  for (let i = 0; i < scores.length; i++) if (scores[i] > own || (scores[i] === own && i < document)) rank++
  return rank
}
