// Serves a handler with node:http, and finds adapters in a folder.

import { realpath } from 'node:fs/promises'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import path from 'node:path'
import { Readable } from 'node:stream'
import { ConfigError } from '../../base/errors.js'
import { checkArgument, checkOptions, FUNCTION } from '../../base/options.js'
import type { ResolveAdapter } from '../adapters.js'
import { LISTEN_OPTIONS } from '../gen/options.js'

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
}

/**
 * Answers the requests of a port.
 *
 * @param handler as `createHandler` gives it
 * @returns the server, which listens, and its address
 * @throws ConfigError for a port that is not valid or in use, and for an address that this machine does not have
 *
 * @example
 * import { createHandler, listen } from 'lowrank/server'
 *
 * const handler = await createHandler({ model: 'models/union-3m' })
 * const { server, url } = await listen(handler, { port: 0 })
 * console.log(await (await fetch(`${url}/health`)).text())
 * server.close()
 * await handler.close()
 */
export async function listen(
  handler: (request: Request) => Promise<Response>,
  options: ListenOptions = {},
): Promise<{ server: Server; url: string }> {
  checkArgument(handler, FUNCTION, 'handler')
  checkOptions(options, 'listen', LISTEN_OPTIONS)
  const { host = '127.0.0.1', port = 8000 } = options
  const server = createServer((request, response) => void answer(handler, request, response))
  // A request whose headers or body come too slowly would hold its socket.
  server.requestTimeout = 60_000
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause) => reject(notListening(cause, host, port)))
    server.listen(port, host, resolve)
  })
  const address = server.address()
  const own = typeof address === 'object' && address !== null ? address.port : port
  return { server, url: `http://${host.includes(':') ? `[${host}]` : host}:${own}` }
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
  incoming: IncomingMessage,
  outgoing: ServerResponse,
): Promise<void> {
  const left = new AbortController()
  outgoing.on('close', () => left.abort(new DOMException('The caller left', 'AbortError')))
  try {
    const response = await handler(requestOf(incoming, left.signal))
    outgoing.writeHead(response.status, Object.fromEntries(response.headers))
    if (response.body === null) outgoing.end()
    else
      for await (const chunk of response.body) {
        if (left.signal.aborted) break
        if (!outgoing.write(chunk)) await drained(outgoing)
      }
    outgoing.end()
  } catch {
    // Only a request that is no HTTP of ours, or a caller that left, gets here.
    if (!outgoing.headersSent) outgoing.writeHead(400)
    outgoing.end()
  }
}

function drained(outgoing: ServerResponse): Promise<void> {
  return new Promise((resolve) => {
    outgoing.once('drain', resolve)
    outgoing.once('close', resolve)
  })
}

function requestOf(incoming: IncomingMessage, signal: AbortSignal): Request {
  const { method = 'GET', headers, url = '/' } = incoming
  const list = Object.entries(headers).flatMap(([name, value]) =>
    [value ?? []].flat().map((one): [string, string] => [name, one]),
  )
  const hasBody = method !== 'GET' && method !== 'HEAD'
  return new Request(new URL(url, `http://${headers.host ?? 'localhost'}`), {
    method,
    headers: list,
    signal,
    ...(hasBody && { body: Readable.toWeb(incoming) as ReadableStream<Uint8Array>, duplex: 'half' }),
  })
}

/**
 * Finds adapters by the name of their folder inside one folder. Links are resolved first, so that none leads out of it.
 *
 * @param folder the folder that holds the adapters' folders
 *
 * @example
 * import { folderOfAdapters } from 'lowrank/server'
 *
 * const resolveAdapter = folderOfAdapters('tests/golden/peft')
 * console.log(await resolveAdapter('f32'), await resolveAdapter('../../models'))
 */
export function folderOfAdapters(folder: string): ResolveAdapter {
  return async (name) => {
    try {
      const root = await realpath(folder)
      const found = await realpath(path.resolve(root, name))
      return found.startsWith(root + path.sep) ? found : undefined
    } catch {
      return undefined
    }
  }
}
