// A server as one function from Request to Response: OpenAI's routes over one session, adapters by `model`.

import { type AdapterSession, openSession } from '../api/index.js'
import { ConfigError } from '../core/base/errors.js'
import { checkOptions } from '../core/base/options.js'
import { Dispatcher } from './dispatch.js'
import { HANDLER_OPTIONS } from './gen/options.js'
import type { HandlerOptions } from './handler-options.js'
import { metricsText } from './routes/state.js'
import { Serving } from './serving.js'
import { openSpans } from './spans.js'

/** A server: call it with a Request. */
export interface Handler {
  (request: Request): Promise<Response>
  /** The session that answers. */
  readonly session: AdapterSession
  /** The first name under which the base is served. */
  readonly base: string
  /** The text of `/metrics`, for a port that needs no key. */
  metrics(): Promise<string>
  /**
   * Refuses new requests with status 503, and those whose body is not here yet. Waits until all others are answered, at
   * most `timeoutSeconds`.
   */
  drain(): Promise<void>
  /** Drains, and closes the session. */
  close(): Promise<void>
}

/**
 * Opens a model with adapters, and gives a function that answers HTTP requests in OpenAI's form: `/v1/models`,
 * `/v1/chat/completions`, `/v1/completions`, `/v1/responses`, `/v1/embeddings`, `/classify`, `/health`, `/metrics`,
 * and vLLM's `/v1/load_lora_adapter`.
 *
 * @throws ConfigError for an option that is unknown or not valid; what `openSession` throws
 *
 * @example
 * import { createHandler } from 'lowrank/server'
 *
 * const handler = await createHandler({ model: 'models/union-3m', adapters: { peft: 'tests/golden/peft/f32' } })
 * const request = new Request('http://localhost/v1/completions', {
 *   method: 'POST',
 *   headers: { 'content-type': 'application/json' },
 *   body: JSON.stringify({ model: 'peft', prompt: 'And the people', max_tokens: 8 }),
 * })
 * console.log((await (await handler(request)).json()).choices[0].text)
 * await handler.close()
 */
export async function createHandler(options: HandlerOptions): Promise<Handler> {
  checkOptions(options, 'createHandler', HANDLER_OPTIONS)
  const { model, adapters = {}, session: opening, servedModelName } = options
  const comma = Object.keys(adapters).find((name) => name.includes(','))
  if (comma !== undefined) {
    throw new ConfigError({
      where: 'adapters',
      what: 'a name with a comma: /metrics lists names with commas',
      got: comma,
    })
  }
  const isOpenForMore = options.resolveAdapter !== undefined || options.training !== undefined
  const { allow = isOpenForMore ? (['lora'] as const) : undefined } = opening ?? {}
  if (options.training !== undefined) requireRights(options)
  const [session, spans] = await Promise.all([openSession(model, { ...opening, allow, adapters }), openSpans()])
  const names = [servedModelName ?? (session.model.name.replace(/\/+$/, '').split('/').at(-1) || 'base')].flat()
  const { training, chatTemplate, on = { error: console.error } } = options
  const onError = (error: unknown) => on.error?.(error)
  const jobs = await training?.open({ names, model: session.model, chatTemplate, onError })
  const serving = new Serving(session, names, options, jobs)
  const dispatcher = new Dispatcher(serving, spans)
  const handler = (request: Request) => dispatcher.handle(request)
  const close = async () => {
    await Promise.all([dispatcher.drain(), jobs?.close()])
    await session.dispose()
  }
  const metrics = () => metricsText(serving)
  return Object.assign(handler, { session, base: names[0], metrics, drain: () => dispatcher.drain(), close })
}

/** Whoever trains leaves files here: each caller has a key, and no page reaches the server by another name. */
function requireRights({ apiKeys = [], hosts }: HandlerOptions): void {
  const hasAdmin = apiKeys.some((key) => typeof key !== 'string' && key.isAdmin === true)
  if (hasAdmin && hosts !== undefined) return
  throw new ConfigError({
    where: 'training',
    what: hasAdmin ? 'needs `hosts`: the names by which callers reach the server' : 'needs an admin key in `apiKeys`',
  })
}
