// Parts that all routes share: errors and streams of events.

import { LowrankError } from '../core/base/errors.js'

export class HttpError extends Error {
  readonly type: string
  readonly param: string | null
  readonly code: string | null
  readonly retryAfter: number | undefined
  /** False if the same request would fail again. Clients of OpenAI then do not repeat it. */
  readonly mayRetry: boolean

  constructor(
    readonly status: number,
    message: string,
    details: { type?: string; param?: string | undefined; code?: string | undefined; retryAfter?: number } = {},
  ) {
    super(message)
    this.type = details.type ?? (status >= 500 ? 'server_error' : 'invalid_request_error')
    this.param = details.param ?? null
    this.code = details.code ?? null
    this.retryAfter = details.retryAfter
    this.mayRetry = status !== 507
  }
}

/** The error for a field, or a part of one, that is not as it must be. */
export function invalid(param: string, what: string, code?: string): HttpError {
  return new HttpError(400, `${param}: ${what}`, { param, code })
}

/** Kinds of errors that a caller can cause. */
const OF_CALLERS = new Set(['CONFIG', 'DATA', 'MISMATCH', 'UNSUPPORTED', 'FORMAT', 'SHAPE', 'NUMERIC', 'CONTEXT'])

/** Absolute paths, of Windows too. What stands before a slash tells addresses and routes such as a/b apart. */
const PATHS = /(?<![\w:/\\.])(?:[A-Za-z]:)?[\\/](?:[^\s:'"`,;()\\/]+[\\/])+(?=[^\s\\/])/g

/** A text of lowrank as a caller may read it: without the folders of the server. */
export function withoutPaths(text: string): string {
  return text.replaceAll(PATHS, '')
}

/** `shown` takes folders of the server out of a text. */
export function httpError(error: unknown, shown: (text: string) => string): HttpError {
  if (error instanceof HttpError) return error
  if (error instanceof LowrankError) {
    const status = OF_CALLERS.has(error.code) ? 400 : error.code === 'STATE' ? 503 : 500
    if (status === 500) return new HttpError(500, 'The server failed. Its log says why.')
    const param = error.where === 'ONNX model' ? 'model' : shown(error.where ?? '') || undefined
    const code = error.code === 'CONTEXT' ? 'context_length_exceeded' : undefined
    return new HttpError(status, shown(error.message), { param: status === 400 ? param : undefined, code })
  }
  return new HttpError(500, 'The server failed. Its log says why.')
}

/** How an API writes errors, and the last line of its streams. */
export interface WireForm {
  error(error: HttpError): object
  readonly lastLine?: string
  /** True if each event of a stream is a line of JSON. Such streams have no comments. */
  readonly isLines?: boolean
}

export const OPENAI: WireForm = {
  error: ({ message, type, param, code }) => ({ error: { message, type, param, code } }),
  lastLine: 'data: [DONE]\n\n',
}

export function errorResponse(error: HttpError, form: WireForm): Response {
  const headers: Record<string, string> = {}
  if (!error.mayRetry) headers['x-should-retry'] = 'false'
  if (error.retryAfter !== undefined) headers['retry-after'] = String(error.retryAfter)
  return Response.json(form.error(error), { status: error.status, headers })
}

/** Bytes of events that a caller may leave unread. Whoever leaves more while a text grows loses the stream. */
const MAX_BEHIND = 4 << 20

export interface Events {
  /** An event with a `type` gets it as its name. */
  send(event: object): void
  /** Resolves once the caller has left fewer than MAX_BEHIND bytes unread, or once the request is aborted. */
  room(): Promise<void>
}

/** An error within this time becomes the status of the answer. Later, the headers have been sent. */
const HEADERS_MS = 500
/** A comment is sent this often, because proxies and clients close silent connections. */
const COMMENT_MS = 10_000

/**
 * Server-sent events, or lines of JSON. An error before the first event is thrown, unless the headers have gone out:
 * they go out after half a second. Later errors are events. Until the first event, comments keep the connection open.
 *
 * @param ended aborts with the request: its caller left, or its time is over
 */
export async function eventStream(
  write: (events: Events, signal: AbortSignal) => Promise<void>,
  { error: inForm, lastLine = '', isLines = false }: WireForm,
  onError: (error: unknown, left: AbortSignal) => HttpError,
  ended: AbortSignal,
  { headersMs = HEADERS_MS, commentMs = COMMENT_MS } = {},
): Promise<Response> {
  const left = new AbortController()
  const signal = AbortSignal.any([ended, left.signal])
  const encoder = new TextEncoder()
  let controller!: ReadableStreamDefaultController<Uint8Array>
  let onPull: (() => void) | undefined
  const body = new ReadableStream<Uint8Array>(
    {
      start(created) {
        controller = created
      },
      pull: () => onPull?.(),
      cancel: () => left.abort(new DOMException('The caller left', 'AbortError')),
    },
    { highWaterMark: MAX_BEHIND, size: (chunk) => chunk!.byteLength },
  )
  const put = (text: string) => {
    if (left.signal.aborted) return
    if (controller.desiredSize! > 0) return controller.enqueue(encoder.encode(text))
    const slow = new DOMException('The caller reads too slowly', 'AbortError')
    left.abort(slow)
    controller.error(slow)
  }
  const room = () =>
    new Promise<void>((resolve) => {
      if (signal.aborted || controller.desiredSize! > 0) return resolve()
      onPull = resolve
      signal.addEventListener('abort', () => resolve(), { once: true })
    })
  await new Promise<void>((begin, fail) => {
    let hasBegun = false
    const comment = () => {
      hasBegun = true
      if (!isLines) put(': waiting\n\n')
      begin()
    }
    const headers = setTimeout(comment, headersMs)
    const comments = setInterval(comment, commentMs)
    const stopComments = () => {
      clearTimeout(headers)
      clearInterval(comments)
    }
    const send = (event: { readonly type?: string }) => {
      stopComments()
      hasBegun = true
      const json = JSON.stringify(event)
      put(isLines ? `${json}\n` : `${event.type ? `event: ${event.type}\n` : ''}data: ${json}\n\n`)
      begin()
    }
    const end = () => {
      stopComments()
      put(lastLine)
      if (!left.signal.aborted) controller.close()
      begin()
    }
    write({ send, room }, signal).then(end, (error) => {
      stopComments()
      const told = onError(error, left.signal)
      if (!hasBegun) return fail(told)
      send(inForm(told))
      end()
    })
  })
  const type = isLines ? 'application/x-ndjson' : 'text/event-stream'
  return new Response(body, { headers: { 'content-type': type, 'cache-control': 'no-cache' } })
}
