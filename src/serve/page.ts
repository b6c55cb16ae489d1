// The page to talk to the model, built from web/chat.

import { files } from './gen/chat-page.js'

/** A file of the page. The page loads nothing from elsewhere, and no other page may show it in a frame. */
export function pageFile(pathname: string): Response {
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
