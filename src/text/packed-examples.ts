// Short examples side by side in rows of one length: each goes into the row with the least room that still holds it,
// the longest first (best fit decreasing, as in TRL).

import { type Example, IGNORED } from './records.js'

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

/** Tokens of a block, of which examples take parts: an array of its own for each of a million takes twice the time. */
const BLOCK = 1 << 18

/** Keeps an example in 4 bytes a token, whether its label counts or not: a million chats fit into memory. */
export class ExampleStore implements Iterable<Example> {
  /** The ids. One whose label is ignored has all bits turned. */
  readonly #packed: Int32Array[] = []
  #block = new Int32Array(0)
  #taken = 0

  get length(): number {
    return this.#packed.length
  }

  push({ inputIds, labels }: Example): void {
    const { length } = inputIds
    if (this.#taken + length > this.#block.length) {
      this.#block = new Int32Array(Math.max(BLOCK, length))
      this.#taken = 0
    }
    const packed = this.#block.subarray(this.#taken, this.#taken + length)
    this.#taken += length
    packed.set(inputIds)
    for (let i = 0; i < packed.length; i++) if (labels[i] === IGNORED) packed[i] = ~packed[i]
    this.#packed.push(packed)
  }

  at(index: number): Example | undefined {
    const packed = this.#packed[index]
    if (packed === undefined) return undefined
    const [inputIds, labels] = [packed.slice(), packed.slice()]
    for (let i = 0; i < packed.length; i++) {
      if (packed[i] >= 0) continue
      inputIds[i] = ~packed[i]
      labels[i] = IGNORED
    }
    return { inputIds, labels }
  }

  *[Symbol.iterator](): Generator<Example> {
    for (let i = 0; i < this.length; i++) yield this.at(i) as Example
  }
}
