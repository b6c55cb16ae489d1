// Mines negatives: documents that look like answers to a question and are none. As mine_hard_negatives of
// sentence-transformers does: https://sbert.net/docs/package_reference/util.html

import { ConfigError, DataError } from '../../core/base/errors.js'
import { Random } from '../../core/base/random.js'
import { best, similarities } from './nearest.js'

export type MinedForm = 'triplet' | 'n-tuple' | 'labeled-list'

/** Which documents are negatives, by the names of sentence-transformers. */
export interface MineSettings {
  /**
   * How many of the nearest documents are passed over, as they may be right too.
   * @range an integer of at least 0
   * @default 0
   */
  readonly rangeMin?: number | undefined
  /**
   * How many of the nearest documents are looked at. Default: as many as are needed, and ten times that with a margin
   * or `maxScore`.
   * @range an integer of at least 1
   */
  readonly rangeMax?: number | undefined
  /**
   * Documents with a higher score are passed over.
   * @range a finite number
   */
  readonly maxScore?: number | undefined
  /**
   * Documents with a lower score are passed over.
   * @range a finite number
   */
  readonly minScore?: number | undefined
  /**
   * How much lower than that of the right document the score must be.
   * @range a finite number
   */
  readonly absoluteMargin?: number | undefined
  /**
   * The same as a share of the right document's score: with 0.05, at most 95 % of it.
   * @range a finite number
   */
  readonly relativeMargin?: number | undefined
  /**
   * Negatives for a pair.
   * @range an integer of at least 1
   * @default 3
   */
  readonly numNegatives?: number | undefined
  /**
   * Takes the nearest ones, or draws among those that are left.
   * @default top
   */
  readonly samplingStrategy?: 'top' | 'random' | undefined
  /**
   * A record for each negative; one for each pair, without pairs that have too few; or one with a list of documents and
   * labels.
   * @default triplet
   */
  readonly form?: MinedForm | undefined
  /**
   * Writes the scores too, for losses that learn from a teacher.
   * @default false
   */
  readonly outputScores?: boolean | undefined
}

/** How many candidates each rule passed over, and pairs for which too few were left. */
export type Dropped = Record<'absoluteMargin' | 'relativeMargin' | 'maxScore' | 'minScore' | 'pairs', number>

export interface Mined {
  readonly records: Record<string, unknown>[]
  readonly dropped: Dropped
}

/** A question and the places of its documents. */
interface Asked {
  readonly text: string
  readonly vector: Float32Array
  readonly positives: readonly number[]
  /** Further documents that are right, such as those that contain a passage that is. */
  readonly alsoRight?: readonly number[] | undefined
}

export interface Minable {
  readonly queries: readonly Asked[]
  /** Pairs with the same question, at most. */
  readonly mostPositives: number
  readonly documents: readonly string[]
  /** Vectors of the documents, or of their parts. */
  readonly vectors: readonly Float32Array[]
  /** For each vector its document, and the text that becomes the negative. Default: the documents themselves. */
  readonly parts?: readonly { readonly document: number; readonly text: string }[] | undefined
  /** Documents that are never mined. */
  readonly kept: ReadonlySet<number>
  /** Scores by a reranker, which replace those of the vectors if a margin or `maxScore` is set. */
  readonly rerank?: ((query: string, documents: readonly string[]) => Promise<readonly number[]>) | undefined
}

interface Candidate {
  readonly document: number
  readonly text: string
  readonly score: number
}

