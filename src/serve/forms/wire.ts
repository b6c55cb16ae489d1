// In which form a request expects errors and the end of a stream.

import { OPENAI, type WireForm } from '../http.js'
import { ANTHROPIC } from './anthropic.js'
import { OLLAMA } from './ollama.js'

export function wireOf({ url, headers }: Request): WireForm {
  const { pathname } = new URL(url)
  if (pathname.startsWith('/api/')) return OLLAMA
  return headers.has('anthropic-version') || pathname.startsWith('/v1/messages') ? ANTHROPIC : OPENAI
}
