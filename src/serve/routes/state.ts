// How the server is, for probes and for Prometheus, and its page.

import { files } from '../gen/chat-page.js'
import { VERSION } from '../gen/version.js'
import { HttpError } from '../http.js'
import type { Caller } from '../keys.js'
import type { Call } from '../route.js'
import { type Serving, stopping } from '../serving.js'

export const health = () => new Response('ok')

export function ready({ isStopping }: Serving): Response {
  if (isStopping) throw stopping()
  return new Response('ok')
}

export function version({ jobs }: Serving): Response {
  return Response.json({ version: VERSION, ...(jobs !== undefined && { trains: true }) })
}

export async function metrics(serving: Serving, { caller }: Call): Promise<Response> {
  return new Response(await metricsText(serving, caller), { headers: { 'content-type': 'text/plain; version=0.0.4' } })
}

/** @param caller whose models are named; without one, all are */
export async function metricsText(serving: Serving, caller?: Caller): Promise<string> {
  const { session, gate, registry, maxAdapters } = serving
  // A session that is closing has no cache.
  const { tokens, mostTokens } = await session.cacheUse().catch(() => ({ tokens: 0, mostTokens: 0 }))
  const known = caller && (await registry.knownTo(caller, [...registry.loaded, ...serving.metrics.waiting]))
  return serving.metrics.text({
    running: gate.running,
    waiting: gate.waiting.length,
    ...{ tokens, mostTokens, maxAdapters },
    adapters: registry.loaded,
    shows: (name) => known === undefined || known.includes(name),
  })
}

/** A file of the page. The page loads nothing from elsewhere, and no other page may show it in a frame. */
export function page({ options }: Serving, { request }: Call): Response {
  const { pathname } = new URL(request.url)
  const isPage = (request.headers.get('accept') ?? '').includes('text/html')
  // Clients of Ollama look for this text. Whether a server is there, many ask by HEAD.
  if (pathname === '/' && (request.method === 'HEAD' || !isPage)) return new Response('Ollama is running')
  if (options.page !== true) throw new HttpError(404, 'The page is off here', { code: 'not_found' })
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
