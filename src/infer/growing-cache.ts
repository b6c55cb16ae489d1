// The key-value cache of texts that grow, for graphs that give out what a step adds to it: arrays with room for tokens to come, which are
// fed again with each step, and into which the new rows are written.

import type { CachePart, NewRows } from '../graph/fuse/new-rows.js'
import type { Feeds, RuntimeTensor } from '../runtime/runtime.js'

/** Tokens that arrays grow by. More room costs time too: attention clears arrays as long as those that it is fed. */
const STEP = 64

export class GrowingCache {
  readonly #parts: readonly CachePart[]
  #batch: number
  /** Tokens of each row that are in the arrays, and how many fit. */
  #length = 0
  #capacity = 0
  #arrays: Float32Array[]
  #feeds: Feeds

  constructor({ parts }: NewRows, batch: number) {
    this.#parts = parts
    this.#batch = batch
    this.#arrays = parts.map(() => new Float32Array(0))
    this.#feeds = this.#tensors()
  }

  /** (batch, heads, capacity, size) of each part. */
  get feeds(): Feeds {
    return this.#feeds
  }

  /** Adds the rows of a run: (batch, sequence, width). */
  add({ data, dims }: RuntimeTensor): void {
    const [batch, sequence, width] = dims
    const rows = data as Float32Array
    if (this.#length + sequence > this.#capacity) this.#grow(this.#length + sequence)
    let first = 0
    this.#parts.forEach(({ heads, size }, i) => {
      const array = this.#arrays[i]
      for (let row = 0; row < batch; row++) {
        for (let step = 0; step < sequence; step++) {
          for (let head = 0; head < heads; head++) {
            const from = (row * sequence + step) * width + first + head * size
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

  #grow(length: number): void {
    const capacity = Math.ceil(length / STEP) * STEP
    this.#arrays = this.#parts.map(({ heads, size }, i) => {
      const [old, array] = [this.#arrays[i], new Float32Array(this.#batch * heads * capacity * size)]
      for (let row = 0; row < this.#batch * heads; row++) {
        const start = row * this.#capacity * size
        array.set(old.subarray(start, start + this.#length * size), row * capacity * size)
      }
      return array
    })
    this.#capacity = capacity
    this.#feeds = this.#tensors()
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
