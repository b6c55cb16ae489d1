// OpenAI's messages → those of a chat template: one text each, and pictures beside them.

import type { MessageOfParts, MessagePart } from '../../api/index.js'
import { isObject } from '../../core/base/options.js'
import type { Fields } from '../fields.js'
import { invalid } from '../http.js'

export function readMessages(
  messages: readonly Fields[],
  name: string,
): { messages: MessageOfParts[]; images: Uint8Array[] } {
  const images: Uint8Array[] = []
  const all = messages.map(({ content, tool_calls: calls, ...rest }, i): MessageOfParts => {
    const param = `${name}[${i}]`
    const hasCalls = calls !== null && calls !== undefined
    if (hasCalls && !(Array.isArray(calls) && calls.every(isCall))) {
      throw invalid(`${param}.tool_calls`, 'expected a list of { function: { name, arguments } }')
    }
    const read = content === null || content === undefined ? {} : { content: contentOf(content, param, images) }
    return { ...rest, ...(hasCalls && { tool_calls: calls }), ...read } as MessageOfParts
  })
  return { messages: all, images }
}

function isCall(call: unknown): boolean {
  return isObject(call) && isObject(call.function) && typeof call.function.name === 'string'
}

function contentOf(content: unknown, param: string, images: Uint8Array[]): string | MessagePart[] {
  if (typeof content === 'string') return content
  if (!Array.isArray(content)) throw invalid(`${param}.content`, 'a text, or a list of parts')
  const parts = content.map((part: unknown, i): MessagePart => {
    const at = `${param}.content[${i}]`
    if (isObject(part) && part.type === 'text' && typeof part.text === 'string')
      return { type: 'text', text: part.text }
    if (isObject(part) && part.type === 'image_url' && isObject(part.image_url)) {
      images.push(pictureOf(part.image_url.url, at))
      return { type: 'image' }
    }
    throw invalid(at, "expected { type: 'text', text } or { type: 'image_url', image_url: { url } }")
  })
  if (parts.some(({ type }) => type === 'image')) return parts
  return parts.map((part) => (part.type === 'text' ? part.text : '')).join('')
}

/** The bytes of a data URL. Addresses are not fetched: a caller could reach what only the server can. */
function pictureOf(url: unknown, param: string): Uint8Array {
  const [, data] = /^data:image\/[\w.+-]+;base64,(.+)$/s.exec(String(url)) ?? []
  try {
    if (data !== undefined) return Uint8Array.from(atob(data), (char) => char.charCodeAt(0))
  } catch {
    // No base64.
  }
  throw invalid(param, 'pictures come as data URLs, data:image/png;base64,…')
}
