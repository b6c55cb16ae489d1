// Threads of WebAssembly need a page that is isolated across origins. Static hosts do not send the two headers for it, so this
// service worker adds them to what the page fetches.

self.addEventListener('install', () => self.skipWaiting())
self.addEventListener('activate', (event) => event.waitUntil(self.clients.claim()))

const WITHOUT_BODY = [101, 204, 205, 304]

self.addEventListener('fetch', (event) => {
  const { request } = event
  if (request.cache === 'only-if-cached' && request.mode !== 'same-origin') return
  event.respondWith(
    fetch(request).then((response) => {
      // Answers of other origins without CORS cannot be read, nor changed.
      if (response.status === 0) return response
      const { status, statusText } = response
      const headers = new Headers(response.headers)
      headers.set('Cross-Origin-Embedder-Policy', 'require-corp')
      headers.set('Cross-Origin-Opener-Policy', 'same-origin')
      headers.set('Cross-Origin-Resource-Policy', 'cross-origin')
      return new Response(WITHOUT_BODY.includes(status) ? null : response.body, { status, statusText, headers })
    }),
  )
})
