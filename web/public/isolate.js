// The page's service worker. It does two things:
// - Threads of WebAssembly need a page that is isolated across origins. Static hosts do not send the two headers for it,
//   so this worker adds them to what the page fetches.
// - It keeps the answers of the page's own site, so that a page that was opened once also opens offline. Files of other
//   sites are never kept here.

const CACHE = 'lowrank-page'

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
    if (isOurs && response.status === 200) event.waitUntil(keep(request.url, response.clone()).catch(() => {}))
    return response
  } catch (error) {
    const kept = isOurs ? await caches.match(request.url, { ignoreSearch: true }) : undefined
    if (kept === undefined) throw error
    return kept
  }
}

async function keep(url, response) {
  await (await caches.open(CACHE)).put(url, response)
}

function isolated(response) {
  // Answers of other origins without CORS cannot be read, nor changed.
  if (response.status === 0) return response
  const { status, statusText } = response
  const headers = new Headers(response.headers)
  headers.set('Cross-Origin-Embedder-Policy', 'require-corp')
  headers.set('Cross-Origin-Opener-Policy', 'same-origin')
  headers.set('Cross-Origin-Resource-Policy', 'cross-origin')
  return new Response(response.body, { status, statusText, headers })
}
