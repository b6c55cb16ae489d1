// Answers requests: finds the route and the caller, and keeps count of what runs.

import type { AdapterSession } from '../api/session.js'
import { attempt } from '../core/base/errors.js'
import { type Model, requireTokenizer } from '../model/model-folder.js'
import { type AdapterChoice, mixesOf } from '../run/adapters/choice.js'
import { encodePrompt } from '../run/generate/prompts.js'
import { textFormOf } from '../run/generate/text-graph.js'
import type { ModelSession } from '../run/model-session.js'
import { AdapterRegistry } from './adapters.js'
import { Inbox } from './bodies/inbox.js'
import { jsonResponse } from './bodies/pieces.js'
import {
  CHAT_FIELDS,
  CLASSIFY_FIELDS,
  COMPLETION_FIELDS,
  COUNT_FIELDS,
  checkFields,
  DETOKENIZE_FIELDS,
  EMBEDDING_FIELDS,
  type Fields,
  type FieldTable,
  LOAD_FIELDS,
  MESSAGE_FIELDS,
  RERANK_FIELDS,
  RESPONSE_FIELDS,
  SCORE_FIELDS,
  TOKENIZE_FIELDS,
  UNLOAD_FIELDS,
} from './fields.js'
import { ANTHROPIC, anthropicModels, messageRequest, respondMessage } from './forms/anthropic.js'
import { respond, responseRequest } from './forms/responses.js'
import { Gate } from './gate.js'
import { files } from './gen/chat-page.js'
import { VERSION } from './gen/version.js'
import type { HandlerOptions } from './handler-options.js'
import {
  type Events,
  errorResponse,
  eventStream,
  HttpError,
  httpError,
  invalid,
  OPENAI,
  type WireForm,
  withoutPaths,
} from './http.js'
import { ALIAS_FIELDS, JOB_FIELDS, METADATA_FIELDS } from './jobs/fields.js'
import type { Jobs } from './jobs/training.js'
import { type Caller, callerOf, type Right, requireRight } from './keys.js'
import { checkPrompts, checkTexts } from './lengths.js'
import { Metrics } from './metrics.js'
import { type Call, findPath, type Method, type RequestEntry } from './route.js'
import type { OnSpan } from './spans.js'
import { answer, chatRequest, completionRequest, type OnText, type TextRequest } from './texts.js'
import { withTools } from './tool-prompt.js'
import { Upstreams } from './upstream/upstreams.js'
import { classification, embeddings, type Read, reranking, scoring } from './vectors.js'

/** A body whose end is sent already when the server stops is here by then. */
const BODY_MS = 1000

/** Bytes of all unfinished bodies together. */
const MAX_HELD = 64 << 20

/** New tokens of an answer if neither the model nor the server has a limit. */
const TOKENS_WITHOUT_CONTEXT = 4096

type Run = (service: Service, call: Call) => Promise<Response> | Response

/** Who may call a route, the fields of its body, and the function that answers. */
interface Route {
  readonly right: Right
  readonly fields?: FieldTable | undefined
  readonly run: Run
}

const get = (run: Run, right: Right = 'key') => ({ GET: { right, run } })
const probe = (run: Run) => get(run, 'anyone')
const post = (fields: FieldTable | undefined, run: Run, right: Right = 'key') => ({ POST: { right, fields, run } })
const models = get((service, call) => service.models(call))
const labels = post(CLASSIFY_FIELDS, (service, call) => service.readings(call, classification))
const page = probe((service, { request }) => service.page(new URL(request.url).pathname))

/** Answers a route of files, jobs, stored chats or aliases. */
type JobRun = (jobs: Jobs, call: Call) => object | Promise<object>

const ofJobs = (run: JobRun): Run => {
  return (service, call) => service.train(run, call)
}
const getJobs = (run: JobRun) => get(ofJobs(run))
const postJobs = (fields: FieldTable | undefined, run: JobRun, right?: Right) => post(fields, ofJobs(run), right)
const deleteJobs = (run: JobRun, right: Right = 'key') => ({ DELETE: { right, run: ofJobs(run) } })

