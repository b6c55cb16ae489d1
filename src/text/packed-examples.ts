// Short examples side by side in rows of one length: each goes into the row with the least room that still holds it,
// the longest first (best fit decreasing, as in TRL).

import type { Example } from './records.js'

export interface PackedExample extends Example {
  readonly starts: readonly number[]
}

interface Source {
  readonly length: number
  at(index: number): Example | undefined
}

export class PackedExamples implements Iterable<PackedExample> {
  readonly #source: Source
  readonly #rows: readonly (readonly number[])[]

  /** `length`: most tokens of a row. A longer example has a row of its own. */
  constructor(source: Source, length: number) {
    this.#source = source
    const lengths = Array.from({ length: source.length }, (_, i) => source.at(i)!.inputIds.length)
    this.#rows = fitted(lengths, length)
  }

  get length(): number {
    return this.#rows.length
  }

  at(index: number): PackedExample | undefined {
    const row = this.#rows[index]
    if (row === undefined) return undefined
    const examples = row.map((i) => this.#source.at(i)!)
    const total = examples.reduce((sum, { inputIds }) => sum + inputIds.length, 0)
    const [inputIds, labels] = [new Int32Array(total), new Int32Array(total)]
    const starts: number[] = []
    let at = 0
    for (const example of examples) {
      starts.push(at)
      inputIds.set(example.inputIds, at)
      labels.set(example.labels, at)
      at += example.inputIds.length
    }
    return { inputIds, labels, starts }
  }

  *[Symbol.iterator](): Generator<PackedExample> {
    for (let i = 0; i < this.length; i++) yield this.at(i)!
  }
}

function fitted(lengths: readonly number[], capacity: number): number[][] {
  const order = [...lengths.keys()].sort((a, b) => lengths[b] - lengths[a] || a - b)
  const rows: number[][] = []
  const withRoom: number[][] = Array.from({ length: capacity + 1 }, () => [])
  for (const index of order) {
    let room = lengths[index]
    while (room <= capacity && withRoom[room].length === 0) room++
    const row = withRoom[room]?.pop() ?? rows.push([]) - 1
    rows[row].push(index)
    const left = Math.min(room, capacity) - lengths[index]
    if (left > 0) withRoom[left].push(row)
  }
  return rows
}
