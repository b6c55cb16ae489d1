// Bodies of requests that are on their way. All together hold a bounded number of bytes in memory.

import { excessOf, isObject } from '../../core/base/options.js'
import { HttpError } from '../http.js'
import type { Caller } from '../keys.js'

/** No client sends deeper JSON: schemas have at most 32 levels. */
const MAX_DEPTH = 100
/** Values in a body: token ids of the longest context, or thousands of messages. */
const MAX_VALUES = 1 << 18
const FIRST_BYTES = 1 << 12

/** A request whose body is on its way. */
export interface Sending {
  readonly request: Request
  readonly caller: Caller
}

interface Body {
  readonly key: string
  readonly lost: AbortController
  readonly startedAt: number
  /** Bytes that have arrived. */
  arrived: number
  /** Bytes in memory. */
  held: number
}

/** Copies pieces into one buffer: a piece of one byte as an object of its own would take a hundred. */
export class GrowingBytes {
  #memory = new Uint8Array(FIRST_BYTES)
  #length = 0

  /** @param onGrow gets the new size before memory is taken */
  constructor(private readonly onGrow?: (bytes: number) => void) {}

  add(piece: Uint8Array): void {
    const length = this.#length + piece.length
    if (length > this.#memory.length) {
      const size = Math.max(length, 2 * this.#memory.length)
      this.onGrow?.(size)
      const larger = new Uint8Array(size)
      larger.set(this.bytes)
      this.#memory = larger
    }
    this.#memory.set(piece, this.#length)
    this.#length = length
  }

  get bytes(): Uint8Array {
    return this.#memory.subarray(0, this.#length)
  }
}

export class Inbox {
  readonly #bodies = new Set<Body>()
  #held = 0

  /**
   * @param stopped aborts when the server takes no new requests: then it waits for no more pieces
   * @param maxHeld bytes of all bodies together: at least twice those of the longest body that is held as a whole
   */
  constructor(
    private readonly stopped: AbortSignal,
    private readonly maxHeld: number,
  ) {}

  /**
   * Lets `use` read the pieces of a body. It tells `holds` how many bytes it keeps in memory from now on. If all bodies
   * together hold too many, the slowest body of the caller who holds most is lost.
   *
   * @throws HttpError if this body is too large, if it was lost, or if the server stops
   */
  async receive<T>(
    { request, caller }: Sending,
    maxBytes: number,
    use: (pieces: AsyncGenerator<Uint8Array, void>, holds: (bytes: number) => void) => Promise<T>,
  ): Promise<T> {
    const lost = new AbortController()
    const body: Body = { key: caller.key ?? '', lost, startedAt: performance.now(), arrived: 0, held: 0 }
    this.#bodies.add(body)
    try {
      return await use(this.#pieces(request, body, maxBytes), (bytes) => this.#hold(body, bytes))
    } finally {
      this.#drop(body)
    }
  }

  /** Reads a body of JSON, an object. `isTyped`: only if its type says so. */
  async json(sending: Sending, maxBytes: number, isTyped = true): Promise<Record<string, unknown>> {
    const type = sending.request.headers.get('content-type') ?? ''
    if (isTyped && !/^application\/json\s*(;|$)/i.test(type)) {
      throw new HttpError(415, `The body must have the type application/json, not ${type.slice(0, 100) || 'none'}`)
    }
    const bytes = await this.receive(sending, maxBytes, async (pieces, holds) => {
      const all = new GrowingBytes(holds)
      for await (const piece of pieces) all.add(piece)
      return all.bytes
    })
    let value: unknown
    try {
      value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
    } catch (error) {
      throw new HttpError(400, `The body is not valid JSON: ${(error as Error).message}`)
    }
    if (!isObject(value)) throw new HttpError(400, 'The body is not a JSON object')
    const excess = excessOf(value, { depth: MAX_DEPTH, values: MAX_VALUES })
    if (excess === 'depth') throw new HttpError(400, `The body is nested more than ${MAX_DEPTH} levels deep`)
    if (excess === 'values') throw new HttpError(400, `The body has more than ${MAX_VALUES} values`)
    return value
  }

  async *#pieces(request: Request, body: Body, maxBytes: number): AsyncGenerator<Uint8Array, void> {
    const tooLarge = () => new HttpError(413, `The body is larger than ${maxBytes} bytes`, { code: 'body_too_large' })
    if (Number(request.headers.get('content-length') ?? 0) > maxBytes) throw tooLarge()
    // The body is not cancelled, because this would close the connection before the answer is sent.
    const ending = { signal: AbortSignal.any([this.stopped, body.lost.signal]), preventCancel: true }
    const reader = request.body?.pipeThrough(new TransformStream<Uint8Array, Uint8Array>(), ending).getReader()
    for (;;) {
      const next = await reader?.read()
      if (next === undefined || next.done) return
      body.arrived += next.value.byteLength
      if (body.arrived > maxBytes) throw tooLarge()
      yield next.value
    }
  }

  #hold(body: Body, bytes: number): void {
    this.#held += bytes - body.held
    body.held = bytes
    while (this.#held > this.maxHeld) this.#loseOne()
    body.lost.signal.throwIfAborted()
  }

  #loseOne(): void {
    const byKey = new Map<string, number>()
    for (const { key, held } of this.#bodies) byKey.set(key, (byKey.get(key) ?? 0) + held)
    const [[most]] = [...byKey].sort((a, b) => b[1] - a[1])
    const now = performance.now()
    const speed = ({ arrived, startedAt }: Body) => arrived / (now - startedAt)
    const [slowest] = [...this.#bodies]
      .filter(({ key, held }) => key === most && held > 0)
      .sort((a, b) => speed(a) - speed(b))
    this.#drop(slowest)
    const message = 'Too many bodies are on their way, and this one came most slowly'
    slowest.lost.abort(new HttpError(408, message, { code: 'body_too_slow', retryAfter: 1 }))
  }

  #drop(body: Body): void {
    if (this.#bodies.delete(body)) this.#held -= body.held
  }
}
