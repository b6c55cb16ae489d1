// Tokenized examples, kept small: a million chats fit into memory. Labels are the lengths of stretches that count and do not. Ids
// are written in one to three bytes: the most frequent tokens of the first examples in one, which is two thirds of all tokens.

import { type Example, IGNORED } from './records.js'

/** Bytes taken at a time. */
const CHUNK_BYTES = 1 << 20

/** Examples whose tokens are counted. */
const COUNTED_EXAMPLES = 1 << 12

/** Most bytes of an integer below 2³²: a length has seven bits in each, and a code its first byte and four. */
const MAX_INTEGER_BYTES = 5

/**
 * What the first byte of a code says: below the first of these it is the code; then one byte follows, or two, or all four of a code that
 * is larger than those of any vocabulary.
 */
const [TWO_BYTES, THREE_BYTES, FIVE_BYTES] = [224, 252, 255]

/** The smallest code of each length. */
const SECOND = TWO_BYTES
const THIRD = SECOND + (THREE_BYTES - TWO_BYTES) * 2 ** 8
const LAST = THIRD + (FIVE_BYTES - THREE_BYTES) * 2 ** 16

/** A list of examples of which each is packed, and unpacked when it is asked for. */
export class ExampleStore implements Iterable<Example> {
  #length = 0
  readonly #chunks: Uint8Array[] = []
  /** Bytes of the last chunk that are taken. */
  #taken = 0
  /** Chunk and offset of each example. */
  #places = new Uint32Array(1 << 10)
  /** Where an example is packed before its length is known: one array for all, since a million of them would be much to clear away. */
  #scratch = new Uint8Array(1 << 12)
  /** How often each id came among the first examples. */
  #counts = new Uint32Array(0)
  /** Of the examples after those: the frequent ids have the small codes. */
  readonly #codes = new Codes()

  get length(): number {
    return this.#length
  }

