// In which form a request expects errors and the end of a stream.

import { OPENAI, type WireForm } from '../http.js'
import { ANTHROPIC } from './anthropic.js'

export function wireOf({ url, headers }: Request): WireForm {
  return headers.has('anthropic-version') || new URL(url).pathname.startsWith('/v1/messages') ? ANTHROPIC : OPENAI
}
