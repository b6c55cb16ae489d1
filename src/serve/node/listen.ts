// Serves a handler with node:http.

import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { ConfigError } from '../../core/base/errors.js'
import { checkArgument, checkOptions, kind } from '../../core/base/options.js'
import { LISTEN_OPTIONS } from '../gen/options.js'
import { Outbox } from './outbox.js'
import { bodyStream } from './streams.js'

/** The address on which a server listens. */
export interface ListenOptions {
  /**
   * The address to listen on. Default: 127.0.0.1, this machine alone.
   * @flag HOST
   */
  readonly host?: string | undefined
  /**
   * The port; 0 takes a free one.
   * @range an integer in [0, 65535]
   * @default 8000
   */
  readonly port?: number | undefined
  /**
   * A second port, which answers `/metrics` without a key. Default: none.
   * @range an integer in [0, 65535]
   */
  readonly metricsPort?: number | undefined
  /**
   * When the server stops, answers that have begun get this many seconds. Then they are cut off.
   * @range an integer of at least 0
   * @default 25
   * @help seconds for answers that have begun when the server stops
   */
  readonly drainSeconds?: number | undefined
}

/** A server that listens. */
export interface Listening {
  readonly server: Server
  /** Its address. */
  readonly url: string
  /** The address of the port for metrics. */
  readonly metricsUrl: string | undefined
  /**
   * Takes no new connections, lets the handler drain, and waits until the requests that have begun are answered, at
   * most `drainSeconds`. Then all connections are closed. The handler stays open. Resolves to false if answers were cut
   * off by `drainSeconds`.
   */
  close(): Promise<boolean>
}

/**
 * Answers the requests of a port. A caller that reads nothing of its answer for 30 seconds loses the connection. If
 * more than 64 MiB wait for all callers together, the slowest callers lose theirs too.
 *
 * @param handler as `createHandler` gives it, or any function from Request to Response. For a promise of it, the port
 *   opens at once: until the handler is there, `/health` says that the server lives, and all else gets status 503
 * @throws ConfigError for a port that is not valid or in use, and for an address that this machine does not have
 *
 * @example
 * import { createHandler, listen } from 'lowrank/server'
 *
 * const handler = await createHandler({ model: 'models/union-3m' })
 * const { url, close } = await listen(handler, { port: 0 })
 * console.log(await (await fetch(`${url}/health`)).text())
 * await close()
 * await handler.close()
 */
export async function listen(handler: Listener | Promise<Listener>, options: ListenOptions = {}): Promise<Listening> {
  checkArgument(handler, HANDLER, 'handler')
  checkOptions(options, 'listen', LISTEN_OPTIONS)
  const { host = '127.0.0.1', port = 8000, metricsPort, drainSeconds = 25 } = options
  const outbox = new Outbox()
  const answering = new Set<Promise<void>>()
  let current: Listener = typeof handler === 'function' ? handler : loading
  // If the handler fails to open, the promise `handler` tells the caller.
  if (typeof handler !== 'function') handler.then((opened) => (current = opened)).catch(() => {})
  const serve = (handle: Listener) =>
    createServer((request, response) => {
      const answered = answer(handle, outbox, request, response).finally(() => answering.delete(answered))
      answering.add(answered)
    })
  const server = serve((request) => current(request))
  // A request whose headers or body come too slowly would hold its socket.
  server.requestTimeout = 60_000
  // Proxies keep idle connections for about a minute. If the server closed one first, a request might be on its way.
  server.keepAliveTimeout = 75_000
  const metrics = serve(async (request) => {
    if (new URL(request.url).pathname !== '/metrics') return new Response(null, { status: 404 })
    return new Response(await current.metrics?.(), { headers: { 'content-type': 'text/plain; version=0.0.4' } })
  })
  const url = await bind(server, host, port)
  const metricsUrl = metricsPort === undefined ? undefined : await bind(metrics, host, metricsPort)
  const close = async () => {
    server.close()
    const drained = async () => {
      await current.drain?.()
      await Promise.all(answering)
      return true
    }
    let timer: NodeJS.Timeout | undefined
    // The timer keeps Node running: without it, Node would end in the middle if all callers have left.
    const late = new Promise<boolean>((resolve) => {
      timer = setTimeout(() => resolve(false), 1000 * drainSeconds)
    })
    const isWhole = await Promise.race([drained(), late]).finally(() => clearTimeout(timer))
    for (const open of [server, metrics]) open.closeAllConnections()
    metrics.close()
    return isWhole
  }
  let closed: Promise<boolean> | undefined
  return { server, url, metricsUrl, close: () => (closed ??= close()) }
}

