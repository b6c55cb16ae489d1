// A file on a server that is read in ranges (RFC 9110, section 14): for what needs a small part of a large file.

import { type ByteSource, checkRange, concatBytes } from '../../base/bytes.js'
import { FileError } from '../../base/errors.js'
import { type HubConnection, isWorthATry, pause, request } from './request.js'

/** Smaller files come whole: in ranges, a config would take as many requests as it has parts. */
export const MAX_WHOLE_BYTES = 1 << 20

/** Readers of a file's head ask for a few bytes at a time; a request takes as long as this much. */
const BLOCK_BYTES = 1 << 18
const MAX_TRIES = 4

/** A text that changes with the content at a URL. */
export function versionOf({ headers }: Response): string | undefined {
  return headers.get('etag') ?? headers.get('last-modified') ?? undefined
}

interface Block {
  offset: number
  bytes: Uint8Array<ArrayBuffer>
}

export class RangeSource implements ByteSource {
  readonly name: string
  readonly byteLength: number
  readonly #url: string
  readonly #version: string | undefined
  readonly #connection: HubConnection
  readonly #refused: (response: Response) => FileError
  #block: Promise<Block | undefined> = Promise.resolve(undefined)

  constructor(
    connection: HubConnection,
    file: { url: string; name: string; byteLength: number; version?: string | undefined },
    refused: (response: Response) => FileError,
  ) {
    this.name = file.name
    this.byteLength = file.byteLength
    this.#url = file.url
    this.#version = file.version
    this.#connection = connection
    this.#refused = refused
  }

  async read(
    offset: number,
    byteLength: number,
    onReceived?: (receivedBytes: number) => void,
  ): Promise<Uint8Array<ArrayBuffer>> {
    checkRange(this, offset, byteLength)
    if (byteLength === 0) return new Uint8Array()
    if (byteLength >= BLOCK_BYTES || onReceived !== undefined) return this.#load(offset, byteLength, onReceived)
    const end = offset + byteLength
    let block = await this.#block
    if (block === undefined || offset < block.offset || end > block.offset + block.bytes.byteLength) {
      const loading = this.#loadBlock(offset)
      // A block that does not come is asked for again.
      this.#block = loading.catch(() => undefined)
      block = await loading
    }
    return block.bytes.slice(offset - block.offset, end - block.offset)
  }

  async #loadBlock(offset: number): Promise<Block> {
    return { offset, bytes: await this.#load(offset, Math.min(BLOCK_BYTES, this.byteLength - offset)) }
  }

  async #load(
    offset: number,
    byteLength: number,
    onReceived?: (receivedBytes: number) => void,
  ): Promise<Uint8Array<ArrayBuffer>> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#fetch(offset, byteLength, onReceived)
      } catch (error) {
        if (!isWorthATry(error) || attempt === MAX_TRIES) throw error
        await pause(this.#connection, attempt)
      }
    }
  }

  async #fetch(
    offset: number,
    byteLength: number,
    onReceived?: (receivedBytes: number) => void,
  ): Promise<Uint8Array<ArrayBuffer>> {
    const range = `bytes=${offset}-${offset + byteLength - 1}`
    const answer = await request(this.#connection, this.#url, { range })
    const { response } = answer
    if (!response.ok) {
      await answer.cancel()
      throw this.#refused(response)
    }
    const isWhole = response.status === 200 && offset === 0 && byteLength === this.byteLength
    const given = response.headers.get('content-range')
    // A server of another origin may hide the header from a page; then the length of the part has to do.
    const isPart = response.status === 206 && (given === null || given === `bytes ${range.slice(6)}/${this.byteLength}`)
    if (!isWhole && !isPart) {
      await answer.cancel()
      throw this.#changed(`a range of ${this.byteLength} bytes`, given ?? `status ${response.status}`)
    }
    if (this.#version !== undefined && versionOf(response) !== this.#version) {
      await answer.cancel()
      throw this.#changed(`the version ${this.#version}`, versionOf(response) ?? 'none')
    }
    const parts: Uint8Array[] = []
    let received = 0
    for await (const chunk of answer.chunks()) {
      parts.push(chunk)
      received += chunk.byteLength
      onReceived?.(received)
    }
    const bytes = concatBytes(parts) as Uint8Array<ArrayBuffer>
    if (bytes.byteLength === byteLength) return bytes
    throw this.#changed(`${byteLength} bytes`, `${bytes.byteLength}`)
  }

  #changed(expected: string, got: string): FileError {
    return new FileError({
      where: this.name,
      what: 'the server sent other bytes than it was asked for',
      expected,
      got,
      hint: 'Open it again',
    })
  }

  async close(): Promise<void> {}
}
