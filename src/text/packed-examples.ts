// Short examples side by side in rows of one length: each goes into the row with the least room that still holds it,
// the longest first (best fit decreasing, as in TRL). An example takes 4 bytes, and 8 more while rows are made.

import type { Example } from './records.js'

export interface PackedExample extends Example {
  readonly starts: readonly number[]
}

type Source = Pick<readonly Example[], 'length' | 'at'>

export class PackedExamples implements Iterable<PackedExample> {
  /** For each row its last example, and for each example the one before it in its row: from 1 on, 0 for none. */
  readonly #lasts: Int32Array
  readonly #before: Int32Array
  /** Tokens of each row. */
  readonly costs: Int32Array

  /** `length`: most tokens of a row. A longer example has a row of its own. */
  constructor(
    private readonly source: Source,
    length: number,
  ) {
    const lengths = Int32Array.from({ length: source.length }, (_, i) => source.at(i)!.inputIds.length)
    const [before, lasts, costs, below] = Array.from({ length: 4 }, () => new Int32Array(lengths.length))
    /** For each room, the last of the rows that have it, from 1 on. `below` has the one before it. */
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
    for (let one = this.#lasts[index]; one > 0; one = this.#before[one - 1]) {
      const example = this.source.at(one - 1)!
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

/** Places of lengths: equal ones stay in their order. */
function longestFirst(lengths: Int32Array): Int32Array {
  const longest = lengths.reduce((most, own) => Math.max(most, own), 0)
  const places = new Int32Array(longest + 2)
  for (const own of lengths) places[longest - own + 1]++
  for (let i = 1; i < places.length; i++) places[i] += places[i - 1]
  const order = new Int32Array(lengths.length)
  for (const [index, own] of lengths.entries()) order[places[longest - own]++] = index
  return order
}
