// Answers /v1/embeddings, and /classify in vLLM's form.

import type { AdapterSession } from '../index/session.js'
import type { AdapterChoice } from '../infer/adapters/choice.js'
import { seconds } from './adapters.js'
import type { Fields } from './fields.js'
import { HttpError } from './http.js'

const textsOf = ({ input }: Fields): string[] => [input as string | string[]].flat()

/** Counts the tokens that were read: the rest of a long text is cut off. */
function usageOf({ model }: AdapterSession, texts: readonly string[], maxLength = model.contextLength): object {
  const count = (text: string) => model.tokenizer?.encodeTexts(text, undefined, maxLength ?? text.length + 8).ids.length
  const tokens = texts.reduce((sum, text) => sum + (count(text) ?? 0), 0)
  return { prompt_tokens: tokens, total_tokens: tokens }
}

/** Answers a request with its fields and what the server has found for it. */
export type Read = (
  session: AdapterSession,
  fields: Fields,
  asked: { adapter: AdapterChoice; model: string; signal: AbortSignal },
) => Promise<object>

export const embeddings: Read = async (session, fields, { adapter, model, signal }) => {
  const texts = textsOf(fields)
  const dimensions = fields.dimensions as number | undefined
  const vectors = await session.embed(texts, { adapter, dimensions, signal })
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

export const classification: Read = async (session, fields, { adapter, model, signal }) => {
  if (typeof adapter === 'object' && adapter !== null) {
    throw new HttpError(400, 'classify takes no mix', { param: 'adapter' })
  }
  const texts = textsOf(fields)
  const labels = session.model.config.id2label as Readonly<Record<string, string>> | undefined
  const results = await session.classify(texts, { adapter, topK: Number.MAX_SAFE_INTEGER, signal })
  const data = results.map(({ label, labels: all }, index) => {
    const order = labels && Object.values(labels)
    const sorted = order === undefined ? all : [...all].sort((a, b) => order.indexOf(a.label) - order.indexOf(b.label))
    return { index, label, probs: sorted.map(({ score }) => score), num_classes: all.length }
  })
  const id = `classify-${crypto.randomUUID()}`
  return { id, object: 'list', created: seconds(), model, data, usage: usageOf(session, texts) }
}
