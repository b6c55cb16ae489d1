// Parts that all routes share: errors in OpenAI's form, JSON bodies with a limit, and streams of events.

import { concatBytes } from '../base/bytes.js'
import { LowrankError } from '../base/errors.js'
import { isObject } from '../base/options.js'

export class HttpError extends Error {
  readonly type: string
  readonly param: string | null
  readonly code: string | null
  readonly retryAfter: number | undefined

  constructor(
    readonly status: number,
    message: string,
    details: { type?: string; param?: string | undefined; code?: string; retryAfter?: number } = {},
  ) {
    super(message)
    this.type = details.type ?? (status >= 500 ? 'server_error' : 'invalid_request_error')
    this.param = details.param ?? null
    this.code = details.code ?? null
    this.retryAfter = details.retryAfter
  }
}

/** Kinds of errors that a caller can cause. */
const OF_CALLERS = new Set(['CONFIG', 'DATA', 'MISMATCH', 'UNSUPPORTED', 'FORMAT', 'SHAPE', 'NUMERIC'])

/** `shown`: what a caller may read of a text, without paths of the server. */
export function httpError(error: unknown, shown: (text: string) => string): HttpError {
  if (error instanceof HttpError) return error
  if (error instanceof LowrankError) {
    const status = OF_CALLERS.has(error.code) ? 400 : error.code === 'STATE' ? 503 : 500
    const param = error.where === 'ONNX model' ? 'model' : shown(error.where ?? '') || undefined
    return new HttpError(status, shown(error.message), { param: status === 400 ? param : undefined })
  }
  return new HttpError(500, 'The server failed. Its log says why.')
}

export function errorBody({ message, type, param, code }: HttpError): object {
  return { error: { message, type, param, code } }
}

export function errorResponse(error: HttpError): Response {
  const headers: Record<string, string> = {}
  if (error.retryAfter !== undefined) headers['retry-after'] = String(error.retryAfter)
  return Response.json(errorBody(error), { status: error.status, headers })
}

export async function readJson(request: Request, maxBytes: number): Promise<Record<string, unknown>> {
  const type = request.headers.get('content-type') ?? ''
  if (!/^application\/json\s*(;|$)/i.test(type)) {
    throw new HttpError(415, `The body must have the type application/json, not ${type || 'none'}`)
  }
  const tooLarge = () => new HttpError(413, `The body is larger than ${maxBytes} bytes`, { code: 'body_too_large' })
  if (Number(request.headers.get('content-length') ?? 0) > maxBytes) throw tooLarge()
  const chunks: Uint8Array[] = []
  let length = 0
  const reader = request.body?.getReader()
  for (;;) {
    const next = await reader?.read()
    if (next === undefined || next.done) break
    length += next.value.byteLength
    if (length > maxBytes) {
      await reader?.cancel()
      throw tooLarge()
    }
    chunks.push(next.value)
  }
  try {
    const value: unknown = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(concatBytes(chunks)))
    if (isObject(value)) return value
  } catch (error) {
    throw new HttpError(400, `The body is not valid JSON: ${(error as Error).message}`)
  }
  throw new HttpError(400, 'The body is not a JSON object')
}

/** Server-sent events. An error before the first event is thrown, one after it is an event. */
export async function eventStream(
  write: (send: (event: { type?: string }) => void, signal: AbortSignal) => Promise<void>,
  onError: (error: unknown, left: AbortSignal) => HttpError,
): Promise<Response> {
  const left = new AbortController()
  const encoder = new TextEncoder()
  let controller: ReadableStreamDefaultController<Uint8Array> | undefined
  const body = new ReadableStream<Uint8Array>({
    start(own) {
      controller = own
    },
    cancel() {
      left.abort(new DOMException('The caller left', 'AbortError'))
    },
  })
  const line = (text: string, name = '') => {
    if (!left.signal.aborted) controller?.enqueue(encoder.encode(`${name}data: ${text}\n\n`))
  }
  await new Promise<void>((begin, fail) => {
    let hasBegun = false
    const send = (event: { type?: string }) => {
      hasBegun = true
      line(JSON.stringify(event), event.type && `event: ${event.type}\n`)
      begin()
    }
    const end = () => {
      line('[DONE]')
      if (!left.signal.aborted) controller?.close()
      begin()
    }
    write(send, left.signal).then(end, (error) => {
      if (!hasBegun) return fail(error)
      line(JSON.stringify(errorBody(onError(error, left.signal))))
      end()
    })
  })
  return new Response(body, { headers: { 'content-type': 'text/event-stream', 'cache-control': 'no-cache' } })
}
