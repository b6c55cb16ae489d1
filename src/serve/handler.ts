// A server as one function from Request to Response: OpenAI's routes over one session, adapters by `model`.

import type { Source } from '../base/bytes.js'
import { checkOptions } from '../base/options.js'
import type { Model } from '../graph/model-folder.js'
import { type AdapterSession, type OpenSessionOptions, openSession } from '../index/session.js'
import { mixesOf } from '../infer/adapters/choice.js'
import type { ModelSession } from '../infer/model-session.js'
import { AdapterRegistry, type ResolveAdapter } from './adapters.js'
import {
  CHAT_FIELDS,
  CLASSIFY_FIELDS,
  COMPLETION_FIELDS,
  checkFields,
  EMBEDDING_FIELDS,
  type Fields,
  type FieldTable,
  LOAD_FIELDS,
  RESPONSE_FIELDS,
  UNLOAD_FIELDS,
} from './fields.js'
import { Gate } from './gate.js'
import { HANDLER_OPTIONS } from './gen/options.js'
import { type Events, errorResponse, eventStream, HttpError, httpError, readJson, withoutPaths } from './http.js'
import { checkPrompts, checkTexts } from './lengths.js'
import { Metrics } from './metrics.js'
import { respond, responseRequest } from './responses.js'
import { answer, chatRequest, completionRequest, type TextRequest } from './texts.js'
import { withTools } from './tool-prompt.js'
import { classification, embeddings, type Read } from './vectors.js'

/** Options of {@link createHandler}. */
export interface HandlerOptions {
  /** The base model: an open one, or any source that `loadModel` accepts. */
  model: Model | Source
  /** The first adapters: name → adapter. Requests choose by this name. */
  adapters?: OpenSessionOptions['adapters']
  /**
   * How the session is opened: device, threads, accuracyLevel and the like. `allow` names the parts that later adapters
   * may have. Default `['lora']`, if adapters can be loaded.
   */
  session?: Omit<OpenSessionOptions, 'adapters'> | undefined
  /**
   * The name under which the base is served. Default: the last part of the model's name.
   * @flag NAME
   */
  name?: string | undefined
  /** Keys that callers must send as `Authorization: Bearer KEY`. Default: none are needed. */
  apiKeys?: readonly string[] | undefined
  /**
   * Values of the header Host that are answered, without ports. Default: all. A server on localhost should name its
   * own, so that no page reaches it by another name.
   */
  hosts?: readonly string[] | undefined
  /**
   * Pages that may call from a browser, such as `https://example.com`. Default: none but pages of the server itself.
   */
  origins?: readonly string[] | undefined
  /**
   * Finds an adapter that is not loaded yet by its name. `folderOfAdapters` makes one for a folder. Default: nothing is
   * loaded.
   */
  resolveAdapter?: ResolveAdapter | undefined
  /**
   * The largest number of adapters. Above it, the loaded adapter that was not used for the longest time leaves.
   * @range an integer of at least 1
   * @default 64
   * @help the largest number of adapters; the least used leaves
   */
  maxAdapters?: number | undefined
  /**
   * Requests that run at the same time. Default: the session's `maxBatch`, which is 8.
   * @range an integer of at least 1
   * @help requests that run at the same time. Default: 8
   */
  maxRunning?: number | undefined
  /**
   * Requests that wait. The next gets status 429.
   * @range an integer of at least 0
   * @default 64
   */
  maxQueue?: number | undefined
  /**
   * The most new tokens that a request may ask for. Default: the model's context.
   * @range an integer of at least 1
   */
  maxTokens?: number | undefined
  /**
   * Bytes of a body. Default 8 MiB.
   * @range an integer of at least 1
   */
  maxBodyBytes?: number | undefined
  /**
   * Seconds that a request may take, waiting included.
   * @range an integer of at least 1
   * @default 600
   */
  timeoutSeconds?: number | undefined
  /** Hears of errors that are answered with status 500. Default: console.error. */
  onError?: ((error: unknown) => void) | undefined
}

/** A server: call it with a Request. */
export interface Handler {
  (request: Request): Promise<Response>
  /** The session behind it. */
  readonly session: AdapterSession
  /** The name under which the base is served. */
  readonly base: string
  /**
   * Refuses new requests with status 503, and those whose body is not here yet. Waits until all others are answered, at
   * most `timeoutSeconds`.
   */
  drain(): Promise<void>
  /** Drains, and closes the session. */
  close(): Promise<void>
}

/** A body whose end is sent already when the server stops is here by then. */
const BODY_MS = 1000

/** New tokens of an answer where neither the model nor the server has a limit. */
const TOKENS_WITHOUT_CONTEXT = 4096

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
  const { model, adapters, session: opening, name: given } = options
  const { allow = options.resolveAdapter && (['lora'] as const) } = opening ?? {}
  const session = await openSession(model, { ...opening, allow, adapters })
  const name = given ?? (session.model.name.replace(/\/+$/, '').split('/').at(-1) || 'base')
  const server = new Server(session, name, options)
  const handler = (request: Request) => server.handle(request)
  const close = async () => {
    await server.drain()
    await session.dispose()
  }
  return Object.assign(handler, { session, base: name, drain: () => server.drain(), close })
}

