// API keys: who calls, and what the caller may do.

import { type Kind, kind, listOf } from '../core/base/options.js'
import { HttpError } from './http.js'

/** A key that callers send as `Authorization: Bearer KEY` or `x-api-key: KEY`. */
export interface ApiKey {
  /** The secret. */
  readonly key: string
  /** Stands in the request log. Default: `default`, or `admin` for an admin key. */
  readonly name?: string | undefined
  /** May call every route, also those that load and remove adapters. Default false. */
  readonly isAdmin?: boolean | undefined
  /** Waiting requests with a lower number go first, as in vLLM. Requests may raise their own number. Default 0. */
  readonly priority?: number | undefined
}

export const API_KEYS: Kind = listOf(
  kind('a key, or { key, name, isAdmin, priority }', (value) => {
    const key = typeof value === 'string' ? value : (value as ApiKey | null)?.key
    return typeof key === 'string' && key !== ''
  }),
)

/** Who may call a route: everybody, every caller with a key, or admins. Without any key, everybody is an admin. */
export type Right = 'anyone' | 'key' | 'admin'

export interface Caller {
  readonly name: string
  /** Undefined if the server has no keys. */
  readonly key: string | undefined
  readonly isAdmin: boolean
  readonly priority: number
}

/** The server itself, which may use every model, such as that of an alias. Without keys, each caller counts as it. */
export const SERVER: Caller = { name: '', key: undefined, isAdmin: true, priority: 0 }

/**
 * Reads a key as the command line and key files write it: `KEY`, `NAME=KEY`, and after it `priority=N` or `admin`.
 * Equals signs at the end of a key belong to it. Returns undefined for any other text.
 *
 * @example
 * parseApiKey('alice=SECRET priority=1') // { key: 'SECRET', name: 'alice', isAdmin: false, priority: 1 }
 */
export function parseApiKey(text: string, isAdmin = false): ApiKey | undefined {
  const [written, ...more] = text.trim().split(/\s+/)
  const [, name, key] = /^([\w.-]+)=(.*[^=].*)$/.exec(written) ?? [undefined, undefined, written]
  const priority = more.flatMap((word) => /^priority=(-?\d+)$/.exec(word)?.[1] ?? [])
  if (key === '' || more.some((word) => !/^(priority=-?\d+|admin)$/.test(word))) return undefined
  return { key, name, isAdmin: isAdmin || more.includes('admin'), priority: Number(priority[0] ?? 0) }
}

/** Finds the caller of a request. Returns undefined if a key is needed and none fits. */
export function callerOf({ headers }: Request, keys: readonly (string | ApiKey)[] | undefined): Caller | undefined {
  if (keys === undefined) return SERVER
  const bearer = /^Bearer (.+)$/i.exec(headers.get('authorization') ?? '')?.[1]
  const given = bearer ?? headers.get('x-api-key') ?? ''
  const all = keys.map((key) => (typeof key === 'string' ? { key } : key))
  // Compares with all keys, so that the time tells nothing.
  const found = all.filter(({ key }) => isEqual(key, given))[0]
  if (found === undefined) return undefined
  const { key, isAdmin = false, priority = 0, name = isAdmin ? 'admin' : 'default' } = found
  return { name, key, isAdmin, priority }
}

export function requireRight(caller: Caller | undefined, right: Right): void {
  if (right === 'anyone') return
  if (caller === undefined) {
    throw new HttpError(401, 'The API key is missing or wrong: send it as Authorization: Bearer KEY', {
      type: 'authentication_error',
      code: 'invalid_api_key',
    })
  }
  if (right === 'admin' && !caller.isAdmin) {
    throw new HttpError(403, 'This route needs an admin key', { type: 'permission_error' })
  }
}

/** Compares in a time that depends on the lengths alone. */
function isEqual(a: string, b: string): boolean {
  const [left, right] = [a, b].map((text) => new TextEncoder().encode(text))
  let difference = left.length ^ right.length
  for (let i = 0; i < left.length; i++) difference |= left[i] ^ (right[i % Math.max(1, right.length)] ?? 0)
  return difference === 0
}