/** Path → method → route. `*` stands for any text. A path with `*` in its middle comes before one that ends with it. */
export const ROUTES: Readonly<Record<string, Readonly<Partial<Record<Method, Route>>>>> = {
  '/v1/files': {
    ...getJobs(({ files }, call) => files.list(call)),
    ...postJobs(undefined, (jobs, call) => jobs.createFile(call)),
  },
  '/v1/files/*/content': getJobs(({ files }, call) => files.content(call)),
  '/v1/files/*': {
    ...getJobs(({ files }, call) => files.retrieve(call)),
    ...deleteJobs(({ files }, call) => files.remove(call)),
  },
  '/v1/fine_tuning/jobs': {
    ...getJobs(({ queue }, call) => queue.list(call)),
    ...postJobs(JOB_FIELDS, ({ queue }, call) => queue.create(call)),
  },
  '/v1/fine_tuning/jobs/*/cancel': postJobs(undefined, ({ queue }, call) => queue.cancel(call)),
  '/v1/fine_tuning/jobs/*/pause': postJobs(undefined, ({ queue }, call) => queue.turn(call, true)),
  '/v1/fine_tuning/jobs/*/resume': postJobs(undefined, ({ queue }, call) => queue.turn(call, false)),
  '/v1/fine_tuning/jobs/*/events': getJobs(({ queue }, call) => queue.listEvents(call)),
  '/v1/fine_tuning/jobs/*/checkpoints': getJobs(({ queue }, call) => queue.listCheckpoints(call)),
  '/v1/fine_tuning/jobs/*': getJobs(({ queue }, call) => queue.get(call)),
  '/v1/chat/completions': {
    ...getJobs(({ completions }, call) => completions.list(call)),
    ...post(CHAT_FIELDS, (service, call) => service.texts(call, chatRequest)),
  },
  '/v1/chat/completions/*/messages': getJobs(({ completions }, call) => completions.messages(call)),
  '/v1/chat/completions/*': {
    ...getJobs(({ completions }, call) => completions.get(call)),
    ...postJobs(METADATA_FIELDS, ({ completions }, call) => completions.update(call)),
    ...deleteJobs(({ completions }, call) => completions.remove(call)),
  },
  '/v1/models/*': { ...models, ...deleteJobs((jobs, call) => jobs.models.remove(call)) },
  '/v1/aliases': {
    ...get((service) => service.aliases()),
    ...postJobs(ALIAS_FIELDS, (jobs, call) => jobs.models.setAlias(call), 'admin'),
  },
  '/v1/aliases/*': deleteJobs((jobs, call) => jobs.models.removeAlias(call), 'admin'),
  '/': page,
  '/chat.js': page,
  '/chat.css': page,
  '/chat.svg': page,
  '/health': probe(() => new Response('ok')),
  '/ready': probe((service) => service.ready()),
  '/version': probe((service) => service.version()),
  '/metrics': get((service, { caller }) => service.metrics(caller)),
  '/v1/models': models,
  '/v1/completions': post(COMPLETION_FIELDS, (service, call) => service.texts(call, completionRequest)),
  '/v1/responses': post(RESPONSE_FIELDS, (service, call) => service.texts(call, responseRequest, respond)),
  '/v1/messages': post(MESSAGE_FIELDS, (service, call) => service.texts(call, messageRequest, respondMessage)),
  '/v1/messages/count_tokens': post(COUNT_FIELDS, async (service, call) => {
    const { ids } = await service.encode(call, messageRequest)
    return Response.json({ input_tokens: ids.length })
  }),
  '/tokenize': post(TOKENIZE_FIELDS, (service, call) => service.tokenize(call)),
  '/detokenize': post(DETOKENIZE_FIELDS, (service, call) => service.detokenize(call)),
  '/v1/rerank': post(RERANK_FIELDS, (service, call) => service.readings(call, reranking)),
  '/v1/score': post(SCORE_FIELDS, (service, call) => service.readings(call, scoring)),
  '/v1/embeddings': post(EMBEDDING_FIELDS, (service, call) => service.readings(call, embeddings)),
  '/v1/classify': labels,
  '/classify': labels,
  '/v1/load_lora_adapter': post(LOAD_FIELDS, (service, call) => service.load(call), 'admin'),
  '/v1/unload_lora_adapter': post(UNLOAD_FIELDS, (service, call) => service.unload(call), 'admin'),
}

