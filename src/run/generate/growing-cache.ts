// The key-value cache of a graph that returns only the rows that a step adds. Its arrays have room for more tokens; the
// new rows are written into them, and each step feeds them again. Attention cannot write there by itself, because
// onnxruntime-node copies each output of a run even if it is told where to put it.

import { roundUp } from '../../core/base/tensor.js'
import type { CachePart, NewRows } from '../../model/fuse/new-rows.js'
import { emptyTensor } from '../../model/inputs/cache.js'
import type { RuntimeTensor } from '../../onnx/runtime/runtime.js'
import { freeBuffers, joinRows, type MovedRows, RowCache } from './row-cache.js'

/**
 * Arrays grow by at least so many tokens, and by a share of their length: each growth copies the whole cache. More room
 * would cost time and memory, because attention clears arrays as long as the fed ones.
 */
const STEP = 16
const SHARE = 1 / 32

const AXIS = 2

/**
 * The smallest block of memory for several parts, in floats. Blocks of 32 MB or more go back to the system when they
 * are freed; smaller ones would stay in the allocator's pools.
 */
const BLOCK = 2 ** 24

interface Block {
  readonly memory: Float32Array
  /** Floats that parts have taken. */
  used: number
  /** The index of the first part that is not in this block or an earlier one. */
  end: number
}

export class GrowingCache extends RowCache {
  readonly #parts: readonly CachePart[]
  readonly #isByHead: boolean
  /** The number of tokens of the longest row. */
  length = 0
  #capacity = 0
  #blocks: Block[] = []

  constructor(
    { parts, isByHead }: NewRows,
    private batch: number,
  ) {
    const entries = parts.map(({ past, heads, size }) => {
      return { past, axis: AXIS, type: 'float32' as const, dims: [undefined, heads, undefined, size] }
    })
    super(entries, Object.fromEntries(entries.map((entry) => [entry.past, emptyTensor(entry, batch)])))
    this.#parts = parts
    this.#isByHead = isByHead
  }

  #rows(count: number): MovedRows {
    return { rows: [...Array(this.batch).keys()], from: 0, count, to: 0 }
  }

  read(part: number, length: number): Float32Array {
    const tensor = this.feeds[this.#parts[part].past]
    return joinRows([{ ...this.#rows(length), tensor }], AXIS, length).data as Float32Array
  }

  /** @param places where the first new token of each text goes; below 0 for padding. Default: after the longest row */
  add({ data, dims }: RuntimeTensor, places: readonly number[] = Array(this.batch).fill(this.length)): void {
    const sequence = dims[this.#isByHead ? 2 : 1]
    const rows = data as Float32Array
    const width = rows.length / (this.batch * sequence)
    const length = Math.max(...places) + sequence
    if (length > this.#capacity) this.become([{ cache: this, ...this.#rows(this.length) }], length)
    let first = 0
    for (const { past, heads, size } of this.#parts) {
      const array = this.feeds[past].data as Float32Array
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
    }
    this.length = length
  }

  override become(moved: Parameters<RowCache['become']>[0], length: number): void {
    const capacity = roundUp(length * (1 + SHARE), STEP)
    const batch = moved.reduce((sum, { rows }) => sum + rows.length, 0)
    const width = this.#parts.reduce((sum, { heads, size }) => sum + heads * size, 0)
    let left = batch * capacity * width
    let part = 0
    const blocks: Block[] = []
    super.become(moved, capacity, (size) => {
      // Earlier parts are copied by now, so their old blocks are freed: two whole caches are never in memory at once.
      while (this.#blocks.length > 0 && this.#blocks[0].end <= part) freeBuffers([this.#blocks.shift()!.memory.buffer])
      let block = blocks.at(-1)
      if (block === undefined || block.memory.length - block.used < size) {
        const memory = new Float32Array(left < 2 * BLOCK ? left : Math.max(size, BLOCK))
        block = { memory, used: 0, end: part }
        blocks.push(block)
      }
      left -= size
      block.used += size
      block.end = ++part
      return block.memory.subarray(block.used - size, block.used)
    })
    this.release()
    this.#blocks = blocks
    this.batch = batch
    this.length = length
    this.#capacity = capacity
  }

  override release(): void {
    freeBuffers(this.#blocks.map(({ memory }) => memory.buffer))
  }
}
