// Packs short examples into rows of equal length. The longest examples come first, and each goes into the fullest row
// that still has room (best fit decreasing, as in TRL). This takes 4 bytes per example, and 8 more during packing.

import type { Example } from './records.js'

export interface PackedExample extends Example {
  readonly starts: readonly number[]
}

type Source = Pick<readonly Example[], 'length' | 'at'>

export class PackedExamples implements Iterable<PackedExample> {
  /** The last example of each row, and for each example the one before it in its row. Counted from 1; 0 means none. */
  readonly #lasts: Int32Array
  readonly #before: Int32Array
  /** The number of tokens in each row. */
  readonly costs: Int32Array

  /** `length` is the most tokens that a row can have. A longer example gets a row to itself. */
  constructor(
    private readonly source: Source,
    length: number,
  ) {
    const lengths = Int32Array.from({ length: source.length }, (_, i) => source.at(i)!.inputIds.length)
    const [before, lasts, costs, below] = Array.from({ length: 4 }, () => new Int32Array(lengths.length))
    // Rows with equal room form a stack: `tops` has the top row for each room, and `below` the row under each row,
    // counted from 1.
    const tops = new Int32Array(length + 1)
    let rows = 0
    for (const index of longestFirst(lengths)) {
      let room = lengths[index]
      while (room <= length && tops[room] === 0) room++
      const row = room <= length ? tops[room] - 1 : rows++
      if (room <= length) tops[room] = below[row]
      before[index] = lasts[row]
      lasts[row] = index + 1
      costs[row] += lengths[index]
      const left = length - costs[row]
      if (left <= 0) continue
      below[row] = tops[left]
      tops[left] = row + 1
    }
    this.#before = before
    this.#lasts = lasts.slice(0, rows)
    this.costs = costs.slice(0, rows)
  }

  get length(): number {
    return this.costs.length
  }

  at(index: number): PackedExample | undefined {
    if (index < 0 || index >= this.length) return undefined
    const total = this.costs[index]
    const [inputIds, labels] = [new Int32Array(total), new Int32Array(total)]
    const starts: number[] = []
    let end = total
    for (let number = this.#lasts[index]; number > 0; number = this.#before[number - 1]) {
      const example = this.source.at(number - 1)!
      end -= example.inputIds.length
      starts.unshift(end)
      inputIds.set(example.inputIds, end)
      labels.set(example.labels, end)
    }
    return { inputIds, labels, starts }
  }

  *[Symbol.iterator](): Generator<PackedExample> {
    for (let i = 0; i < this.length; i++) yield this.at(i)!
  }
}

/** Sorts the indices of `lengths` by descending length. Equal lengths keep their order. */
function longestFirst(lengths: Int32Array): Int32Array {
  const longest = lengths.reduce((most, length) => Math.max(most, length), 0)
  const places = new Int32Array(longest + 2)
  for (const length of lengths) places[longest - length + 1]++
  for (let i = 1; i < places.length; i++) places[i] += places[i - 1]
  const order = new Int32Array(lengths.length)
  for (const [index, length] of lengths.entries()) order[places[longest - length]++] = index
  return order
}