export class Service {
  readonly #registry: AdapterRegistry
  readonly #upstreams: Upstreams
  readonly #gate: Gate
  readonly #metrics = new Metrics()
  readonly #answering = new Set<Promise<Response>>()
  #isStopping = false
  /** Aborts when the server stops waiting for bodies that have not arrived. */
  readonly #stopped = new AbortController()
  readonly #maxBodyBytes: number
  readonly #inbox: Inbox
  readonly #maxTokens: number
  readonly #maxAdapters: number
  #tokenBytes: Promise<number> | undefined

  constructor(
    private readonly session: AdapterSession,
    private readonly names: readonly string[],
    private readonly options: HandlerOptions,
    private readonly onSpan: OnSpan | undefined,
    private readonly jobs: Jobs | undefined,
  ) {
    const {
      resolveAdapter: resolve,
      maxAdapters = 64,
      maxRunning = options.session?.maxBatch ?? 8,
      maxQueue = 64,
      maxTokens,
      maxBodyBytes = 8 << 20,
    } = options
    const onError = (error: unknown) => void this.#told(error)
    this.#upstreams = new Upstreams(options)
    this.#maxAdapters = maxAdapters
    this.#maxBodyBytes = maxBodyBytes
    this.#inbox = new Inbox(this.#stopped.signal, Math.max(MAX_HELD, 2 * maxBodyBytes))
    this.#registry = new AdapterRegistry(session, {
      ...{ names, resolve, maxAdapters, onError, tuned: jobs?.models, aliases: this.#upstreams.names },
    })
    jobs?.models.attach(this.#registry)
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
    const startedAt = performance.now()
    const { pathname } = new URL(request.url)
    const [path, callId] = findPath(ROUTES, pathname) ?? ['other', '']
    const { method, headers } = request
    const sentId = headers.get('x-request-id') ?? ''
    const id = /^[\w.:-]{1,128}$/.test(sentId) ? sentId : crypto.randomUUID()
    const entry: RequestEntry = { id, method, route: path, status: 0, ms: 0 }
    // The body and the caller are known later.
    const call = { request, entry, startedAt, id: callId, inbox: this.#inbox } as Call
    const end = () => {
      entry.ms = performance.now() - startedAt
      this.options.on?.request?.(entry)
      this.onSpan?.(entry, headers)
    }
    const answering = this.#answer(call, pathname, path)
    this.#answering.add(answering)
    const response = await answering.catch((error) => errorResponse(this.#told(error, request.signal), formOf(request)))
    this.#answering.delete(answering)
    entry.status ||= response.status
    this.#metrics.answered(entry.route, response.status)
    if (call.done === undefined) end()
    else void call.done.catch(() => {}).finally(end)
    response.headers.set('x-request-id', id)
    const origin = headers.get('origin')
    if (origin !== null && this.options.origins?.includes(origin)) {
      response.headers.set('access-control-allow-origin', origin)
      response.headers.set('access-control-expose-headers', 'x-request-id, retry-after')
      response.headers.set('vary', 'origin')
    }
    return response
  }

  #told(error: unknown, signal?: AbortSignal): HttpError {
    if (signal?.aborted) return new HttpError(499, 'The caller left')
    const told = httpError(error, (text) =>
      withoutPaths(text.replaceAll(this.session.model.directory.name, this.names[0])),
    )
    if (told.status >= 500 && !(error instanceof HttpError))
      (this.options.on ?? { error: console.error }).error?.(error)
    return told
  }

  async #answer(call: Call, pathname: string, path: string): Promise<Response> {
    const { request, entry } = call
    const origin = request.headers.get('origin')
    this.#refuseStrangers(request, origin)
    if (request.method === 'OPTIONS' && origin !== null) {
      const asked = request.headers.get('access-control-request-headers')
      const headers = {
        'access-control-allow-methods': 'GET, POST, DELETE',
        'access-control-allow-headers': asked ?? 'authorization, content-type',
        'access-control-max-age': '600',
      }
      return new Response(null, { status: 204, headers })
    }
    const caller = callerOf(request, this.options.apiKeys)
    if (caller?.name) entry.key = caller.name
    const methods = Object.hasOwn(ROUTES, path) ? ROUTES[path] : undefined
    const asked = request.method as Method
    const route = methods !== undefined && Object.hasOwn(methods, asked) ? methods[asked] : undefined
    // A caller without a key must not learn which routes exist.
    const [anyRoute] = Object.values(methods ?? {})
    requireRight(caller, (route ?? anyRoute)?.right ?? 'key')
    if (methods === undefined) {
      const instead = pathname.startsWith('/v1/uploads') ? ': send the whole file to /v1/files' : ''
      throw new HttpError(404, `There is no ${asked} ${pathname} here${instead}`, { code: 'not_found' })
    }
    if (route === undefined) throw new HttpError(405, `${pathname} takes ${Object.keys(methods).join(' or ')}`)
    Object.assign(call, { caller })
    if (asked === 'GET') return route.run(this, call)
    if (this.#isStopping) throw stopping()
    if (route.fields === undefined) return route.run(this, call)
    const body = await this.#inbox.json({ request, caller: caller! }, this.#maxBodyBytes)
    const isOwn = () => this.#registry.has((body as { model: string }).model, caller!)
    const forwarded = await this.#upstreams.answer(call, body, isOwn)
    if (forwarded !== undefined) return forwarded
    return route.run(this, Object.assign(call, { fields: checkFields(body, route.fields) }))
  }

  version(): Response {
    return Response.json({ version: VERSION, ...(this.jobs !== undefined && { trains: true }) })
  }

  ready(): Response {
    if (this.#isStopping) throw stopping()
    return new Response('ok')
  }

  /** A file of the page. The page loads nothing from elsewhere, and no other page may show it in a frame. */
  page(pathname: string): Response {
    if (this.options.page !== true) throw new HttpError(404, 'The page is off here', { code: 'not_found' })
    const [type, text] = files[pathname as keyof typeof files]
    const headers = {
      'content-type': type,
      'content-security-policy': "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
      'x-content-type-options': 'nosniff',
      'referrer-policy': 'no-referrer',
      'cache-control': 'no-cache',
    }
    return new Response(text, { headers })
  }

  models({ request, id, caller }: Call): Response {
    const listed = this.#registry.list(id, caller)
    return Response.json(formOf(request) === ANTHROPIC ? anthropicModels(listed as never) : listed)
  }

  /** The operator's names, and those that requests have made. */
  aliases(): Response {
    const given = Object.entries(this.#upstreams.names)
    if (this.jobs === undefined && given.length === 0) throw notTraining()
    const own = given.map(([name, model]) => ({ id: name, object: 'alias', name, model }))
    const data = [...own, ...(this.jobs?.models.aliases() ?? [])]
    return jsonResponse({ object: 'list', data, has_more: false })
  }

  async train(run: JobRun, call: Call): Promise<Response> {
    if (this.jobs === undefined) throw notTraining()
    const answer = await run(this.jobs, call)
    return answer instanceof Response ? answer : jsonResponse(answer)
  }

  async metrics(caller: Caller): Promise<Response> {
    return new Response(await this.metricsText(caller), { headers: { 'content-type': 'text/plain; version=0.0.4' } })
  }

  /** @param caller whose models are named; without one, all are */
  async metricsText(caller?: Caller): Promise<string> {
    const { model, bounds } = this.session as ModelSession<Model>
    this.#tokenBytes ??= textFormOf(model).then(
      (form) => form.tokenBytes,
      () => 0,
    )
    const tokenBytes = await this.#tokenBytes
    const engine = attempt(() => (this.session as ModelSession<Model>).engine).value
    const tokens = (await engine?.runningTokens().catch(() => 0)) ?? 0
    return this.#metrics.text({
      running: this.#gate.running,
      waiting: this.#gate.waiting.length,
      ...{ tokens, mostTokens: tokenBytes === 0 ? 0 : Math.floor(bounds.cacheBytes / tokenBytes) },
      maxAdapters: this.#maxAdapters,
      adapters: this.#registry.loaded,
      shows: (name) => caller === undefined || this.#registry.isKnownTo(caller, name),
    })
  }

  async load({ fields }: Call): Promise<Response> {
    await this.#registry.load(fields.lora_name as string, fields.lora_path as string)
    return new Response(`Success: LoRA adapter '${fields.lora_name}' added successfully.`)
  }

  async unload({ fields }: Call): Promise<Response> {
    await this.#registry.unload(fields.lora_name as string)
    return new Response(`Success: LoRA adapter '${fields.lora_name}' removed successfully.`)
  }

  #modelOf({ fields }: Call): string {
    return (fields.model as string | undefined) ?? this.names[0]
  }

