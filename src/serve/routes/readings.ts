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
    const texts = [input, query, documents, text_1, text_2].flat().filter((text) => text !== undefined)
    checkTexts(
      texts.map((text) => (typeof text === 'string' ? text : (text as { text: string }).text)),
      param,
    )
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

export const scoring: Read = async (session, { text_1, text_2 }, asked) => {
  const [firsts, others] = [text_1, text_2].map((given) => [given as string | string[]].flat())
  const isMatched = firsts.length === 1 || firsts.length === others.length
  if (!isMatched) throw invalid('text_1', 'one text, or as many as in text_2')
  const pairs = others.map((textPair, i) => ({ text: firsts[firsts.length === 1 ? 0 : i], textPair }))
  const { adapter, signal } = asked
  const scores: number[] = Array(pairs.length)
  for (const query of new Set(pairs.map(({ text }) => text))) {
    const places = [...pairs.keys()].filter((i) => pairs[i].text === query)
    const documents = places.map((i) => pairs[i].textPair)
    for (const { index, score } of await ranked(session, query, documents, { adapter, signal })) {
      scores[places[index]] = score
    }
  }
  const data = scores.map((score, index) => ({ index, object: 'score', score }))
  const usage = usageOf(session, [...firsts, ...others])
  return { id: `score-${crypto.randomUUID()}`, object: 'list', created: seconds(), model: asked.model, data, usage }
}

/** One answer with the fields of Cohere and of Jina, as vLLM has it. Cohere's second version returns no texts. */
export const rerankingOf =
  (version: 1 | 2): Read =>
  async (session, { query, documents, top_n, return_documents = version === 1 }, { adapter, model, signal }) => {
    const texts = (documents as readonly (string | { text: string })[]).map((document) =>
      typeof document === 'string' ? document : document.text,
    )
    const topN = top_n as number | undefined
    const best = await ranked(session, query as string, texts, { adapter, signal, topN })
    const results = best.map(({ index, score: relevance_score }) => {
      return { index, ...(return_documents === true && { document: { text: texts[index] } }), relevance_score }
    })
    const usage = usageOf(session, [query as string, ...texts])
    const meta = { api_version: { version: String(version) }, billed_units: { search_units: 1 } }
    return { id: `rerank-${crypto.randomUUID()}`, model, results, usage, meta }
  }

async function ranked(
  session: AdapterSession,
  query: string,
  documents: readonly string[],
  { adapter, ...options }: { adapter: AdapterChoice; signal: AbortSignal; topN?: number | undefined },
) {
  return session.rerank(query, documents, { ...options, adapter: adapter as string | null }).catch((error: unknown) => {
    if (error instanceof UnsupportedError && error.where === 'model') {
      throw invalid('model', 'it has several labels, and no score for a pair')
    }
    throw error
  })
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
