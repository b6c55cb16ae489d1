// Tokenized examples, kept small: a million chats fit into memory. Ids are written in bytes of seven bits, one to five;
// labels as the lengths of stretches that count and do not.

import { type Example, IGNORED } from './records.js'

/** Bytes taken at a time. */
const CHUNK_BYTES = 1 << 20

const MAX_NUMBER_BYTES = 5

export class ExampleStore implements Iterable<Example> {
  readonly #chunks: Uint8Array[] = []
  /** Bytes of the last chunk that are taken. */
  #taken = 0
  readonly #places: number[] = []
  /** One array for all examples, since a million would be much to clear away. */
  #scratch = new Uint8Array(1 << 12)

  get length(): number {
    return this.#places.length
  }

  push({ inputIds, labels }: Example): void {
    const most = MAX_NUMBER_BYTES * (2 + 2 * inputIds.length)
    if (most > this.#scratch.length) this.#scratch = new Uint8Array(2 * most)
    let end = this.#write(inputIds.length, 0)
    for (let i = 0; i < inputIds.length; i++) end = this.#write(inputIds[i], end)
    for (let i = 0, start = 0, counts = false; i <= labels.length; i++) {
      if (i < labels.length && (labels[i] !== IGNORED) === counts) continue
      end = this.#write(i - start, end)
      start = i
      counts = !counts
    }
    this.#store(this.#scratch.subarray(0, end))
  }

  at(index: number): Example | undefined {
    const place = this.#places[index]
    if (place === undefined) return undefined
    const bytes = this.#chunks[Math.floor(place / CHUNK_BYTES)]
    let at = place % CHUNK_BYTES
    const read = (): number => {
      let number = 0
      for (let shift = 0; ; shift += 7) {
        const byte = bytes[at++]
        number |= (byte & 0x7f) << shift
        if (byte < 0x80) return number
      }
    }
    const inputIds = new Int32Array(read())
    for (let i = 0; i < inputIds.length; i++) inputIds[i] = read()
    const labels = new Int32Array(inputIds.length).fill(IGNORED)
    for (let start = 0, counts = false; start < labels.length; counts = !counts) {
      const end = start + read()
      if (counts) labels.set(inputIds.subarray(start, end), start)
      start = end
    }
    return { inputIds, labels }
  }

  *[Symbol.iterator](): Generator<Example> {
    for (let i = 0; i < this.length; i++) yield this.at(i) as Example
  }

  #write(number: number, at: number): number {
    let rest = number
    let end = at
    for (; rest >= 0x80; rest >>>= 7) this.#scratch[end++] = (rest & 0x7f) | 0x80
    this.#scratch[end] = rest
    return end + 1
  }

  #store(bytes: Uint8Array): void {
    if (this.#chunks.length === 0 || this.#taken + bytes.length > this.#chunks[this.#chunks.length - 1].length) {
      this.#chunks.push(new Uint8Array(Math.max(CHUNK_BYTES, bytes.length)))
      this.#taken = 0
    }
    this.#places.push((this.#chunks.length - 1) * CHUNK_BYTES + this.#taken)
    this.#chunks[this.#chunks.length - 1].set(bytes, this.#taken)
    this.#taken += bytes.length
  }
}
