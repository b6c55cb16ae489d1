// Servers that are asked in the place of this one: before a model of its own, until the old model is gone, or for names
// that nothing else answers. Their addresses come from the operator alone.

import { isObject, type Kind, kind, NAME } from '../../core/base/options.js'
import { checkAddress } from '../../core/base/post-json.js'
import { HttpError } from '../http.js'
import type { Call } from '../route.js'
import { wholeAnswer } from './whole-answer.js'

/** A server with OpenAI's API that is asked before a model of this server. */
export interface Upstream {
  /** Up to /v1. */
  readonly url: string
  /** The name that it has for the model. Default: the alias. */
  readonly model?: string | undefined
  /** The last day on which it is asked, such as 2027-01-14. Default: as long as it has the model. */
  readonly when?: string | undefined
}

/** What stands behind a name. */
export interface AliasTarget {
  /** The model of this server. Default: the one of this name. */
  readonly model?: string | undefined
  readonly upstream?: Upstream | undefined
}

/** A chat that was answered. */
export interface Exchange {
  /** The server that answered; undefined if a model of this server did. */
  readonly url?: string | undefined
  /** The name that the caller asked for. */
  readonly model: string
  readonly request: Readonly<Record<string, unknown>>
  /** As OpenAI's chat.completion, also of a stream. */
  readonly answer: Readonly<Record<string, unknown>>
  readonly ms: number
}

/** Options of `createHandler` about other servers. */
export interface UpstreamOptions {
  /**
   * Further names, each with the model that it stands for. A name may have an `upstream`: a server with OpenAI's API
   * that is asked before the model, and takes its place as long as it answers. Each request is sent once.
   */
  readonly aliases?: Readonly<Record<string, string | AliasTarget>> | undefined
  /**
   * Address of a server with OpenAI's API, up to /v1, that gets requests for names that nothing here answers. Default:
   * they get status 404.
   * @flag URL
   */
  readonly fallback?: string | undefined
  /**
   * Key for upstreams and `fallback`, if the caller sends none as `x-upstream-authorization`. The header
   * `Authorization` is passed on if this server has no keys of its own.
   */
  readonly upstreamKey?: string | undefined
  /** Called with each chat that was answered, here or by another server. Default: nothing is recorded. */
  readonly record?: ((exchange: Exchange) => Promise<void> | void) | undefined
}

/** What else of a server's options counts here. */
interface Surroundings extends UpstreamOptions {
  readonly apiKeys?: unknown
  readonly timeoutSeconds?: number | undefined
  readonly on?: { error?(error: unknown): void } | undefined
}

export const ALIASES: Kind = kind('names with a model, or { model, upstream: { url, model, when } }', (value) => {
  return isObject(value) && Object.values(value).every((target) => NAME.accepts(target) || isTarget(target))
})

function isTarget(target: unknown): boolean {
  if (!isObject(target)) return false
  const { model = 'x', upstream = { url: 'http://x' }, ...others } = target
  if (!isObject(upstream) || Object.keys(others).length > 0) return false
  const { url, model: there = 'x', when = '2027-01-14', ...rest } = upstream
  const isDay = typeof when === 'string' && /^\d{4}-\d\d-\d\d$/.test(when)
  return [model, url, there].every(NAME.accepts) && isDay && Object.keys(rest).length === 0
}

/** Routes whose body names a model, below /v1. */
const FORWARDED = /^\/v1(\/(?:chat\/completions|completions|responses|embeddings))$/
const SENT = ['accept', 'openai-organization', 'openai-project', 'idempotency-key']
const SHOWN = ['content-type', 'retry-after', 'openai-organization', 'openai-processing-ms']

export class Upstreams {
  readonly #aliases: Readonly<Record<string, AliasTarget>>
  /** Names whose upstream does not have the model any more. */
  readonly #gone = new Set<string>()

