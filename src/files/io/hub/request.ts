// Requests to the Hub and to web servers. The Hub's token is never sent to another host.

import { type ErrorDetails, FileError } from '../../../core/base/errors.js'
import type { FetchLike, ResponseLike, SignalLike, UrlLike } from '../../../core/base/globals.js'

export interface HubConnection {
  /** The Hub's address, without a slash at the end. */
  readonly endpoint: string
  /** An access token for private and gated repositories. Only the Hub gets it. */
  readonly token?: string | undefined
  /** The function that sends requests. Default: the global fetch. */
  readonly fetch?: FetchLike | undefined
  /** Aborts the running request and all later ones. */
  readonly signal?: SignalLike | undefined
  /** True in browsers, which follow redirects and hide where they lead. Elsewhere we follow them. Default false. */
  readonly hidesRedirects?: boolean
  /** Longest wait for the next bytes. Default {@link STALL_MS}. */
  readonly stallMs?: number | undefined
  /** Pause before a request is sent again. Default {@link RETRY_MS}. */
  readonly retryMs?: number | undefined
  /** After this time, an answer slower than 1 kB/s is given up. Default {@link SLOW_MS}. */
  readonly slowMs?: number | undefined
}

/** The Hub answers within seconds, and its storage sends without pauses. */
export const STALL_MS = 30_000
export const RETRY_MS = 1000
/** A minute. At less than {@link SLOWEST}, a gigabyte would take twelve days. */
export const SLOW_MS = 60_000
export const SLOWEST = 1000
/** The longest pause that a server may ask for. If it asks for a longer one, the user gets an error instead. */
const MAX_ASKED_MS = 60_000
/** Two are usual: one for a renamed repository, one for the storage host. */
const MAX_REDIRECTS = 8

/**
 * Why the Hub sent nothing. `unreachable`: it cannot be reached at the moment. `access`: you have no access, or there
 * is no such repository; the Hub does not say which. `absent`: the repository has no such revision or file. For the
 * first two reasons the cache may be used instead.
 */
export class HubError extends FileError {
  /** Node prints this name before the stack. Callers know the class as FileError. */
  static override readonly name = 'FileError'
  readonly kind: 'unreachable' | 'access' | 'absent'
  /** True if trying again within a minute would fail in the same way. */
  readonly isFinal: boolean

  constructor(kind: HubError['kind'], details: ErrorDetails, isFinal = false) {
    super(details)
    this.kind = kind
    this.isFinal = isFinal
  }
}

export function isUnreachable(error: unknown): error is HubError {
  return error instanceof HubError && error.kind === 'unreachable'
}

export function isWorthATry(error: unknown): boolean {
  return isUnreachable(error) && !error.isFinal
}

export interface HubAnswer {
  readonly response: ResponseLike
  /** The address that answered, after redirects that we follow. */
  readonly address: string
  chunks(): AsyncGenerator<Uint8Array<ArrayBuffer>>
  cancel(): Promise<void>
}

/** Waits for the head of an answer with any status. Throws an `unreachable` HubError if none arrives. */
export async function request(
  connection: HubConnection,
  address: string,
  headers: Record<string, string> = {},
): Promise<HubAnswer> {
  const { fetch = globalThis.fetch, token, endpoint, hidesRedirects = false, stallMs = STALL_MS, signal } = connection
  const { slowMs = SLOW_MS } = connection
  const watch = new Watch(stallMs, signal)
  let url = new URL(address)
  try {
    for (let redirects = 0; redirects <= MAX_REDIRECTS; redirects++) {
      const isAllowed = token !== undefined && url.origin === new URL(endpoint).origin
      const authorization = isAllowed ? { authorization: `Bearer ${token}` } : undefined
      const redirect = hidesRedirects ? 'follow' : 'manual'
      watch.wait()
      const response = await fetch(url, { headers: { ...headers, ...authorization }, redirect, signal: watch.signal })
      const location = response.headers.get('location')
      if (![301, 302, 303, 307, 308].includes(response.status) || location === null) {
        return {
          response,
          address: url.href,
          chunks: () => chunksOf(url, response, watch, slowMs),
          async cancel() {
            watch.rest()
            await response.body?.cancel().catch(() => {})
          },
        }
      }
      await response.body?.cancel().catch(() => {})
      url = redirected(url, location)
    }
  } catch (cause) {
    watch.rest()
    throw failure(url, cause, watch)
  }
  watch.rest()
  throw new FileError({ where: shown(address), what: `more than ${MAX_REDIRECTS} redirects, one after the other` })
}

