// The key-value cache of texts that grow, for graphs that give out what a step adds to it: arrays with room for tokens
// to come, which are fed again with each step, and into which the new rows are written.

import type { CachePart, NewRows } from '../../graph/fuse/new-rows.js'
import type { Feeds, RuntimeTensor } from '../../runtime/runtime.js'

/** Tokens that arrays grow by. More room costs time too: attention clears arrays as long as those that it is fed. */
const STEP = 64

export class GrowingCache {
  readonly #parts: readonly CachePart[]
  readonly #isByHead: boolean
  #batch: number
  /** Tokens of each row that are in the arrays, and how many fit. */
  #length = 0
  #capacity = 0
  #arrays: readonly Float32Array[]
  #feeds: Feeds

  /** @param held what is in the cache already: (batch, heads, length, size) of each part. It is copied */
  constructor({ parts, isByHead }: NewRows, batch: number, held?: { length: number; parts: readonly Float32Array[] }) {
    this.#parts = parts
    this.#isByHead = isByHead
    this.#batch = batch
    this.#length = held?.length ?? 0
    this.#capacity = this.#length
    this.#arrays = held?.parts ?? parts.map(() => new Float32Array(0))
    this.#feeds = this.#grow(this.#length)
  }

  /** Tokens of each row. */
  get length(): number {
    return this.#length
  }

  /** (batch, heads, capacity, size) of each part. */
  get feeds(): Feeds {
    return this.#feeds
  }

  /** A copy of the first tokens of a part: (batch, heads, length, size). What is in the cache stays as it is. */
  read(part: number, length: number): Float32Array {
    const { heads, size } = this.#parts[part]
    return rowsOf(this.#arrays[part], { count: this.#batch * heads, from: this.#capacity * size, to: length * size })
  }

  /** Adds the rows of a run, as {@link NewRows} says. */
  add({ data, dims }: RuntimeTensor): void {
    const sequence = dims[this.#isByHead ? 2 : 1]
    const rows = data as Float32Array
    const width = rows.length / (this.#batch * sequence)
    if (this.#length + sequence > this.#capacity) this.#feeds = this.#grow(this.#length + sequence)
    let first = 0
    this.#parts.forEach(({ heads, size }, i) => {
      const array = this.#arrays[i]
      for (let row = 0; row < this.#batch; row++) {
        for (let step = 0; step < sequence; step++) {
          for (let head = 0; head < heads; head++) {
            const at = first + head * size
            const from = this.#isByHead
              ? (row * width + at) * sequence + step * size
              : (row * sequence + step) * width + at
            const to = ((row * heads + head) * this.#capacity + this.#length + step) * size
            for (let j = 0; j < size; j++) array[to + j] = rows[from + j]
          }
        }
      }
      first += heads * size
    })
    this.#length += sequence
  }

  /** Lets go of all rows but these. */
  keep(rows: readonly number[]): void {
    this.#arrays = this.#arrays.map((array) => {
      const size = array.length / this.#batch
      const kept = new Float32Array(rows.length * size)
      rows.forEach((row, i) => void kept.set(array.subarray(row * size, (row + 1) * size), i * size))
      return kept
    })
    this.#batch = rows.length
    this.#feeds = this.#tensors()
  }

  /** @returns the feeds of larger arrays, in which as many tokens fit */
  #grow(length: number): Feeds {
    const capacity = Math.ceil(length / STEP) * STEP
    this.#arrays = this.#parts.map(({ heads, size }, i) => {
      const count = this.#batch * heads
      return rowsOf(this.#arrays[i], { count, from: this.#capacity * size, to: capacity * size })
    })
    this.#capacity = capacity
    return this.#tensors()
  }

  #tensors(): Feeds {
    return Object.fromEntries(
      this.#parts.map(({ past, heads, size }, i) => {
        const dims = [this.#batch, heads, this.#capacity, size]
        return [past, { type: 'float32', data: this.#arrays[i], dims } satisfies RuntimeTensor]
      }),
    )
  }
}

/** `count` rows of `from` numbers as rows of `to` numbers, cut or filled up with zeros. */
function rowsOf(data: Float32Array, { count, from, to }: Record<'count' | 'from' | 'to', number>): Float32Array {
  const rows = new Float32Array(count * to)
  const kept = Math.min(from, to)
  for (let row = 0; row < count; row++) rows.set(data.subarray(row * from, row * from + kept), row * to)
  return rows
}
