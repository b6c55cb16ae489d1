// The page's service worker. It does two things:
// - Threads of WebAssembly need a page that is isolated across origins. Static hosts do not send the two headers for it,
//   so this worker adds them to what the page fetches.
// - It keeps the answers of the page's own site, so that a page that was opened once also opens offline. Files of other
//   sites are never kept here.

const CACHE = 'lowrank-page'
const WITHOUT_BODY = [101, 204, 205, 304]

self.addEventListener('install', () => self.skipWaiting())
self.addEventListener('activate', (event) => event.waitUntil(self.clients.claim()))

self.addEventListener('fetch', (event) => {
  const { request } = event
  if (request.cache === 'only-if-cached' && request.mode !== 'same-origin') return
  event.respondWith(answer(event))
})

/** Asks the network first, so that a new version of the page is seen at once. */
async function answer(event) {
  const { request } = event
  const isOurs = request.method === 'GET' && new URL(request.url).origin === self.location.origin
  try {
    const response = isolated(await fetch(request))
    if (isOurs && response.ok) event.waitUntil(keep(request.url, response.clone()).catch(() => {}))
    return response
  } catch (error) {
    const kept = isOurs ? await caches.match(request.url, { ignoreSearch: true }) : undefined
    if (kept === undefined) throw error
    return part(kept, /^bytes=(\d+)-(\d+)$/.exec(request.headers.get('range') ?? ''))
  }
}

/** Files that are being kept. */
const keeping = new Set()

/** Keeps an answer. If it is a part of a file, as of a model, the whole file is fetched once more and kept. */
async function keep(url, response) {
  const cache = await caches.open(CACHE)
  if (response.status === 200) return cache.put(url, response)
  const kept = await cache.match(url)
  if (keeping.has(url) || kept?.headers.get('etag') === response.headers.get('etag')) return
  keeping.add(url)
  try {
    await cache.put(url, isolated(await fetch(url)))
  } finally {
    keeping.delete(url)
  }
}

/** The part of a kept file that a request asks for: RFC 9110, section 14. */
async function part(kept, range) {
  if (range === null) return kept
  const whole = await kept.blob()
  const [from, to] = [Number(range[1]), Math.min(Number(range[2]), whole.size - 1)]
  const headers = new Headers(kept.headers)
  headers.set('Content-Range', `bytes ${from}-${to}/${whole.size}`)
  headers.set('Content-Length', String(to - from + 1))
  return new Response(whole.slice(from, to + 1), { status: 206, headers })
}

function isolated(response) {
  // Answers of other origins without CORS cannot be read, nor changed.
  if (response.status === 0) return response
  const { status, statusText } = response
  const headers = new Headers(response.headers)
  headers.set('Cross-Origin-Embedder-Policy', 'require-corp')
  headers.set('Cross-Origin-Opener-Policy', 'same-origin')
  headers.set('Cross-Origin-Resource-Policy', 'cross-origin')
  return new Response(WITHOUT_BODY.includes(status) ? null : response.body, { status, statusText, headers })
}