  constructor(private readonly options: Surroundings) {
    const { aliases = {}, fallback } = options
    this.#aliases = Object.fromEntries(
      Object.entries(aliases).map(([name, given]) => [name, typeof given === 'string' ? { model: given } : given]),
    )
    for (const [name, { upstream }] of Object.entries(this.#aliases))
      if (upstream !== undefined) checkAddress(upstream.url, `aliases.${name}.upstream.url`)
    if (fallback !== undefined) checkAddress(fallback, 'fallback')
  }

  /** The names that the operator has given, each with the model that it stands for. */
  get names(): Readonly<Record<string, string>> {
    return Object.fromEntries(Object.entries(this.#aliases).map(([name, { model = name }]) => [name, model]))
  }

  /**
   * Asks another server, once. Gives undefined if this one is to answer: it has the model, and the other one has no
   * such model any more, is busy or does not answer.
   *
   * @param isOwn tells whether this server has a model of this name
   */
  async answer(call: Call, body: unknown, isOwn: () => Promise<boolean>): Promise<Response | undefined> {
    const { pathname } = new URL(call.request.url)
    const route = FORWARDED.exec(pathname)?.[1]
    const { model } = isObject(body) ? body : {}
    if (route === undefined || typeof model !== 'string') return undefined
    const named = Object.hasOwn(this.#aliases, model) ? this.#aliases[model].upstream : undefined
    const { fallback } = this.options
    const isOver = named?.when !== undefined && new Date().toISOString().slice(0, 10) > named.when
    const upstream = named !== undefined && !isOver && !this.#gone.has(model) ? named : fallback && { url: fallback }
    if (!upstream) return undefined
    const hasOwn = await isOwn()
    if (hasOwn && upstream !== named) return undefined
    const request = { ...(body as object), model: ('model' in upstream && upstream.model) || model }
    const startedAt = performance.now()
    call.entry.model = model
    const answer = await this.#send(call, `${upstream.url.replace(/\/+$/, '')}${route}`, request).catch((error) => {
      if (call.request.signal.aborted) throw error
      if (hasOwn) return undefined
      throw new HttpError(502, 'The server that has this model does not answer', { code: 'upstream' })
    })
    if (answer === undefined) return undefined
    const { status, headers } = answer
    if (hasOwn && (status === 404 || status === 410)) this.#gone.add(model)
    if (hasOwn && ([404, 408, 410, 429].includes(status) || status >= 500)) {
      await answer.body?.cancel()
      return undefined
    }
    const shown = SHOWN.flatMap((name) => (headers.has(name) ? [[name, headers.get(name)!] as const] : []))
    const { record } = this.options
    const isRecorded = record !== undefined && answer.ok && route === '/chat/completions'
    const keep = async (text: string) => {
      const whole = wholeAnswer(text)
      const ms = performance.now() - startedAt
      if (isRecorded && whole) await record({ url: upstream.url, model, request, answer: whole, ms })
    }
    const passed = passOn(answer, keep, isRecorded)
    call.done = passed.done.catch((error) => this.options.on?.error?.(error))
    return new Response(passed.body, { status, headers: Object.fromEntries(shown) })
  }

  #send({ request: { headers, signal } }: Call, url: string, body: object): Promise<Response> {
    const { apiKeys, upstreamKey, timeoutSeconds = 600 } = this.options
    const key = upstreamKey && `Bearer ${upstreamKey}`
    // With keys of its own, the header is this server's, and no other server may see it.
    const given = apiKeys === undefined ? headers.get('authorization') : null
    const authorization = headers.get('x-upstream-authorization') ?? key ?? given
    const sent = SENT.flatMap((name) => (headers.has(name) ? [[name, headers.get(name)!] as const] : []))
    return fetch(url, {
      method: 'POST',
      headers: {
        ...Object.fromEntries(sent),
        'content-type': 'application/json',
        ...(authorization && { authorization }),
      },
      body: JSON.stringify(body),
      // A redirect could lead to an address that the operator has not given.
      redirect: 'error',
      signal: AbortSignal.any([signal, AbortSignal.timeout(1000 * timeoutSeconds)]),
    })
  }
}

/** Passes a body on piece by piece, and gives its text to `keep` at its end. */
function passOn(answer: Response, keep: (text: string) => Promise<void>, isKept: boolean) {
  const reader = answer.body?.getReader()
  const decoder = new TextDecoder()
  let text = ''
  let end!: (done: Promise<void> | undefined) => void
  const done = new Promise<void>((resolve) => {
    end = (work) => resolve(work)
  })
  const body = new ReadableStream<Uint8Array>({
    async pull(controller) {
      try {
        const { value, done: isDone } = (await reader?.read()) ?? { done: true }
        if (value !== undefined && isKept) text += decoder.decode(value, { stream: true })
        if (!isDone) return controller.enqueue(value!)
        end(keep(text + decoder.decode()))
        controller.close()
      } catch (error) {
        end(undefined)
        controller.error(error)
      }
    },
    cancel(why) {
      end(undefined)
      return reader?.cancel(why)
    },
  })
  return { body, done }
}
