// Tokenized examples in 4 bytes a token, whether its label counts or not: a million chats fit into memory.

import { type Example, IGNORED } from './records.js'

/** Tokens of a block, of which examples take parts: an array of its own for each of a million takes twice the time. */
const BLOCK = 1 << 18

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
