// Ranks documents for a question: by a head with one logit (a cross-encoder), or else by the cosine of vectors.

import { UnsupportedError } from '../../core/base/errors.js'
import { checkArgument, checkOptions, listOf, STRING } from '../../core/base/options.js'
import { RERANK_OPTIONS } from '../gen/options.js'
import type { AdapterSession, RankedDocument, RerankOptions } from '../session.js'

export async function rerank(
  session: AdapterSession,
  query: string,
  documents: readonly string[],
  options: RerankOptions = {},
): Promise<RankedDocument[]> {
  checkArgument(query, STRING, 'query')
  checkArgument(documents, listOf(STRING), 'documents')
  checkOptions(options, 'rerank', RERANK_OPTIONS)
  const { topN, ...how } = options
  const pairs = documents.map((textPair) => ({ text: query, textPair }))
  const scores = documents.length === 0 ? [] : await scorePairs(session, pairs, how)
  const order = [...scores.keys()].sort((a, b) => scores[b] - scores[a])
  return order.slice(0, topN).map((index) => ({ index, score: scores[index] }))
}

/** @internal */
export async function scorePairs(
  session: AdapterSession,
  pairs: readonly { readonly text: string; readonly textPair: string }[],
  how: Omit<RerankOptions, 'topN'>,
): Promise<number[]> {
  try {
    const results = await session.classify(pairs, how)
    if (results.some(({ logits }) => logits.length > 1)) {
      const got = `${results[0].logits.length} labels`
      throw new UnsupportedError({ where: 'model', what: 'no score for a pair of texts', expected: 'one label', got })
    }
    // Most models leave it to sentence-transformers, which takes the sigmoid of a single logit.
    const { hasRawScores } = session.model.sentence
    return results.map(({ logits: [logit] }) => (hasRawScores ? logit : 1 / (1 + Math.exp(-logit))))
  } catch (error) {
    if (!(error instanceof UnsupportedError) || error.where === 'model') throw error
  }
  const embedAll = async (texts: readonly string[], inputType: 'query' | 'document') => {
    const unique = [...new Set(texts)]
    const vectors = await session.embed(unique, { ...how, inputType })
    return new Map(unique.map((text, i) => [text, vectors[i]]))
  }
  const queries = await embedAll(
    pairs.map(({ text }) => text),
    'query',
  )
  const documents = await embedAll(
    pairs.map(({ textPair }) => textPair),
    'document',
  )
  return pairs.map(({ text, textPair }) => {
    const second = documents.get(textPair)!
    return queries.get(text)!.reduce((sum, value, i) => sum + value * second[i], 0)
  })
}
