// Ollama's routes, for editors and agents that speak no other form.

import { jsonResponse } from '../bodies/pieces.js'
import type { Fields } from '../fields.js'
import { loadedLine, OLLAMA, OLLAMA_CHAT, OLLAMA_TEXT } from '../forms/ollama.js'
import { eventStream } from '../http.js'
import type { Call } from '../route.js'
import type { Serving } from '../serving.js'
import { shortened } from '../shortened.js'
import { embeddings, readingsBy } from './readings.js'
import { encodeAsked, textsIn } from './texts.js'

/** The version of Ollama whose form is spoken here: editors refuse versions before the fields that they need. */
const OLLAMA_VERSION = '0.13.0'
const FOREVER = '2318-01-01T00:00:00Z'

interface Listed {
  readonly data: readonly { readonly id: string; readonly created: number }[]
}

export const ollamaVersion = () => Response.json({ version: OLLAMA_VERSION })

/** `name` and `name:latest` are one model, and older clients write `name` for `model`. */
async function named({ registry, names }: Serving, { fields, caller }: Call): Promise<Fields> {
  const { name, model: given = name ?? names[0], ...others } = fields
  const asked = given as string
  const isWhole = !asked.endsWith(':latest') || (await registry.has(asked, caller))
  return { ...others, model: isWhole ? asked : asked.slice(0, -':latest'.length) }
}

const texts = textsIn(OLLAMA_TEXT)
const chat = textsIn(OLLAMA_CHAT, {
  async shorten(serving, call, asked) {
    if (call.fields.truncate === false) return asked
    return shortened(serving.session.model, asked, (shorter) => encodeAsked(serving, call, shorter))
  },
})

/** Without messages or a prompt, a request only loads the model. */
async function written(serving: Serving, call: Call, isChat: boolean): Promise<Response> {
  const fields = await named(serving, call)
  const { messages, prompt = '', images } = fields
  const isEmpty = isChat ? (messages as readonly object[]).length === 0 : prompt === '' && images === undefined
  if (!isEmpty) return (isChat ? chat : texts)(serving, Object.assign(call, { fields }))
  await requireModel(serving, call, fields)
  return Response.json(loadedLine(fields.model as string, isChat))
}

export const ollamaChat = (serving: Serving, call: Call) => written(serving, call, true)
export const ollamaText = (serving: Serving, call: Call) => written(serving, call, false)

/** @throws HttpError if there is no such model */
async function requireModel({ registry }: Serving, { caller }: Call, fields: Fields): Promise<void> {
  const { end } = await registry.choose(fields, caller)
  end()
}

export async function pull(serving: Serving, call: Call): Promise<Response> {
  await requireModel(serving, call, await named(serving, call))
  const success = { status: 'success' }
  if (call.fields.stream === false) return Response.json(success)
  const write = async ({ send }: { send(event: object): void }) => {
    send({ status: 'pulling manifest' })
    send(success)
  }
  return eventStream(write, OLLAMA, (error) => serving.told(error), call.request.signal)
}

/** @param isNew whether the vectors of several texts come back; the older route gives one */
export function ollamaVectors(isNew: boolean) {
  return async (serving: Serving, call: Call): Promise<Response> => {
    const { prompt, input = prompt, ...fields } = await named(serving, call)
    const read = readingsBy(async (session, asked, choice) => {
      const { data, usage } = (await embeddings(session, asked, choice)) as Vectors
      const vectors = data.map(({ embedding }) => embedding)
      if (!isNew) return { embedding: vectors[0] }
      const total_duration = Math.round(1e6 * (performance.now() - call.startedAt))
      const counted = { total_duration, load_duration: 0, prompt_eval_count: usage.prompt_tokens }
      return { model: choice.model, embeddings: vectors, ...counted }
    })
    return read(serving, Object.assign(call, { fields: { ...fields, input } }))
  }
}

interface Vectors {
  readonly data: readonly { readonly embedding: readonly number[] }[]
  readonly usage: { readonly prompt_tokens: number }
}

function detailsOf({ session: { model } }: Serving) {
  const family = String(model.config.model_type ?? 'unknown')
  const details = { parent_model: '', format: 'onnx', family, families: [family] }
  return { ...details, parameter_size: '', quantization_level: '' }
}

export async function tags(serving: Serving, { caller }: Call): Promise<Response> {
  return jsonResponse({ models: await cards(serving, ((await serving.registry.list('', caller)) as Listed).data) })
}

export async function loadedModels(serving: Serving, { caller }: Call): Promise<Response> {
  const { registry, names, session } = serving
  const { data } = (await registry.list('', caller)) as Listed
  const loaded = new Set([...names, ...registry.loaded])
  const models = await cards(
    serving,
    data.filter(({ id }) => loaded.has(id)),
  )
  const more = { expires_at: FOREVER, size_vram: 0, context_length: session.model.contextLength ?? 0 }
  return jsonResponse({ models: models.map((card) => ({ ...card, ...more })) })
}

/** Sizes are 0: adapters share the base, whose weights stay in their files. A digest is that of the name and time. */
function cards(serving: Serving, listed: Listed['data']): Promise<object[]> {
  const details = detailsOf(serving)
  const all = listed.map(async ({ id, created }) => {
    const hash = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(`${id}\n${created}`))
    const digest = [...new Uint8Array(hash)].map((byte) => byte.toString(16).padStart(2, '0')).join('')
    const name = `${id}:latest`
    return { name, model: name, modified_at: new Date(1000 * created).toISOString(), size: 0, digest, details }
  })
  return Promise.all(all)
}

export async function show(serving: Serving, call: Call): Promise<Response> {
  const fields = await named(serving, call)
  await requireModel(serving, call, fields)
  const { model } = serving.session
  const { config, contextLength, graphs } = model
  const details = detailsOf(serving)
  const writes = /CausalLM|LMHead|ConditionalGeneration/.test(String(config.architectures ?? 'CausalLM'))
  const capabilities = [
    ...(writes ? ['completion', 'tools'] : ['embedding']),
    ...(graphs.vision_encoder === undefined ? [] : ['vision']),
  ]
  const numbers = {
    context_length: contextLength,
    embedding_length: config.hidden_size ?? config.n_embd,
    block_count: config.num_hidden_layers ?? config.n_layer,
    vocab_size: model.vocabularySize,
  }
  const known = Object.entries(numbers).filter(([, value]) => value !== undefined)
  const model_info = {
    'general.architecture': details.family,
    'general.basename': fields.model,
    ...Object.fromEntries(known.map(([name, value]) => [`${details.family}.${name}`, value])),
  }
  const texts = { modelfile: '', parameters: '', template: serving.options.chatTemplate ?? '' }
  return jsonResponse({ ...texts, details, model_info, capabilities, modified_at: new Date(0).toISOString() })
}