interface Listener {
  (request: Request): Promise<Response>
  readonly drain?: () => Promise<void>
  readonly metrics?: () => Promise<string>
}

const HANDLER = kind('a function, or a promise of one', (value) => {
  return typeof value === 'function' || value instanceof Promise
})

async function loading(request: Request): Promise<Response> {
  if (new URL(request.url).pathname === '/health') return new Response('ok')
  const error = { message: 'The model is loading', type: 'server_error', param: null, code: null }
  return Response.json({ error }, { status: 503, headers: { 'retry-after': '5' } })
}

async function bind(server: Server, host: string, port: number): Promise<string> {
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause) => reject(notListening(cause, host, port)))
    server.listen(port, host, resolve)
  })
  const address = server.address()
  const bound = typeof address === 'object' && address !== null ? address.port : port
  return `http://${host.includes(':') ? `[${host}]` : host}:${bound}`
}

function notListening(cause: NodeJS.ErrnoException, host: string, port: number): Error {
  const isUsed = cause.code === 'EADDRINUSE'
  return new ConfigError({
    where: isUsed || cause.code === 'EACCES' ? 'port' : 'host',
    what: isUsed ? 'used by another program' : `cannot be listened on (${cause.code ?? cause.message})`,
    got: isUsed ? `${port}` : `${host}:${port}`,
    hint: isUsed ? 'Choose another port; 0 takes a free one' : 'Choose another address',
    cause,
  })
}

async function answer(
  handler: (request: Request) => Promise<Response>,
  outbox: Outbox,
  incoming: IncomingMessage,
  outgoing: ServerResponse,
): Promise<void> {
  const left = new AbortController()
  outgoing.on('close', () => left.abort(new DOMException('The caller left', 'AbortError'))).on('error', () => {})
  try {
    const response = await handler(requestOf(incoming, left.signal))
    // The rest of a body that nobody waits for would be read as the next request.
    if (!incoming.complete) outgoing.shouldKeepAlive = false
    outgoing.writeHead(response.status, Object.fromEntries(response.headers))
    for await (const chunk of response.body ?? []) {
      if (left.signal.aborted) break
      await outbox.write(outgoing, chunk)
    }
  } catch {
    // A request that cannot be read as HTTP, or a stream that broke off: half an answer must not look like a whole.
    if (outgoing.headersSent) outgoing.destroy()
    else outgoing.writeHead(400)
  }
  // Its `close` may have been long ago.
  if (outgoing.destroyed) return
  await new Promise<void>((resolve) => {
    outgoing.once('close', resolve)
    outgoing.end(resolve)
  })
}

function requestOf(incoming: IncomingMessage, signal: AbortSignal): Request {
  const { method = 'GET', headers, url = '/' } = incoming
  const list = Object.entries(headers).flatMap(([name, value]) =>
    [value ?? []].flat().map((line): [string, string] => [name, line]),
  )
  const hasBody = method !== 'GET' && method !== 'HEAD'
  return new Request(new URL(url, `http://${headers.host ?? 'localhost'}`), {
    method,
    headers: list,
    signal,
    ...(hasBody && { body: bodyStream(incoming), duplex: 'half' }),
  })
}