interface Call {
  readonly fields: Fields
  readonly signal: AbortSignal
  /** The caller's key: what was read for one is not shared with another. */
  readonly key: string | undefined
}

interface Route {
  readonly table: FieldTable
  run(call: Call): Promise<Response>
}

class Server {
  readonly #registry: AdapterRegistry
  readonly #gate: Gate
  readonly #metrics: Metrics
  readonly #answering = new Set<Promise<Response>>()
  #isStopping = false
  /** Aborts when bodies that are still on their way are not waited for any more. */
  readonly #stopped = new AbortController()
  readonly #maxTokens: number
  readonly #routes = this.#routesOf()

  constructor(
    private readonly session: AdapterSession,
    private readonly name: string,
    private readonly options: HandlerOptions,
  ) {
    const {
      resolveAdapter: resolve,
      maxAdapters = 64,
      maxRunning = options.session?.maxBatch ?? 8,
      maxQueue = 64,
      maxTokens,
    } = options
    this.#metrics = new Metrics(maxAdapters)
    const onError = (error: unknown) => void this.#told(error)
    this.#registry = new AdapterRegistry(session, { base: name, resolve, maxAdapters, onError })
    this.#gate = new Gate(maxRunning, maxQueue)
    this.#maxTokens = maxTokens ?? session.model.contextLength ?? TOKENS_WITHOUT_CONTEXT
  }

