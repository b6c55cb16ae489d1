// Writes answers to callers who may read slowly, or never: what they have not taken is bounded.

import type { ServerResponse } from 'node:http'

/** Bytes after which a caller shows by reading on that it still reads. */
const PIECE = 1 << 16

export interface OutboxLimits {
  /** Bytes of answers that callers have not taken, of all together. Beyond, who stands still longest is cut off. */
  readonly maxUnread?: number
  /** A caller that takes nothing for this many milliseconds is cut off. */
  readonly stallMs?: number
}

export class Outbox {
  /** Callers with unread bytes, and how many. Whoever has read nothing for the longest time comes first. */
  readonly #behind = new Map<ServerResponse, number>()
  #unread = 0
  readonly #maxUnread: number
  readonly #stallMs: number

  constructor({ maxUnread = 64 << 20, stallMs = 30_000 }: OutboxLimits = {}) {
    this.#maxUnread = maxUnread
    this.#stallMs = stallMs
  }

  async write(outgoing: ServerResponse, chunk: Uint8Array): Promise<void> {
    for (let at = 0; at < chunk.length && !outgoing.destroyed; at += PIECE) {
      if (!outgoing.write(chunk.subarray(at, at + PIECE))) await this.#taken(outgoing, chunk.length - at)
    }
  }

  /** Waits until a caller has taken what was written; `bytes` are in memory for it meanwhile. */
  async #taken(outgoing: ServerResponse, bytes: number): Promise<void> {
    this.#behind.set(outgoing, bytes)
    this.#unread += bytes
    while (this.#unread > this.#maxUnread && this.#behind.size > 1) {
      const [longest] = this.#behind.keys()
      this.#leave(longest)
      longest.destroy()
    }
    const timer = setTimeout(() => outgoing.destroy(), this.#stallMs)
    await new Promise<void>((resolve) => {
      const done = () => {
        outgoing.off('drain', done).off('close', done)
        resolve()
      }
      outgoing.on('drain', done).on('close', done)
    })
    clearTimeout(timer)
    this.#leave(outgoing)
  }

  #leave(outgoing: ServerResponse): void {
    this.#unread -= this.#behind.get(outgoing) ?? 0
    this.#behind.delete(outgoing)
  }
}
