// Takes requests to their routes: refuses strangers, finds the caller, reads the body, and keeps count of what runs.

import { Inbox } from './bodies/inbox.js'
import { ANSWERING, checkFields } from './fields.js'
import { OLLAMA } from './forms/ollama.js'
import { wireOf } from './forms/wire.js'
import { errorResponse, HttpError } from './http.js'
import { callerOf, requireRight } from './keys.js'
import { type Call, findPath, type Method, type RequestEntry } from './route.js'
import { ROUTES } from './routes.js'
import { type Serving, stopping } from './serving.js'
import type { OnSpan } from './spans.js'

/** A body whose end is sent already when the server stops is here by then. */
const BODY_MS = 1000

/** Bytes of all unfinished bodies together. */
const MAX_HELD = 64 << 20

export class Dispatcher {
  readonly #answering = new Set<Promise<Response>>()
  /** Aborts when the server stops waiting for bodies that have not arrived. */
  readonly #stopped = new AbortController()
  readonly #maxBodyBytes: number
  readonly #inbox: Inbox

  constructor(
    private readonly serving: Serving,
    private readonly onSpan: OnSpan | undefined,
  ) {
    const { maxBodyBytes = 8 << 20 } = serving.options
    this.#maxBodyBytes = maxBodyBytes
    this.#inbox = new Inbox(this.#stopped.signal, Math.max(MAX_HELD, 2 * maxBodyBytes))
  }

  async drain(): Promise<void> {
    this.serving.isStopping = true
    const timer = setTimeout(() => this.#stopped.abort(stopping()), BODY_MS)
    await Promise.allSettled(this.#answering)
    clearTimeout(timer)
    await this.serving.gate.idle()
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
      this.serving.options.on?.request?.(entry)
      this.onSpan?.(entry, headers)
    }
    const answering = this.#answer(call, pathname, path)
    this.#answering.add(answering)
    const answered = await answering.catch((error) =>
      errorResponse(this.serving.told(error, request.signal), wireOf(request)),
    )
    // What a file's content is read from is closed.
    if (method === 'HEAD') await answered.body?.cancel()
    const response = method === 'HEAD' ? new Response(null, answered) : answered
    this.#answering.delete(answering)
    entry.status ||= response.status
    this.serving.metrics.answered(entry.route, response.status)
    if (call.done === undefined) end()
    else void call.done.catch(() => {}).finally(end)
    response.headers.set('x-request-id', id)
    const origin = headers.get('origin')
    if (origin !== null && this.serving.options.origins?.includes(origin)) {
      response.headers.set('access-control-allow-origin', origin)
      response.headers.set('access-control-expose-headers', 'x-request-id, retry-after')
      response.headers.set('vary', 'origin')
    }
    return response
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
    const caller = callerOf(request, this.serving.options.apiKeys)
    if (caller?.name) entry.key = caller.name
    const methods = Object.hasOwn(ROUTES, path) ? ROUTES[path] : undefined
    const asked = (request.method === 'HEAD' ? 'GET' : request.method) as Method
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
    if (asked === 'GET') return route.answer(this.serving, call)
    if (this.serving.isStopping) throw stopping()
    if (route.fields === undefined) return route.answer(this.serving, call)
    // Ollama's clients send JSON by any type. Pages of others are refused by their origin.
    const isTyped = wireOf(request) !== OLLAMA
    const body = await this.#inbox.json({ request, caller: caller! }, this.#maxBodyBytes, isTyped)
    const isOwn = () => this.serving.registry.has((body as { model: string }).model, caller!)
    const forwarded = await this.serving.upstreams.answer(call, body, isOwn)
    if (forwarded !== undefined) return forwarded
    const given = checkFields(body, route.fields)
    const isAnswer = route.fields.model === ANSWERING
    const fields = isAnswer ? { ...given, model: await this.serving.meant(given.model, caller!) } : given
    return route.answer(this.serving, Object.assign(call, { fields }))
  }

  /** Refuses requests that a page sends unasked: by another host name, or from another origin. */
  #refuseStrangers({ url, headers }: Request, origin: string | null): void {
    const host = headers.get('host') ?? new URL(url).host
    const { hosts, origins = [] } = this.serving.options
    const name = host.replace(/:\d+$/, '')
    if (hosts !== undefined && !hosts.includes(name)) {
      throw new HttpError(403, `This server is not ${name}`, { type: 'permission_error' })
    }
    if (origin === null || origins.includes(origin)) return
    if (URL.canParse(origin) && new URL(origin).host === host) return
    throw new HttpError(403, `Pages of ${origin} may not call this server`, { type: 'permission_error' })
  }
}
