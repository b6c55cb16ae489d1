// Reads a header whose length nobody knows in advance, a piece at a time. Every length in it is checked against the
// file's before anything is read or made.

import type { ByteSource } from '../../base/bytes.js'
import { FormatError } from '../../base/errors.js'

const PIECE_BYTES = 1 << 18

/** A place in a source that moves forward. */
export class Cursor {
  readonly #source: ByteSource
  #piece: Uint8Array = new Uint8Array()
  #pieceStart = 0
  #at = 0

  constructor(source: ByteSource) {
    this.#source = source
  }

  /** Bytes from the source's beginning. */
  get offset(): number {
    return this.#at
  }

  /** Bytes that are left. */
  get left(): number {
    return this.#source.byteLength - this.#at
  }

  /** The next bytes. Throws FormatError when the file ends before. */
  async take(byteLength: number, what: string): Promise<DataView> {
    this.check(byteLength, what)
    const from = this.#at - this.#pieceStart
    if (from < 0 || from + byteLength > this.#piece.byteLength) {
      this.#piece = await this.#source.read(this.#at, Math.min(Math.max(byteLength, PIECE_BYTES), this.left))
      this.#pieceStart = this.#at
    }
    const start = this.#piece.byteOffset + this.#at - this.#pieceStart
    this.#at += byteLength
    return new DataView(this.#piece.buffer, start, byteLength)
  }

  /** Moves on without reading. Throws FormatError when the file ends before. */
  skip(byteLength: number, what: string): void {
    this.check(byteLength, what)
    this.#at += byteLength
  }

  /** Throws FormatError unless so many bytes are left. */
  check(byteLength: number, what: string): void {
    if (byteLength <= this.left) return
    throw new FormatError({
      where: this.#source.name,
      what: `${what} goes past the end of the file`,
      expected: `at most ${this.left} bytes`,
      got: String(byteLength),
      hint: 'The file may be cut short: download it again',
    })
  }

  async u32(what: string): Promise<number> {
    return (await this.take(4, what)).getUint32(0, true)
  }

  /** A length or a count. Throws FormatError when it is above `most`. */
  async size(what: string, most: number): Promise<number> {
    const value = (await this.take(8, what)).getBigUint64(0, true)
    if (value <= BigInt(most)) return Number(value)
    throw new FormatError({
      where: this.#source.name,
      what: `${what} is too large`,
      expected: `at most ${most}`,
      got: String(value),
    })
  }

  /** Text with its length before it. */
  async text(what: string, mostBytes: number): Promise<string> {
    const length = await this.size(`the length of ${what}`, mostBytes)
    const { buffer, byteOffset } = await this.take(length, what)
    return new TextDecoder().decode(new Uint8Array(buffer, byteOffset, length))
  }
}
