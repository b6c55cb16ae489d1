// Admits requests. A fixed number run at once and more wait: the lowest priority number comes first, then the key that
// has the fewest running, then the key that was admitted longest ago.

import { groupBy } from '../core/base/group.js'
import { HttpError } from './http.js'

export interface Visitor {
  /** Requests of one key share its turns. */
  readonly key: string
  readonly priority: number
  readonly signal: AbortSignal
}

interface Waiting extends Visitor {
  admit(): void
  refuse(reason: unknown): void
}

export class Gate {
  readonly waiting: Waiting[] = []
  running = 0
  readonly #runningOf = new Map<string, number>()
  /** Key → the number of its last admission. Numbers grow with each admission. */
  readonly #admittedAt = new Map<string, number>()
  #admissions = 0
  #idle: (() => void)[] = []

  constructor(
    private readonly maxRunning: number,
    private readonly maxWaiting: number,
  ) {}

  /** Waits for a place. The function that it returns gives the place back. */
  async enter(visitor: Visitor): Promise<() => void> {
    const { key, signal } = visitor
    signal.throwIfAborted()
    if (this.running < this.maxRunning) this.#count(key, 1)
    else await this.#wait(visitor)
    return () => {
      this.#count(key, -1)
      const next = this.#next()
      if (next !== undefined) {
        this.#count(next.key, 1)
        next.admit()
      }
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

  #count(key: string, change: 1 | -1): void {
    this.running += change
    const count = (this.#runningOf.get(key) ?? 0) + change
    if (count > 0) this.#runningOf.set(key, count)
    else this.#runningOf.delete(key)
    if (change === 1) this.#admittedAt.set(key, ++this.#admissions)
  }

  #wait(visitor: Visitor): Promise<void> {
    if (this.waiting.length >= this.maxWaiting) this.#makeRoomFor(visitor)
    const { signal } = visitor
    return new Promise<void>((resolve, reject) => {
      const leave = () => refuse(signal.reason)
      const end = () => {
        signal.removeEventListener('abort', leave)
        this.waiting.splice(this.waiting.indexOf(waiting), 1)
      }
      const refuse = (reason: unknown) => {
        end()
        reject(reason)
        this.#tellIdle()
      }
      const admit = () => {
        end()
        resolve()
      }
      const waiting: Waiting = { ...visitor, admit, refuse }
      signal.addEventListener('abort', leave, { once: true })
      this.waiting.push(waiting)
    })
  }

  #next(): Waiting | undefined {
    const rank = ({ key, priority }: Waiting) => [
      priority,
      this.#runningOf.get(key) ?? 0,
      this.#admittedAt.get(key) ?? 0,
    ]
    return this.waiting.reduce<Waiting | undefined>((best, waiting) => {
      return best === undefined || isBefore(rank(waiting), rank(best)) ? waiting : best
    }, undefined)
  }

  /** Refuses a request that waits in favor of a more urgent one, or of a key that has fewer waiting. */
  #makeRoomFor({ key, priority }: Visitor): void {
    const least = Math.max(priority, ...this.waiting.map((waiting) => waiting.priority))
    const byKey = groupBy(
      this.waiting.filter((waiting) => waiting.priority === least),
      (waiting) => waiting.key,
    )
    const longest = [...byKey.values()].sort((a, b) => b.length - a.length)[0] ?? []
    const full = new HttpError(429, `${this.waiting.length} requests wait already`, {
      type: 'rate_limit_error',
      code: 'queue_full',
      retryAfter: 1,
    })
    if (least === priority && longest.length <= (byKey.get(key)?.length ?? 0) + 1) throw full
    longest.at(-1)!.refuse(full)
  }

  #tellIdle(): void {
    if (this.running > 0 || this.waiting.length > 0) return
    for (const resolve of this.#idle.splice(0)) resolve()
  }
}

function isBefore(a: readonly number[], b: readonly number[]): boolean {
  const at = a.findIndex((value, i) => value !== b[i])
  return at >= 0 && a[at] < b[at]
}
