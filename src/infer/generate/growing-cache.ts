// The key-value cache of texts that grow, for graphs that give out what a step adds to it: arrays with room for tokens
// to come, which are fed again with each step, and into which the new rows are written.
// Attention cannot write there itself: onnxruntime-node copies each output of a run, even if it is told where to.

import type { CachePart, NewRows } from '../../graph/fuse/new-rows.js'
import type { Feeds, RuntimeTensor } from '../../runtime/runtime.js'

/** Tokens that arrays grow by. More room costs time too: attention clears arrays as long as those that it is fed. */
const STEP = 64

export interface MovedRows {
  readonly rows: readonly number[]
  /** The first token that is copied, how many are, and where the first goes. */
  readonly from: number
  readonly count: number
  readonly to: number
}

export class GrowingCache {
  readonly #parts: readonly CachePart[]
  readonly #isByHead: boolean
  /** Tokens of the longest row, and how many fit. */
  length = 0
  #capacity = 0
  #arrays: readonly Float32Array[]
  feeds: Feeds = {}

  /** `held`: what is in the cache already, (batch, heads, capacity, size) of each part, and how many tokens count. */
  constructor(
    { parts, isByHead }: NewRows,
    private batch: number,
    held?: { length: number; tensors: readonly Pick<RuntimeTensor, 'data' | 'dims'>[] },
  ) {
    this.#parts = parts
    this.#isByHead = isByHead
    this.length = held?.length ?? 0
    this.#capacity = held?.tensors[0]?.dims[2] ?? 0
    this.#arrays = parts.map((_, i) => (held?.tensors[i].data as Float32Array | undefined) ?? new Float32Array(0))
    this.become([{ cache: this, ...this.#rows(this.length) }], this.length)
  }

  #rows(count: number): MovedRows {
    return { rows: [...Array(this.batch).keys()], from: 0, count, to: 0 }
  }

  read(part: number, length: number): Float32Array {
    return joinRows([{ ...this.#rows(length), tensor: this.#tensor(part) }], 2, length).data as Float32Array
  }

  /** `places`: where the first new token of each text goes, below 0 if it fills up. Default: behind the longest. */
  add({ data, dims }: RuntimeTensor, places: readonly number[] = Array(this.batch).fill(this.length)): void {
    const sequence = dims[this.#isByHead ? 2 : 1]
    const rows = data as Float32Array
    const width = rows.length / (this.batch * sequence)
    const length = Math.max(...places) + sequence
    if (length > this.#capacity) this.become([{ cache: this, ...this.#rows(this.length) }], length)
    let first = 0
    this.#parts.forEach(({ heads, size }, i) => {
      const array = this.#arrays[i]
      for (const [row, place] of places.entries()) {
        for (let step = Math.max(0, -place); step < sequence; step++) {
          for (let head = 0; head < heads; head++) {
            const at = first + head * size
            const from = this.#isByHead
              ? (row * width + at) * sequence + step * size
              : (row * sequence + step) * width + at
            const to = ((row * heads + head) * this.#capacity + place + step) * size
            for (let j = 0; j < size; j++) array[to + j] = rows[from + j]
          }
        }
      }
      first += heads * size
    })
    this.length = length
  }

  /** Takes rows of several caches of one graph, this one among them or not, in the place of its own. */
  become(parts: readonly (MovedRows & { readonly cache: GrowingCache })[], length: number): void {
    const capacity = roomFor(length)
    this.#arrays = this.#parts.map((_, i) => {
      const moved = parts.map((part) => ({ ...part, tensor: part.cache.#tensor(i) }))
      return joinRows(moved, 2, capacity).data as Float32Array
    })
    this.batch = parts.reduce((sum, { rows }) => sum + rows.length, 0)
    this.length = length
    this.#capacity = capacity
    this.feeds = Object.fromEntries(this.#parts.map(({ past }, i) => [past, this.#tensor(i)]))
  }

  #tensor(part: number): RuntimeTensor {
    const { heads, size } = this.#parts[part]
    return { type: 'float32', data: this.#arrays[part], dims: [this.batch, heads, this.#capacity, size] }
  }
}

function roomFor(length: number): number {
  return Math.ceil(length / STEP) * STEP
}

/** Rows of several tensors under one another, zeros where nothing goes. `axis`: that of the tokens, above 0. */
export function joinRows(
  parts: readonly (MovedRows & { readonly tensor: RuntimeTensor })[],
  axis: number,
  length: number,
): RuntimeTensor {
  const [{ tensor: first }] = parts
  const product = (dims: readonly number[]) => dims.reduce((all, dim) => all * dim, 1)
  const [outer, inner] = [product(first.dims.slice(1, axis)), product(first.dims.slice(axis + 1))]
  const batch = parts.reduce((sum, { rows }) => sum + rows.length, 0)
  const DataArray = first.data.constructor as Float32ArrayConstructor
  const data = new DataArray(batch * outer * length * inner)
  let block = 0
  for (const { tensor, rows, from, count, to } of parts) {
    const source = tensor.data as Float32Array
    const own = tensor.dims[axis]
    for (const row of rows) {
      for (let i = 0; i < outer; i++, block++) {
        const start = ((row * outer + i) * own + from) * inner
        data.set(source.subarray(start, start + count * inner), (block * length + to) * inner)
      }
    }
  }
  return { type: first.type, data, dims: [batch, ...first.dims.slice(1, axis), length, ...first.dims.slice(axis + 1)] }
}
