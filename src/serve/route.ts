// A request on its way to its route, and what the log gets of it.

import type { Inbox } from './bodies/inbox.js'
import type { Fields } from './fields.js'
import type { Caller } from './keys.js'

/** A request that was answered, for logs. It holds nothing of what was asked or answered. */
export interface RequestEntry {
  /** The answer's `x-request-id`: what the caller sent, or a new one. */
  readonly id: string
  readonly method: string
  /** The path of the route, or `other`. */
  readonly route: string
  /** Name of the caller's key. */
  key?: string
  /** Name of the base or the adapters that answered. */
  model?: string
  status: number
  promptTokens?: number
  /** Tokens of the prompt that came from the cache. */
  cachedTokens?: number
  newTokens?: number
  /** Milliseconds from the request to the first token. */
  firstTokenMs?: number
  /** Milliseconds from the request to the end of the answer. */
  ms: number
}

/** A request on its way to the answer. */
export interface Call {
  readonly request: Request
  readonly fields: Fields
  readonly caller: Caller
  readonly entry: RequestEntry
  readonly startedAt: number
  /** The part of the path that `*` stands for. */
  readonly id: string
  /** Reads the body. */
  readonly inbox: Inbox
  /** True if the caller asked to store the answer, and it could not be stored. */
  isLost?: boolean
  /** True if a text breaks its schema by what texts are not kept to. */
  isBroken?: boolean
  /** Settles at the end of a stream. */
  done?: Promise<unknown>
}

export type Method = 'GET' | 'POST' | 'DELETE'

/** Finds the path of the table that a request's path fits, and what `*` stands for. */
export function findPath(table: object, pathname: string): readonly [path: string, id: string] | undefined {
  if (Object.hasOwn(table, pathname)) return [pathname, '']
  for (const path of Object.keys(table)) {
    const [start, end] = path.split('*')
    if (end === undefined || !pathname.startsWith(start) || !pathname.endsWith(end)) continue
    const id = pathname.slice(start.length, pathname.length - end.length)
    if (id !== '') return [path, decoded(id)]
  }
  return undefined
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}