  async readings(call: Call, read: Read): Promise<Response> {
    const { input, query, documents, text_1, text_2 } = call.fields
    const param = ['input', 'documents', 'text_2'].find((name) => call.fields[name] !== undefined)!
    checkTexts([input, query, documents, text_1, text_2].flat().filter((text) => text !== undefined) as string[], param)
    const { adapter, signal, leave } = await this.#enter(call, call.request.signal)
    try {
      return jsonResponse(await read(this.session, call.fields, { adapter, model: this.#modelOf(call), signal }))
    } finally {
      leave()
    }
  }

  async texts(
    call: Call,
    read: (fields: Fields, maxTokens: number) => TextRequest,
    write: typeof answer = answer,
  ): Promise<Response> {
    const { startedAt, entry, fields } = call
    if (fields.store === true && this.jobs === undefined) throw notTraining('store: ')
    const asked = read(fields, this.#maxTokens)
    await checkPrompts(this.session.model, asked)
    const run = async (left: AbortSignal, events?: Events) => {
      const { adapter, signal, leave } = await this.#enter(call, left)
      let lastAt: number | undefined
      try {
        const given = await this.#prompted(asked, adapter)
        const all = given.prompts.flatMap((prompt) => Array.from({ length: given.n }, () => prompt))
        const { images, ...options } = given.options
        const generate = (onText: OnText) =>
          this.session.generate(all, {
            ...options,
            images: images && (all.map(() => images) as never),
            ...{ adapter, cacheScope: call.caller.key, signal },
            on: {
              text: (...piece) => {
                const now = performance.now()
                const { first, between } = this.#metrics
                if (lastAt === undefined) first.add((now - startedAt) / 1000)
                else between.add((now - lastAt) / 1000)
                entry.firstTokenMs ??= now - startedAt
                lastAt = now
                onText(...piece)
              },
            },
          })
        const done = await write(this.session, given, { fields, adapter, model: this.#modelOf(call), events, generate })
        const { promptTokens, cachedTokens, newTokens } = done
        this.#metrics.tokens(promptTokens, cachedTokens, newTokens)
        Object.assign(entry, { promptTokens, cachedTokens, newTokens })
        if (fields.store === true) await this.jobs!.completions.keep(call, done.body)
        if (entry.route === '/v1/chat/completions') this.#record(call, done.body)
        return done.body
      } finally {
        leave()
      }
    }
    if (!asked.isStream) return Response.json(await run(call.request.signal))
    return eventStream(
      async (events, ended) => {
        call.done = run(ended, events)
        await call.done
      },
      formOf(call.request),
      (error, left) => {
        const told = this.#told(error, AbortSignal.any([call.request.signal, left]))
        entry.status = told.status
        return told
      },
      call.request.signal,
    )
  }

  /** The caller does not wait for it. */
  #record(call: Call, answer: object): void {
    const exchange = { model: this.#modelOf(call), request: call.fields, ms: performance.now() - call.startedAt }
    const recording = async () => this.options.record?.({ ...exchange, answer: answer as Fields })
    recording().catch((error) => this.#told(error))
  }

  /** The request with the tools and the template that the model gets. */
  async #prompted(asked: TextRequest, adapter: AdapterChoice): Promise<TextRequest> {
    const recorded = (this.session as ModelSession<Model>).chatTemplateOf(mixesOf(adapter, undefined)[0])
    const { chatTemplate = recorded } = this.options
    const { options, ...prompted } = await withTools(this.session.model, chatTemplate, asked)
    return { ...prompted, options: { ...options, chatTemplate } }
  }

  async encode({ fields, caller }: Call, read: (fields: Fields, maxTokens: number) => TextRequest) {
    const asked = read(fields, this.#maxTokens)
    const { model } = this.session
    await checkPrompts(model, asked)
    const { adapter, end } = await this.#registry.choose(fields, caller)
    try {
      const { prompts, options } = await this.#prompted(asked, adapter)
      const context = { recorded: undefined, pictures: undefined, where: 'messages' }
      return await encodePrompt(model, prompts[0], options, context)
    } finally {
      end()
    }
  }

  async tokenize(call: Call): Promise<Response> {
    const { prompt, messages, add_special_tokens: specialTokens = true, return_token_strs: hasTexts } = call.fields
    const { model } = this.session
    const tokenizer = requireTokenizer(model)
    const isOne = (prompt === undefined) !== (messages === undefined)
    if (!isOne) throw invalid('prompt', 'give either prompt or messages')
    if (prompt !== undefined) checkTexts([prompt as string], 'prompt')
    const tokens = messages
      ? (await this.encode(call, chatRequest)).ids
      : tokenizer.encode(prompt as string, { specialTokens: specialTokens as boolean })
    const texts = hasTexts ? tokens.map((id) => tokenizer.decode([id], { specialTokens: true })) : null
    const max_model_len = model.contextLength ?? null
    return Response.json({ count: tokens.length, max_model_len, tokens, token_strs: texts })
  }

  detokenize({ fields }: Call): Response {
    const tokens = fields.tokens as number[]
    const prompt = requireTokenizer(this.session.model).decode(tokens, { specialTokens: true })
    return Response.json({ prompt })
  }

  /** Waits for a place. */
  async #enter({ fields, caller, entry, request: { headers } }: Call, left: AbortSignal) {
    const { adapter, names, end: release } = await this.#registry.choose(fields, caller)
    entry.model = names.join('+') || this.names[0]
    const { timeoutSeconds = 600 } = this.options
    const asked = Number(headers.get('x-request-timeout') ?? timeoutSeconds)
    const seconds = asked > 0 ? Math.min(asked, timeoutSeconds) : timeoutSeconds
    const over = new AbortController()
    const late = new HttpError(503, `The answer took longer than ${seconds} seconds`, { code: 'timeout' })
    const timer = setTimeout(() => over.abort(late), 1000 * seconds)
    const end = () => {
      clearTimeout(timer)
      release()
    }
    const signal = AbortSignal.any([left, over.signal])
    const priority = Math.max(caller.priority, (fields.priority as number | undefined) ?? caller.priority)
    for (const name of names) this.#metrics.waits(name, 1)
    const admitted = this.#gate.enter({ key: caller.key ?? '', priority, signal }).finally(() => {
      for (const name of names) this.#metrics.waits(name, -1)
    })
    admitted.catch(end)
    const leave = await admitted
    this.jobs?.serves(this.#gate.running)
    return {
      adapter,
      signal,
      leave: () => {
        end()
        leave()
        this.jobs?.serves(this.#gate.running)
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
}

function formOf({ url, headers }: Request): WireForm {
  return headers.has('anthropic-version') || new URL(url).pathname.startsWith('/v1/messages') ? ANTHROPIC : OPENAI
}

function notTraining(field = ''): HttpError {
  const message = `${field}Nothing is stored or trained here. Start the server with --train FOLDER`
  return field === ''
    ? new HttpError(404, message, { code: 'not_found' })
    : new HttpError(400, message, { param: 'store' })
}

function stopping(): HttpError {
  return new HttpError(503, 'The server is stopping', { retryAfter: 5 })
}
