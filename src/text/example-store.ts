// Tokenized examples, kept small: a million chats fit into memory. Ids are written in one to three bytes (frequent tokens have small
// ids), labels as the lengths of stretches that count and do not.

import { type Example, IGNORED } from './records.js'

/** Bytes taken at a time. */
const CHUNK_BYTES = 1 << 20

/** Most bytes of an integer below 2³²: seven bits in each. */
const MAX_INTEGER_BYTES = 5

/** A list of examples of which each is packed, and unpacked when it is asked for. */
export class ExampleStore implements Iterable<Example> {
  #length = 0
  readonly #chunks: Uint8Array[] = []
  /** Bytes of the last chunk that are taken. */
  #taken = 0
  /** Chunk and offset of each example. */
  #places = new Uint32Array(1 << 10)

  get length(): number {
    return this.#length
  }

  /** Adds an example, whose labels are its ids or {@link IGNORED}. */
  push(example: Example): void {
    const bytes = pack(example)
    if (this.#chunks.length === 0 || this.#taken + bytes.length > this.#chunks[this.#chunks.length - 1].length) {
      this.#chunks.push(new Uint8Array(Math.max(CHUNK_BYTES, bytes.length)))
      this.#taken = 0
    }
    this.#chunks[this.#chunks.length - 1].set(bytes, this.#taken)
    if (2 * this.#length === this.#places.length) {
      const more = new Uint32Array(2 * this.#places.length)
      more.set(this.#places)
      this.#places = more
    }
    this.#places.set([this.#chunks.length - 1, this.#taken], 2 * this.#length)
    this.#taken += bytes.length
    this.#length++
  }

  /** The example at an index; undefined outside the list. */
  at(index: number): Example | undefined {
    if (!(index >= 0 && index < this.#length)) return undefined
    return unpack(this.#chunks[this.#places[2 * index]], this.#places[2 * index + 1])
  }

  *[Symbol.iterator](): Generator<Example> {
    for (let i = 0; i < this.#length; i++) yield this.at(i) as Example
  }
}

function pack({ inputIds, labels }: Example): Uint8Array {
  const runs: number[] = []
  let counts = false
  for (let i = 0, start = 0; i <= labels.length; i++) {
    if (i < labels.length && (labels[i] !== IGNORED) === counts) continue
    runs.push(i - start)
    start = i
    counts = !counts
  }
  const bytes = new Uint8Array(MAX_INTEGER_BYTES * (1 + inputIds.length + runs.length))
  let at = 0
  const write = (value: number) => {
    let rest = value
    for (; rest > 127; rest >>>= 7) bytes[at++] = (rest & 127) | 128
    bytes[at++] = rest
  }
  write(inputIds.length)
  for (let i = 0; i < inputIds.length; i++) write(inputIds[i])
  for (const run of runs) write(run)
  return bytes.subarray(0, at)
}

function unpack(bytes: Uint8Array, offset: number): Example {
  let at = offset
  const read = () => {
    let value = 0
    for (let shift = 0; ; shift += 7) {
      const byte = bytes[at++]
      value |= (byte & 127) << shift
      if (byte < 128) return value
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
