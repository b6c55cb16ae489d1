// Vectors, labels and scores of texts.

import type { AdapterChoice, AdapterSession } from '../../api/index.js'
import { UnsupportedError } from '../../core/base/errors.js'
import { seconds } from '../adapters.js'
import { jsonResponse } from '../bodies/pieces.js'
import type { Fields } from '../fields.js'
import { invalid } from '../http.js'
import { checkTexts } from '../lengths.js'
import type { Call } from '../route.js'
import type { Serving } from '../serving.js'

type Read = (
  session: AdapterSession,
  fields: Fields,
  asked: { adapter: AdapterChoice; model: string; signal: AbortSignal },
) => Promise<object>

export function readingsBy(read: Read) {
  return async (serving: Serving, call: Call): Promise<Response> => {
    const { fields, request } = call
    const { input, query, documents, text_1, text_2 } = fields
    const param = ['input', 'documents', 'text_2'].find((name) => fields[name] !== undefined)!
    checkTexts([input, query, documents, text_1, text_2].flat().filter((text) => text !== undefined) as string[], param)
    const { adapter, signal, leave } = await serving.enter(call, request.signal)
    try {
      return jsonResponse(await read(serving.session, fields, { adapter, model: serving.modelOf(call), signal }))
    } finally {
      leave()
    }
  }
}

const textsOf = ({ input }: Fields): string[] => [input as string | string[]].flat()

/** Counts the tokens that were read: the rest of a long text is cut off. */
function usageOf({ model }: AdapterSession, texts: readonly string[], maxLength = model.contextLength): object {
  const count = (text: string) => model.tokenizer?.encodeTexts(text, undefined, maxLength ?? text.length + 8).ids.length
  const tokens = texts.reduce((sum, text) => sum + (count(text) ?? 0), 0)
  return { prompt_tokens: tokens, total_tokens: tokens }
}

export const embeddings: Read = async (session, fields, { adapter, model, signal }) => {
  const texts = textsOf(fields)
  const dimensions = fields.dimensions as number | undefined
  const type = fields.input_type as string | undefined
  const inputType = type === undefined ? undefined : type.endsWith('query') ? 'query' : 'document'
  const vectors = await session.embed(texts, { adapter, inputType, dimensions, signal })
  const form = (vector: Float32Array) => (fields.encoding_format === 'base64' ? base64Of(vector) : [...vector])
  const data = vectors.map((vector, index) => ({ object: 'embedding', index, embedding: form(vector) }))
  return { object: 'list', data, model, usage: usageOf(session, texts, session.model.sentence.maxLength) }
}

function base64Of(vector: Float32Array): string {
  const bytes = new DataView(new ArrayBuffer(vector.length * 4))
  vector.forEach((value, i) => void bytes.setFloat32(4 * i, value, true))
  let text = ''
  for (const byte of new Uint8Array(bytes.buffer)) text += String.fromCharCode(byte)
  return btoa(text)
}

/** Scores of pairs of texts: of a model with one label, or else the cosine of their vectors. */
async function scorePairs(
  session: AdapterSession,
  pairs: readonly { text: string; textPair: string }[],
  { adapter, signal }: { adapter: AdapterChoice; signal: AbortSignal },
): Promise<number[]> {
  try {
    const results = await session.classify(pairs, { adapter: adapter as string | null, signal })
    const hasMore = results.some(({ logits }) => logits.length > 1)
    if (hasMore) throw invalid('model', 'it has several labels, and no score for a pair')
    return results.map(({ logits: [logit] }) => 1 / (1 + Math.exp(-logit)))
  } catch (error) {
    if (!(error instanceof UnsupportedError)) throw error
  }
  const texts = [...new Set(pairs.flatMap(({ text, textPair }) => [text, textPair]))]
  const vectors = await session.embed(texts, { adapter, signal })
  const vectorOf = new Map(texts.map((text, i) => [text, vectors[i]]))
  return pairs.map(({ text, textPair }) => {
    const second = vectorOf.get(textPair)!
    return vectorOf.get(text)!.reduce((sum, value, i) => sum + value * second[i], 0)
  })
}

export const scoring: Read = async (session, { text_1, text_2 }, asked) => {
  const [firsts, others] = [text_1, text_2].map((given) => [given as string | string[]].flat())
  const isMatched = firsts.length === 1 || firsts.length === others.length
  if (!isMatched) throw invalid('text_1', 'one text, or as many as in text_2')
  const pairs = others.map((textPair, i) => ({ text: firsts[firsts.length === 1 ? 0 : i], textPair }))
  const scores = await scorePairs(session, pairs, asked)
  const data = scores.map((score, index) => ({ index, object: 'score', score }))
  const usage = usageOf(session, [...firsts, ...others])
  return { id: `score-${crypto.randomUUID()}`, object: 'list', created: seconds(), model: asked.model, data, usage }
}

/** In the form of Cohere and Jina, as vLLM has it. */
export const reranking: Read = async (session, { query, documents, top_n, return_documents }, asked) => {
  const texts = documents as readonly string[]
  const scores = await scorePairs(
    session,
    texts.map((textPair) => ({ text: query as string, textPair })),
    asked,
  )
  const results = scores
    .map((relevance_score, index) => {
      return { index, ...(return_documents !== false && { document: { text: texts[index] } }), relevance_score }
    })
    .sort((a, b) => b.relevance_score - a.relevance_score)
    .slice(0, top_n as number | undefined)
  const usage = usageOf(session, [query as string, ...texts])
  return { id: `rerank-${crypto.randomUUID()}`, model: asked.model, results, usage }
}

export const classification: Read = async (session, fields, { adapter, model, signal }) => {
  const texts = textsOf(fields)
  const results = await session.classify(texts, {
    adapter: adapter as string | null,
    topK: Number.MAX_SAFE_INTEGER,
    signal,
  })
  const data = results.map(({ label, labels, logits }, index) => {
    // The likeliest label comes first in `labels`, but vLLM has the order of the logits.
    const places = [...logits.keys()].sort((a, b) => logits[b] - logits[a])
    const probs = labels.map((_, i) => labels[places.indexOf(i)].score)
    return { index, label, probs, num_classes: labels.length }
  })
  const id = `classify-${crypto.randomUUID()}`
  return { id, object: 'list', created: seconds(), model, data, usage: usageOf(session, texts) }
}