  async drain(): Promise<void> {
    this.#isStopping = true
    const timer = setTimeout(() => this.#stopped.abort(stopping()), BODY_MS)
    await Promise.allSettled(this.#answering)
    clearTimeout(timer)
    await this.#gate.idle()
  }

  async handle(request: Request): Promise<Response> {
    const { pathname } = new URL(request.url)
    const origin = request.headers.get('origin')
    const answering = this.#answer(request, pathname, origin)
    this.#answering.add(answering)
    const response = await answering.catch((error) => errorResponse(this.#told(error, request.signal)))
    this.#answering.delete(answering)
    this.#metrics.answered(Object.hasOwn(this.#routes, pathname) ? pathname : 'other', response.status)
    if (origin !== null && this.options.origins?.includes(origin)) {
      response.headers.set('access-control-allow-origin', origin)
      response.headers.set('vary', 'origin')
    }
    return response
  }

  #told(error: unknown, signal?: AbortSignal): HttpError {
    if (signal?.aborted) return new HttpError(499, 'The caller left')
    const told = httpError(error, (text) => withoutPaths(text.replaceAll(this.session.model.directory.name, this.name)))
    if (told.status >= 500 && !(error instanceof HttpError)) (this.options.onError ?? console.error)(error)
    return told
  }

  async #answer(request: Request, pathname: string, origin: string | null): Promise<Response> {
    this.#refuseStrangers(request, origin)
    if (pathname === '/health') return new Response('ok')
    if (request.method === 'OPTIONS' && origin !== null) {
      const headers = {
        'access-control-allow-methods': 'GET, POST',
        'access-control-allow-headers': 'authorization, content-type',
      }
      return new Response(null, { status: 204, headers })
    }
    const key = this.#keyOf(request)
    if (pathname === '/metrics') {
      return new Response(this.#metrics.text(this.#gate), { headers: { 'content-type': 'text/plain; version=0.0.4' } })
    }
    if (/^\/v1\/models(\/|$)/.test(pathname) && request.method === 'GET') {
      return Response.json(this.#registry.list(pathname.slice('/v1/models/'.length)))
    }
    const route = Object.hasOwn(this.#routes, pathname) ? this.#routes[pathname] : undefined
    if (route === undefined)
      throw new HttpError(404, `There is no ${request.method} ${pathname} here`, { code: 'not_found' })
    if (request.method !== 'POST') throw new HttpError(405, `${pathname} takes POST`)
    if (this.#isStopping) throw stopping()
    const body = await readJson(request, this.options.maxBodyBytes ?? 8 << 20, this.#stopped.signal)
    const fields = checkFields(body, route.table)
    return route.run({ fields, signal: request.signal, key })
  }

  #routesOf(): Readonly<Record<string, Route>> {
    const route = (table: FieldTable, run: Route['run']) => ({ table, run })
    const classify = route(CLASSIFY_FIELDS, (call) => this.#readings(call, classification))
    const loading = (table: FieldTable, done: string, change: (name: string, path: string) => Promise<void>) =>
      route(table, async ({ fields }) => {
        await change(fields.lora_name as string, fields.lora_path as string)
        return new Response(`Success: LoRA adapter '${fields.lora_name}' ${done} successfully.`)
      })
    return {
      '/v1/chat/completions': route(CHAT_FIELDS, (call) => this.#texts(call, chatRequest)),
      '/v1/completions': route(COMPLETION_FIELDS, (call) => this.#texts(call, completionRequest)),
      '/v1/responses': route(RESPONSE_FIELDS, (call) => this.#texts(call, responseRequest, respond)),
      '/v1/embeddings': route(EMBEDDING_FIELDS, (call) => this.#readings(call, embeddings)),
      '/v1/classify': classify,
      '/classify': classify,
      '/v1/load_lora_adapter': loading(LOAD_FIELDS, 'added', (name, path) => this.#registry.load(name, path)),
      '/v1/unload_lora_adapter': loading(UNLOAD_FIELDS, 'removed', (name) => this.#registry.unload(name)),
    }
  }

  #modelOf({ fields }: Call): string {
    return (fields.model as string | undefined) ?? this.name
  }

  async #readings(call: Call, read: Read): Promise<Response> {
    checkTexts([call.fields.input as string | string[]].flat(), 'input')
    const { adapter, signal, leave } = await this.#enter(call)
    try {
      return Response.json(await read(this.session, call.fields, { adapter, model: this.#modelOf(call), signal }))
    } finally {
      leave()
    }
  }

  async #texts(
    call: Call,
    read: (fields: Fields, maxTokens: number) => TextRequest,
    write: typeof answer = answer,
  ): Promise<Response> {
    const startedAt = performance.now()
    const request = read(call.fields, this.#maxTokens)
    await checkPrompts(this.session.model, request)
    const { adapter, signal, leave } = await this.#enter(call)
    const run = async (ended: AbortSignal, events?: Events) => {
      let lastAt: number | undefined
      const onPiece = () => {
        const now = performance.now()
        const { first, between } = this.#metrics
        if (lastAt === undefined) first.add((now - startedAt) / 1000)
        else between.add((now - lastAt) / 1000)
        lastAt = now
      }
      try {
        const own = { fields: call.fields, adapter, model: this.#modelOf(call), cacheScope: call.key }
        const recorded = (this.session as ModelSession<Model>).chatTemplateOf(mixesOf(adapter, undefined)[0])
        const prompted = await withTools(this.session.model, recorded, request)
        const done = await write(this.session, prompted, { ...own, signal: ended, events, onPiece })
        this.#metrics.tokens(done.promptTokens, done.newTokens)
        return done.body
      } finally {
        leave()
      }
    }
    if (!request.isStream) return Response.json(await run(signal))
    return eventStream(
      async (events, ended) => void (await run(ended, events)),
      (error, left) => this.#told(error, AbortSignal.any([call.signal, left])),
      signal,
    )
  }

  async #enter({ fields, signal: left }: Call) {
    const { adapter, names, end: release } = await this.#registry.choose(fields)
    const { timeoutSeconds = 600 } = this.options
    const over = new AbortController()
    const late = new HttpError(503, `The answer took longer than ${timeoutSeconds} seconds`, { code: 'timeout' })
    const timer = setTimeout(() => over.abort(late), 1000 * timeoutSeconds)
    const end = () => {
      clearTimeout(timer)
      release()
    }
    const signal = AbortSignal.any([left, over.signal])
    const count = (state: 'running' | 'waiting', change: 1 | -1) => {
      for (const name of names) this.#metrics.adapter(name, state, change)
    }
    count('waiting', 1)
    const admitted = this.#gate.enter(signal).finally(() => count('waiting', -1))
    admitted.catch(end)
    const leave = await admitted
    count('running', 1)
    return {
      adapter,
      signal,
      leave() {
        count('running', -1)
        end()
        leave()
      },
    }
  }

  /** Refuses requests that a page sends unasked: by another host name, or from another origin. */
  #refuseStrangers({ url, headers }: Request, origin: string | null): void {
    const host = headers.get('host') ?? new URL(url).host
    const { hosts, origins = [] } = this.options
    const name = host.replace(/:\d+$/, '')
    if (hosts !== undefined && !hosts.includes(name)) {
      throw new HttpError(403, `This server is not ${name}`, { type: 'permission_error' })
    }
    if (origin === null || origins.includes(origin)) return
    if (URL.canParse(origin) && new URL(origin).host === host) return
    throw new HttpError(403, `Pages of ${origin} may not call this server`, { type: 'permission_error' })
  }

  #keyOf({ headers }: Request): string | undefined {
    const { apiKeys } = this.options
    if (apiKeys === undefined) return undefined
    const given = /^Bearer (.+)$/i.exec(headers.get('authorization') ?? '')?.[1] ?? ''
    // Compares with all keys, so that the time tells nothing.
    const fits = apiKeys.map((key) => isEqual(key, given))
    if (fits.includes(true)) return given
    throw new HttpError(401, 'The API key is missing or wrong: send it as Authorization: Bearer KEY', {
      type: 'authentication_error',
      code: 'invalid_api_key',
    })
  }
}

function stopping(): HttpError {
  return new HttpError(503, 'The server is stopping', { retryAfter: 5 })
}

/** Compares in a time that depends on the lengths alone. */
function isEqual(a: string, b: string): boolean {
  const [left, right] = [a, b].map((text) => new TextEncoder().encode(text))
  let difference = left.length ^ right.length
  for (let i = 0; i < left.length; i++) difference |= left[i] ^ (right[i % Math.max(1, right.length)] ?? 0)
  return difference === 0
}
