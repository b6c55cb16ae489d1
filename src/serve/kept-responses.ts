// Responses that callers go on with or read again. They are in memory.

import type { Fields } from './fields.js'
import { HttpError } from './http.js'
import type { Caller } from './keys.js'

interface Kept {
  readonly id: string
  /** The caller's key. */
  readonly owner: string
  /** All items of the conversation, those of the answer at the end. */
  readonly items: readonly Fields[]
  /** The answer as it was sent. */
  readonly answer: Fields
  /** Bytes of the items and the answer as JSON. */
  readonly bytes: number
}

const MAX_KEPT = 1000
const MAX_BYTES = 64 << 20

export class KeptResponses {
  /** The oldest first. */
  readonly #kept = new Map<string, Kept>()
  #bytes = 0

  /** Keeps a response. If there are too many, the oldest go. */
  keep(caller: Caller, items: readonly Fields[], answer: Fields): void {
    const all = [...items, ...(answer.output as readonly Fields[])]
    const bytes = new TextEncoder().encode(JSON.stringify([all, answer])).length
    const id = answer.id as string
    this.#kept.set(id, { id, owner: caller.key ?? '', items: all, answer, bytes })
    this.#bytes += bytes
    for (const oldest of this.#kept.values()) {
      if (this.#kept.size <= MAX_KEPT && this.#bytes <= MAX_BYTES) break
      this.#drop(oldest)
    }
  }

  /** @throws HttpError if the caller has no such response */
  get(id: string, caller: Caller, param = 'id'): Kept {
    const found = this.#kept.get(id)
    if (found === undefined || !mayRead(found, caller)) throw notKept('response', id, param)
    return found
  }

  remove(id: string, caller: Caller): object {
    this.#drop(this.get(id, caller))
    return { id, object: 'response', deleted: true }
  }

  /** An item of a response, which other requests name by its id. */
  item(id: string, caller: Caller, param: string): Fields {
    for (const kept of this.#kept.values()) {
      const found = mayRead(kept, caller) ? kept.items.find((item) => item.id === id) : undefined
      if (found !== undefined) return found
    }
    throw notKept('item', id, param)
  }

  #drop({ id, bytes }: Kept): void {
    if (this.#kept.delete(id)) this.#bytes -= bytes
  }
}

function mayRead({ owner }: Kept, { key = '', isAdmin }: Caller): boolean {
  return isAdmin || owner === key
}

function notKept(noun: string, id: string, param: string): HttpError {
  const code = noun === 'response' && param !== 'id' ? 'previous_response_not_found' : 'not_found'
  return new HttpError(404, `There is no ${noun} ${id.slice(0, 100)}`, { param, code })
}
