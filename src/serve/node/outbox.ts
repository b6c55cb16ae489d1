// Writes answers to callers who may read slowly or never. The bytes that wait for them are bounded.

import type { ServerResponse } from 'node:http'

/** Answers are written in pieces of this many bytes. A caller that takes the next piece is still reading. */
const PIECE = 1 << 16

export interface OutboxLimits {
  /** Unread bytes of all callers together. Above it, the caller that has not read for the longest time is cut off. */
  readonly maxUnread?: number
  /** A caller that takes nothing for this many milliseconds is cut off. */
  readonly stallMs?: number
}

export class Outbox {
  /** Caller → number of its unread bytes. The caller that has not read for the longest time comes first. */
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

  /** Waits until a caller has taken what was written. Meanwhile, `bytes` bytes stay in memory for it. */
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
