// Requests to a provider: repeated as its answers ask for it, and without redirects that would carry a key elsewhere.

import { setTimeout as sleep } from 'node:timers/promises'
import { LowrankError, messageOf, RuntimeError } from '../../../core/base/errors.js'
import { isObject, jsonIn, withoutPassword } from '../../../core/base/options.js'
import type { Answer } from '../compare.js'
import type { Message } from '../prompts.js'
import type { Connection, Item } from '../provider.js'

const TRIES = 6
const SECONDS = 600
const WAIT_MS = 500
const MOST_WAIT_MS = 60_000
export const AT_ONCE = 4

/** An answer that repeating does not change, such as 403 and 404. */
export class Refusal extends RuntimeError {
  constructor(
    where: string,
    /** The status of HTTP; 0 if the answer never came, or not as a whole. */
    readonly status: number,
    message: string,
    /** OpenAI's code, such as model_not_found. */
    readonly reason: string | undefined,
  ) {
    super({
      where,
      what: 'the provider does not answer this',
      got: status === 0 ? message : `status ${status}: ${message}`,
    })
  }
}

export interface AskOptions {
  readonly method?: 'GET' | 'POST'
  readonly body?: string | FormData | undefined
  readonly signal?: AbortSignal | undefined
  readonly seconds?: number | undefined
  readonly tries?: number | undefined
  /** Called before each try. */
  beforeTry?(): Promise<void>
}

/**
 * Asks, and reads the answer. It waits as `retry-after-ms`, `retry-after` and `x-should-retry` say. A body that breaks
 * off counts as a lost answer.
 *
 * @throws Refusal
 */
export async function ask<T>(
  { url, headers }: Connection,
  path: string,
  read: (answer: Response) => Promise<T>,
  { method = 'GET', body, signal, seconds = SECONDS, tries = TRIES, beforeTry }: AskOptions = {},
): Promise<T> {
  const where = withoutPassword(`${url}${path}`)
  for (let attempt = 1; ; attempt++) {
    await beforeTry?.()
    let waitMs: number
    try {
      const deadline = AbortSignal.timeout(1000 * seconds)
      const answer = await follow(`${url}${path}`, {
        method,
        headers: { ...headers, ...(typeof body === 'string' && { 'content-type': 'application/json' }) },
        ...(body !== undefined && { body }),
        signal: signal === undefined ? deadline : AbortSignal.any([deadline, signal]),
      })
      if (answer.ok) return await read(answer)
      const error = errorIn(await answer.text())
      if (attempt === tries || !isWorthRepeating(answer))
        throw new Refusal(where, answer.status, error.message, error.code)
      waitMs = waitOf(answer.headers, attempt)
    } catch (cause) {
      if (signal?.aborted || cause instanceof LowrankError) throw cause
      if (attempt === tries)
        throw new Refusal(where, 0, `no whole answer: ${messageOf((cause as Error).cause ?? cause)}`, undefined)
      waitMs = waitOf(new Headers(), attempt)
    }
    await sleep(waitMs, undefined, { signal })
  }
}

export const askJson = (connection: Connection, path: string, options?: AskOptions) =>
  ask(connection, path, async (answer) => (await answer.json()) as Item, options)

/** Another server than the provider's, such as one that stores files, gets no key. */
async function follow(url: string, init: RequestInit): Promise<Response> {
  const answer = await fetch(url, { ...init, redirect: 'manual' })
  const to = answer.headers.get('location')
  if (answer.status < 300 || answer.status >= 400 || to === null || init.method !== 'GET') return answer
  const next = new URL(to, url)
  const isSame = next.origin === new URL(url).origin
  return fetch(next, { ...init, ...(!isSame && { headers: {} }), redirect: isSame ? 'error' : 'follow' })
}

function errorIn(text: string): { message: string; code: string | undefined } {
  const body = jsonIn(text)
  const error = isObject(body) && isObject(body.error) ? body.error : {}
  const { message = text.slice(0, 200), code } = error as { message?: unknown; code?: unknown }
  return { message: String(message).slice(0, 500), code: typeof code === 'string' ? code : undefined }
}

function isWorthRepeating({ status, headers }: Response): boolean {
  const said = headers.get('x-should-retry')
  if (said === 'true' || said === 'false') return said === 'true'
  return [408, 409, 429].includes(status) || status >= 500
}

function waitOf(headers: Headers, attempt: number): number {
  const after = headers.get('retry-after') ?? ''
  const said = [
    Number.parseFloat(headers.get('retry-after-ms') ?? ''),
    1000 * (/^[\d.]+$/.test(after) ? Number(after) : Number.NaN),
    Date.parse(after) - Date.now(),
  ].find((ms) => Number.isFinite(ms) && ms >= 0)
  return said ?? Math.min(MOST_WAIT_MS, WAIT_MS * 2 ** (attempt - 1))
}

/** Asks our own server: the answer, or what is wrong with the request. */
export async function askHandler(
  handler: (request: Request) => Promise<Response>,
  body: object,
): Promise<{ readonly answer?: Answer; readonly error?: string }> {
  const headers = { 'content-type': 'application/json' }
  const init = { method: 'POST', headers, body: JSON.stringify(body) }
  const response = await handler(new Request('http://localhost/v1/chat/completions', init))
  const text = await response.text()
  if (!response.ok) return { error: errorIn(text).message }
  const [choice] = (jsonIn(text) as { choices: { message: Message; finish_reason: string }[] }).choices
  return { answer: { answer: choice.message, finish: choice.finish_reason } }
}

/** After an error nothing more is begun, and what has begun ends before the error is thrown. */
export async function inPool<T>(items: readonly T[], work: (item: T) => Promise<unknown>): Promise<void> {
  const left = [...items]
  const worker = async () => {
    for (let item = left.shift(); item !== undefined; item = left.shift()) {
      await work(item).catch((error) => {
        left.length = 0
        throw error
      })
    }
  }
  const ended = await Promise.allSettled(Array.from({ length: AT_ONCE }, worker))
  for (const end of ended) if (end.status === 'rejected') throw end.reason
}
