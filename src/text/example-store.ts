// Tokenized examples, kept small: a million chats fit into memory. Labels are the lengths of stretches that count and do not. Ids
// are written in half bytes, one to nine: the most frequent tokens of the first examples in the fewest.

import { StateError } from '../base/errors.js'
import { type Example, IGNORED } from './records.js'

/** Bytes taken at a time. */
const CHUNK_BYTES = 1 << 20

/** Examples whose tokens are counted. */
const COUNTED_EXAMPLES = 1 << 12

/** Most bytes of a number below 2³²: nine half bytes. */
const MAX_NUMBER_BYTES = 5

/**
 * Numbers are written in half bytes. What the first says: below the first of these it is the number. Then one more follows, or two, or
 * four, or eight. Half bytes are finer than bytes, so that many frequent tokens take less than one.
 */
const [TWO, THREE, FIVE, NINE] = [2, 8, 14, 15]

/** The smallest number of each length. */
const FROM_THREE = TWO + (THREE - TWO) * 2 ** 4
const FROM_FIVE = FROM_THREE + (FIVE - THREE) * 2 ** 8
const FROM_NINE = FROM_FIVE + 2 ** 16

/** A list of examples of which each is packed, and unpacked when it is asked for. */
export class ExampleStore implements Iterable<Example> {
  #length = 0
  readonly #chunks: Uint8Array[] = []
  /** Bytes of the last chunk that are taken. */
  #taken = 0
  /** Of each example, chunk · CHUNK_BYTES + offset. Half the memory will do up to 4 GiB. */
  #places: Uint32Array | Float64Array = new Uint32Array(1 << 10)
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
    const most = MAX_NUMBER_BYTES * (2 + 2 * example.inputIds.length)
    if (most > this.#scratch.length) this.#scratch = new Uint8Array(2 * most)
    const bytes = pack(example, isCoded ? (id) => this.#codes.codeOf(id) : plain, this.#scratch)
    if (this.#chunks.length === 0 || this.#taken + bytes.length > this.#chunks[this.#chunks.length - 1].length) {
      this.#chunks.push(new Uint8Array(Math.max(CHUNK_BYTES, bytes.length)))
      this.#taken = 0
    }
    this.#chunks[this.#chunks.length - 1].set(bytes, this.#taken)
    const place = (this.#chunks.length - 1) * CHUNK_BYTES + this.#taken
    if (this.#length === this.#places.length) this.#places = grown(this.#places, 2 * this.#length)
    if (place >= 2 ** 32 && this.#places instanceof Uint32Array) this.#places = Float64Array.from(this.#places)
    this.#places[this.#length] = place
    this.#taken += bytes.length
    this.#length++
  }

  /** The example at an index; undefined outside the list. */
  at(index: number): Example | undefined {
    if (!(index >= 0 && index < this.#length)) return undefined
    const isCoded = index >= COUNTED_EXAMPLES
    const place = this.#places[index]
    const bytes = this.#chunks[Math.floor(place / CHUNK_BYTES)]
    return unpack(bytes, place % CHUNK_BYTES, isCoded ? (code) => this.#codes.idOf(code) : plain)
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

function grown<Numbers extends Uint32Array | Float64Array>(array: Numbers, length: number): Numbers {
  const more = (array instanceof Uint32Array ? new Uint32Array(length) : new Float64Array(length)) as Numbers
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
  const writer = new HalfByteWriter(bytes)
  writer.write(inputIds.length)
  for (let i = 0; i < inputIds.length; i++) writer.write(codeOf(inputIds[i]))
  for (const run of runs) writer.write(run)
  return bytes.subarray(0, Math.ceil(writer.at / 2))
}

function unpack(bytes: Uint8Array, offset: number, idOf: (code: number) => number): Example {
  const reader = new HalfByteReader(bytes, 2 * offset)
  const inputIds = new Int32Array(reader.read())
  for (let i = 0; i < inputIds.length; i++) inputIds[i] = idOf(reader.read())
  const labels = new Int32Array(inputIds.length).fill(IGNORED)
  for (let start = 0, counts = false; start < labels.length; counts = !counts) {
    const end = start + reader.read()
    if (counts) labels.set(inputIds.subarray(start, end), start)
    start = end
  }
  return { inputIds, labels }
}

class HalfByteWriter {
  readonly #bytes: Uint8Array
  /** Half bytes that are written. */
  at = 0

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes
  }

  write(number: number): void {
    if (number < TWO) this.#put(number, 1)
    else if (number < FROM_THREE) this.#put(TWO * 2 ** 4 + number - TWO, 2)
    else if (number < FROM_FIVE) this.#put(THREE * 2 ** 8 + number - FROM_THREE, 3)
    else if (number < FROM_NINE) this.#put(FIVE * 2 ** 16 + number - FROM_FIVE, 5)
    else {
      this.#put(NINE, 1)
      this.#put(number, 8)
    }
  }

  /** The last half bytes of a number, the first of them first. */
  #put(number: number, count: number): void {
    for (let shift = 4 * (count - 1); shift >= 0; shift -= 4) {
      const half = (number >>> shift) & 15
      if (this.at % 2 === 0) this.#bytes[this.at >>> 1] = half << 4
      else this.#bytes[this.at >>> 1] |= half
      this.at++
    }
  }
}

class HalfByteReader {
  readonly #bytes: Uint8Array
  #at: number

  constructor(bytes: Uint8Array, at: number) {
    this.#bytes = bytes
    this.#at = at
  }

  read(): number {
    const first = this.#take(1)
    if (first < TWO) return first
    if (first < THREE) return TWO + (first - TWO) * 2 ** 4 + this.#take(1)
    if (first < FIVE) return FROM_THREE + (first - THREE) * 2 ** 8 + this.#take(2)
    return first < NINE ? FROM_FIVE + this.#take(4) : this.#take(8)
  }

  #take(count: number): number {
    let number = 0
    for (let i = 0; i < count; i++, this.#at++) {
      const byte = this.#bytes[this.#at >>> 1]
      // Else it would read zeros without an end.
      if (byte === undefined) throw new StateError({ where: 'examples', what: 'an example ends behind its bytes' })
      number = (number << 4) | (this.#at % 2 === 0 ? byte >>> 4 : byte & 15)
    }
    return number >>> 0
  }
}