function redirected(from: URL, location: string): URL {
  const to = URL.canParse(location, from) ? new URL(location, from) : undefined
  if (to !== undefined && (to.protocol === 'https:' || to.protocol === from.protocol)) return to
  throw new FileError({
    where: shown(from),
    what: 'a redirect that is not followed',
    expected: `an address with ${from.protocol}`,
    got: JSON.stringify(location),
  })
}

async function* chunksOf(
  url: URL,
  response: Response,
  watch: Watch,
  slowMs: number,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  const reader = response.body?.getReader()
  let [waitedMs, bytes] = [0, 0]
  try {
    for (;;) {
      watch.wait()
      const before = performance.now()
      const part = await reader?.read()
      // Stop the timeout while the caller handles the bytes: only pauses of the server count.
      watch.rest()
      if (part === undefined || part.done) return
      waitedMs += performance.now() - before
      bytes += part.value.byteLength
      if (waitedMs >= slowMs) {
        if (bytes < (SLOWEST * slowMs) / 1000) {
          const what = `the connection is too slow: less than 1 kB/s for ${slowMs / 1000} s`
          const hint = 'Try again on a better connection'
          throw new HubError('unreachable', { where: shown(url), what, hint }, true)
        }
        waitedMs = 0
        bytes = 0
      }
      yield part.value
    }
  } catch (cause) {
    throw failure(url, cause, watch)
  } finally {
    watch.rest()
    await reader?.cancel().catch(() => {})
  }
}

/** An address as messages show it: without its query, which may hold a signature. */
export function shown(url: UrlLike | string): string {
  const { origin, pathname } = new URL(url)
  return origin + pathname
}

function failure(url: URL, cause: unknown, watch: Watch): unknown {
  if (cause instanceof FileError) return cause
  if (watch.outer?.aborted) return watch.outer.reason
  const what = watch.isStalled ? `no answer for ${watch.stallMs / 1000} s` : 'cannot be reached'
  return new HubError('unreachable', {
    where: shown(url),
    what,
    hint: 'Check the internet connection, or use a folder on this machine',
    cause,
  })
}

/** Aborts a request if nothing comes for a while, or if the caller's signal (`outer`) says so. */
class Watch {
  readonly #stall = new AbortController()
  readonly signal: AbortSignal
  #timer: ReturnType<typeof setTimeout> | undefined

  constructor(
    readonly stallMs: number,
    readonly outer: AbortSignal | undefined,
  ) {
    outer?.throwIfAborted()
    this.signal = AbortSignal.any([this.#stall.signal, ...(outer === undefined ? [] : [outer])])
  }

  get isStalled(): boolean {
    return this.#stall.signal.aborted
  }

  wait(): void {
    this.rest()
    this.#timer = setTimeout(() => this.#stall.abort(), this.stallMs)
  }

  rest(): void {
    clearTimeout(this.#timer)
  }
}

/** Waits before attempt number `attempt` (from 1), or as long as the server asked for, at most a minute. */
export async function pause(connection: HubConnection, attempt: number, answer?: HubAnswer): Promise<void> {
  const { retryMs = RETRY_MS, signal } = connection
  const asked = askedMs(answer?.response.headers.get('retry-after'))
  if (asked !== undefined && asked > MAX_ASKED_MS) {
    const what = `the server asks to wait ${Math.ceil(asked / 1000)} s`
    const hint = 'Try again after that time'
    throw new HubError('unreachable', { where: connection.endpoint, what, hint }, true)
  }
  const wait = asked ?? retryMs * 2 ** (attempt - 1)
  signal?.throwIfAborted()
  await new Promise<void>((resolve) => {
    const end = () => {
      clearTimeout(timer)
      signal?.removeEventListener('abort', end)
      resolve()
    }
    const timer = setTimeout(end, wait)
    signal?.addEventListener('abort', end)
  })
  signal?.throwIfAborted()
}

function askedMs(header: string | null | undefined): number | undefined {
  if (header == null || header.trim() === '') return undefined
  const wait = /^\s*\d+\s*$/.test(header) ? Number(header) * 1000 : Date.parse(header) - Date.now()
  return Number.isNaN(wait) ? undefined : Math.max(0, wait)
}
