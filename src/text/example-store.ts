// Tokenized examples in 4 bytes a token, whether its label counts or not, and 8 bytes an example. Tokens that are very
// many lie in a file.

import { type Example, IGNORED } from './records.js'

/** A file that stands in for memory. */
export interface TokenFile {
  /** Returns where they lie, for `read`. */
  write(tokens: Int32Array): number
  read(place: number, into: Int32Array): void
}

/** Tokens of a block. Examples lie one behind the other, over the bounds of blocks. */
const BLOCK = 1 << 16
/** Blocks that stay in memory: 64 MiB. */
const KEPT = 256

export class ExampleStore implements Iterable<Example> {
  readonly #file: (() => TokenFile) | undefined
  readonly #kept: number
  /** The end of each example, counted over all tokens. */
  #ends = new Float64Array(1024)
  #length = 0
  /** The ids, or where they lie in the file. One whose label is ignored has all bits turned. */
  readonly #blocks: (Int32Array | number)[] = []
  #last = new Int32Array(BLOCK)
  #taken = 0
  /** The block of the file that was read last. */
  readonly #read = { block: -1, tokens: new Int32Array(0) }

  /** Without `file`, all stays in memory. It is called when there are more than `kept` blocks. */
  constructor(file?: () => TokenFile, kept = KEPT) {
    this.#file = file
    this.#kept = kept
  }

  get length(): number {
    return this.#length
  }

  push({ inputIds, labels }: Example): void {
    for (let i = 0; i < inputIds.length; i++) {
      if (this.#taken === BLOCK) this.#closeBlock()
      this.#last[this.#taken++] = labels[i] === IGNORED ? ~inputIds[i] : inputIds[i]
    }
    if (this.#length === this.#ends.length) {
      const ends = new Float64Array(2 * this.#length)
      ends.set(this.#ends)
      this.#ends = ends
    }
    this.#ends[this.#length++] = this.#blocks.length * BLOCK + this.#taken
  }

  #closeBlock(): void {
    const isKept = this.#file === undefined || this.#blocks.length < this.#kept
    this.#blocks.push(isKept ? this.#last : this.#file().write(this.#last))
    if (isKept) this.#last = new Int32Array(BLOCK)
    this.#taken = 0
  }

  at(index: number): Example | undefined {
    if (index < 0 || index >= this.#length) return undefined
    let from = index === 0 ? 0 : this.#ends[index - 1]
    const end = this.#ends[index]
    const inputIds = new Int32Array(end - from)
    for (let taken = 0; from < end; ) {
      const at = from % BLOCK
      const part = this.#tokensOf((from - at) / BLOCK).subarray(at, at + end - from)
      inputIds.set(part, taken)
      taken += part.length
      from += part.length
    }
    const labels = inputIds.slice()
    for (let i = 0; i < inputIds.length; i++) {
      if (inputIds[i] >= 0) continue
      inputIds[i] = ~inputIds[i]
      labels[i] = IGNORED
    }
    return { inputIds, labels }
  }

  #tokensOf(block: number): Int32Array {
    const stored = this.#blocks[block] ?? this.#last
    if (typeof stored !== 'number') return stored
    if (this.#read.block !== block) {
      if (this.#read.tokens.length === 0) this.#read.tokens = new Int32Array(BLOCK)
      this.#file?.().read(stored, this.#read.tokens)
      this.#read.block = block
    }
    return this.#read.tokens
  }

  *[Symbol.iterator](): Generator<Example> {
    for (let i = 0; i < this.length; i++) yield this.at(i) as Example
  }
}
