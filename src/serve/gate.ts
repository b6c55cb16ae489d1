// Admits requests: so many run at once, so many wait in order, and the next is told to come back.

import { HttpError } from './http.js'

export class Gate {
  readonly waiting: (() => void)[] = []
  running = 0
  #idle: (() => void)[] = []

  constructor(
    private readonly maxRunning: number,
    private readonly maxWaiting: number,
  ) {}

  /** Waits for a place. The function that it returns gives the place back. */
  async enter(signal: AbortSignal): Promise<() => void> {
    signal.throwIfAborted()
    if (this.running >= this.maxRunning) {
      if (this.waiting.length >= this.maxWaiting) {
        throw new HttpError(429, `${this.waiting.length} requests wait already`, {
          type: 'rate_limit_error',
          code: 'queue_full',
          retryAfter: 1,
        })
      }
      await new Promise<void>((admit, refuse) => {
        const leave = () => {
          this.waiting.splice(this.waiting.indexOf(begin), 1)
          this.#tellIdle()
          refuse(signal.reason)
        }
        const begin = () => {
          signal.removeEventListener('abort', leave)
          admit()
        }
        signal.addEventListener('abort', leave, { once: true })
        this.waiting.push(begin)
      })
    } else this.running++
    let isLeft = false
    return () => {
      if (isLeft) return
      isLeft = true
      const next = this.waiting.shift()
      // The next one takes over the place.
      if (next !== undefined) next()
      else this.running--
      this.#tellIdle()
    }
  }

  /** Resolves when nothing runs or waits. */
  idle(): Promise<void> {
    return new Promise((resolve) => {
      this.#idle.push(resolve)
      this.#tellIdle()
    })
  }

  #tellIdle(): void {
    if (this.running > 0 || this.waiting.length > 0) return
    for (const resolve of this.#idle.splice(0)) resolve()
  }
}