  /** Adds an example, whose labels are its ids or {@link IGNORED}. */
  push(example: Example): void {
    if (this.#length < COUNTED_EXAMPLES) this.#count(example.inputIds)
    else if (this.#length === COUNTED_EXAMPLES) this.#orderCodes()
    const isCoded = this.#length >= COUNTED_EXAMPLES
    const most = MAX_INTEGER_BYTES * (2 + 2 * example.inputIds.length)
    if (most > this.#scratch.length) this.#scratch = new Uint8Array(2 * most)
    const bytes = pack(example, isCoded ? (id) => this.#codes.codeOf(id) : plain, this.#scratch)
    if (this.#chunks.length === 0 || this.#taken + bytes.length > this.#chunks[this.#chunks.length - 1].length) {
      this.#chunks.push(new Uint8Array(Math.max(CHUNK_BYTES, bytes.length)))
      this.#taken = 0
    }
    this.#chunks[this.#chunks.length - 1].set(bytes, this.#taken)
    if (2 * this.#length === this.#places.length) this.#places = grown(this.#places, 2 * this.#places.length)
    this.#places.set([this.#chunks.length - 1, this.#taken], 2 * this.#length)
    this.#taken += bytes.length
    this.#length++
  }

  /** The example at an index; undefined outside the list. */
  at(index: number): Example | undefined {
    if (!(index >= 0 && index < this.#length)) return undefined
    const isCoded = index >= COUNTED_EXAMPLES
    const bytes = this.#chunks[this.#places[2 * index]]
    return unpack(bytes, this.#places[2 * index + 1], isCoded ? (code) => this.#codes.idOf(code) : plain)
  }

  *[Symbol.iterator](): Generator<Example> {
    for (let i = 0; i < this.#length; i++) yield this.at(i) as Example
  }

  #count(ids: Int32Array): void {
    for (const id of ids) {
      if (id >= this.#counts.length) this.#counts = grown(this.#counts, id + 1)
      this.#counts[id]++
    }
  }

  #orderCodes(): void {
    const counts = this.#counts
    const ids = Array.from(counts.keys()).filter((id) => counts[id] > 0)
    for (const id of ids.sort((a, b) => counts[b] - counts[a])) this.#codes.codeOf(id)
    this.#counts = new Uint32Array(0)
  }
}

/** Numbers for ids, in the order in which they are asked for. */
class Codes {
  /** By id: its code and 1, or 0. */
  #codes = new Uint32Array(0)
  readonly #ids: number[] = []

  codeOf(id: number): number {
    if (id >= this.#codes.length) this.#codes = grown(this.#codes, 2 * id + 1)
    if (this.#codes[id] === 0) this.#codes[id] = this.#ids.push(id)
    return this.#codes[id] - 1
  }

  idOf(code: number): number {
    return this.#ids[code]
  }
}

const plain = (id: number) => id

function grown(array: Uint32Array, length: number): Uint32Array<ArrayBuffer> {
  const more = new Uint32Array(length)
  more.set(array)
  return more
}

/** The example as bytes, which are the first of `bytes`. There are at most as many stretches of labels as labels, and one. */
function pack({ inputIds, labels }: Example, codeOf: (id: number) => number, bytes: Uint8Array): Uint8Array {
  const runs: number[] = []
  let counts = false
  for (let i = 0, start = 0; i <= labels.length; i++) {
    if (i < labels.length && (labels[i] !== IGNORED) === counts) continue
    runs.push(i - start)
    start = i
    counts = !counts
  }
  let at = 0
  const write = (value: number) => {
    let rest = value
    for (; rest > 127; rest >>>= 7) bytes[at++] = (rest & 127) | 128
    bytes[at++] = rest
  }
  write(inputIds.length)
  for (let i = 0; i < inputIds.length; i++) at = writeCode(bytes, at, codeOf(inputIds[i]))
  for (const run of runs) write(run)
  return bytes.subarray(0, at)
}

/** Returns where the next one goes. */
function writeCode(bytes: Uint8Array, start: number, code: number): number {
  let at = start
  if (code < SECOND) {
    bytes[at++] = code
  } else if (code < THIRD) {
    bytes[at++] = TWO_BYTES + ((code - SECOND) >>> 8)
    bytes[at++] = code - SECOND
  } else if (code < LAST) {
    bytes[at++] = THREE_BYTES + ((code - THIRD) >>> 16)
    bytes[at++] = (code - THIRD) >>> 8
    bytes[at++] = code - THIRD
  } else {
    bytes[at++] = FIVE_BYTES
    for (let shift = 0; shift < 32; shift += 8) bytes[at++] = code >>> shift
  }
  return at
}

function readLongCode(bytes: Uint8Array, at: number): number {
  const first = bytes[at]
  if (first < THREE_BYTES) return SECOND + (first - TWO_BYTES) * 2 ** 8 + bytes[at + 1]
  if (first < FIVE_BYTES) return THIRD + (first - THREE_BYTES) * 2 ** 16 + bytes[at + 1] * 2 ** 8 + bytes[at + 2]
  return (bytes[at + 1] | (bytes[at + 2] << 8) | (bytes[at + 3] << 16) | (bytes[at + 4] << 24)) >>> 0
}

function unpack(bytes: Uint8Array, offset: number, idOf: (code: number) => number): Example {
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
  for (let i = 0; i < inputIds.length; i++) {
    const first = bytes[at]
    inputIds[i] = idOf(first < TWO_BYTES ? first : readLongCode(bytes, at))
    at += first < TWO_BYTES ? 1 : first < THREE_BYTES ? 2 : first < FIVE_BYTES ? 3 : 5
  }
  const labels = new Int32Array(inputIds.length).fill(IGNORED)
  for (let start = 0, counts = false; start < labels.length; counts = !counts) {
    const end = start + read()
    if (counts) labels.set(inputIds.subarray(start, end), start)
    start = end
  }
  return { inputIds, labels }
}