export async function mine(given: Minable, settings: MineSettings, seed: number): Promise<Mined> {
  const { queries, documents, vectors, parts, mostPositives, kept, rerank } = given
  const { rangeMin = 0, numNegatives = 3, samplingStrategy = 'top', absoluteMargin, relativeMargin } = settings
  const { maxScore, minScore } = settings
  const isFiltered = [absoluteMargin, relativeMargin, maxScore].some((value) => value !== undefined)
  const { rangeMax = rangeMin + numNegatives * (isFiltered ? 10 : 1) + mostPositives } = settings
  if (rangeMax - rangeMin < numNegatives) {
    const [expected, got] = [`at least rangeMin + numNegatives, ${rangeMin + numNegatives}`, `${rangeMax}`]
    throw new ConfigError({ where: 'rangeMax', what: 'fewer documents than negatives', expected, got })
  }
  const infinite = vectors.findIndex((vector) => !vector.every(Number.isFinite))
  if (infinite !== -1) {
    const what = 'the vector of a document is not finite'
    throw new DataError({ where: documents[parts?.[infinite].document ?? infinite].slice(0, 100), what })
  }
  const random = new Random(seed, 'mine')
  const dropped: Dropped = { absoluteMargin: 0, relativeMargin: 0, maxScore: 0, minScore: 0, pairs: 0 }
  const records: Record<string, unknown>[] = []
  const ofDocuments = new Float32Array(documents.length)
  const bestParts = new Int32Array(documents.length)
  for (const { query, scores } of similarities(
    queries.map(({ vector }) => vector),
    vectors,
  )) {
    const { text: anchor, positives, alsoRight = [] } = queries[query]
    ofDocuments.fill(Number.NEGATIVE_INFINITY)
    for (let i = 0; i < scores.length; i++) {
      const document = parts?.[i].document ?? i
      if (scores[i] <= ofDocuments[document]) continue
      ofDocuments[document] = scores[i]
      bestParts[document] = i
    }
    let wanted = positives.map((place) => ofDocuments[place])
    for (const place of [...kept, ...alsoRight])
      if (!positives.includes(place)) ofDocuments[place] = Number.NEGATIVE_INFINITY
    const near = best(ofDocuments, rangeMax + mostPositives).filter((place) => {
      return !positives.includes(place) && ofDocuments[place] > Number.NEGATIVE_INFINITY
    })
    let candidates = near.map((document): Candidate => {
      const text = parts?.[bestParts[document]].text ?? documents[document]
      return { document, text, score: ofDocuments[document] }
    })
    if (rerank !== undefined && isFiltered) {
      const texts = [...positives.map((place) => documents[place]), ...candidates.map(({ text }) => text)]
      const found = await rerank(anchor, texts)
      wanted = found.slice(0, positives.length)
      candidates = candidates.map((candidate, i) => ({ ...candidate, score: found[positives.length + i] }))
      candidates.sort((a, b) => b.score - a.score)
    }
    // The right document that is hardest to find.
    const right = Math.min(...wanted)
    const keep = (rule: keyof Dropped, isKept: (score: number) => boolean) => {
      const left = candidates.filter(({ score }) => isKept(score))
      dropped[rule] += candidates.length - left.length
      candidates = left
    }
    // Margins are added in the precision of the scores, as there.
    const { fround, abs } = Math
    if (absoluteMargin !== undefined) keep('absoluteMargin', (score) => fround(score + absoluteMargin) <= right)
    if (relativeMargin !== undefined) {
      keep('relativeMargin', (score) => score <= fround(right - fround(abs(right) * relativeMargin)))
    }
    if (maxScore !== undefined) keep('maxScore', (score) => score <= maxScore)
    if (minScore !== undefined) keep('minScore', (score) => score >= minScore)
    const left = candidates.slice(rangeMin, rangeMax)
    const chosen =
      samplingStrategy === 'top' || left.length <= numNegatives
        ? left.slice(0, numNegatives)
        : drawn(left.length, numNegatives, random).map((place) => left[place])
    for (const [i, place] of positives.entries()) {
      const found = recordsOf({ anchor, positive: documents[place], score: wanted[i] }, chosen, settings)
      if (found.length === 0) dropped.pairs++
      records.push(...found)
    }
  }
  return { records, dropped }
}

function drawn(length: number, count: number, random: Random): number[] {
  const places = random.shuffle([...Array(length).keys()]).slice(0, count)
  return places.sort((a, b) => a - b)
}

function recordsOf(
  { anchor, positive, score }: { readonly anchor: string; readonly positive: string; readonly score: number },
  negatives: readonly Candidate[],
  { form = 'triplet', numNegatives = 3, outputScores = false }: MineSettings,
): Record<string, unknown>[] {
  const scores = (of: readonly Candidate[]) =>
    outputScores ? { scores: [score, ...of.map(({ score }) => score)] } : {}
  if (negatives.length === 0 || (form === 'n-tuple' && negatives.length < numNegatives)) return []
  if (form === 'triplet') {
    return negatives.map((negative) => ({ anchor, positive, negative: negative.text, ...scores([negative]) }))
  }
  if (form === 'n-tuple') {
    const numbered = negatives.map(({ text }, i) => [`negative_${i + 1}`, text] as const)
    return [{ anchor, positive, ...Object.fromEntries(numbered), ...scores(negatives) }]
  }
  const labels = outputScores ? scores(negatives) : { labels: [1, ...negatives.map(() => 0)] }
  return [{ anchor, positive: [positive, ...negatives.map(({ text }) => text)], ...labels }]
}
