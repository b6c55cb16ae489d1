// Takes an adapter out of the archive in which a provider sends it: a tar, packed by zstd, gzip or nothing.

import { createReadStream } from 'node:fs'
import { open } from 'node:fs/promises'
import { PassThrough, type Readable, type Transform } from 'node:stream'
import * as zlib from 'node:zlib'
import { closingOnError } from '../../../core/base/bytes.js'
import { FormatError, UnsupportedError } from '../../../core/base/errors.js'
import type { Folder } from './folder.js'

const BLOCK = 512
const WANTED = /^(adapter_config\.json|adapter_model\.(safetensors|bin)|README\.md|chat_template\.jinja)$/

/**
 * Writes the files of an adapter, wherever they are in the archive, into a folder.
 *
 * @param from the place of the archive, and @param to that of the folder
 * @throws FormatError for a file that is no archive or is cut; UnsupportedError without zstd in this Node
 */
export async function unpackAdapter(folder: Folder, from: string, to: string): Promise<string[]> {
  const names: string[] = []
  const bytes = new Bytes(await unpacked(folder.at(from)))
  for (;;) {
    const header = await bytes.take(BLOCK)
    if (header === undefined || header.every((byte) => byte === 0)) return names
    const text = (start: number, end: number) => header.toString('latin1', start, end).split('\0')[0].trim()
    const [size, kind] = [Number.parseInt(text(124, 136), 8), text(156, 157)]
    if (!/^ustar/.test(text(257, 263)) || !(size >= 0))
      throw new FormatError({ where: from, what: 'not a tar archive' })
    const name = text(0, 100).split('/').at(-1)!
    const isWanted = ['', '0'].includes(kind) && WANTED.test(name) && !names.includes(name)
    const sink = isWanted ? await folder.directory.create(`${to}/${name}`) : undefined
    const copy = async () => {
      for (let left = size; left > 0; ) {
        const chunk = await bytes.some(left)
        if (chunk === undefined) throw new FormatError({ where: from, what: 'the archive is cut' })
        await sink?.write(chunk)
        left -= chunk.length
      }
      await bytes.take((BLOCK - (size % BLOCK)) % BLOCK)
      await sink?.commit()
    }
    await closingOnError({ close: async () => sink?.abort() }, copy)
    if (isWanted) names.push(name)
  }
}

async function unpacked(file: string): Promise<Readable> {
  const opened = await open(file)
  const { buffer } = await opened.read(Buffer.alloc(4), 0, 4, 0).finally(() => opened.close())
  const isZstd = buffer.readUInt32LE() === 0xfd2fb528
  // Node has it since 22.15.
  const { createZstdDecompress } = zlib as { createZstdDecompress?: () => Transform }
  if (isZstd && createZstdDecompress === undefined) {
    const hint = 'Run the command again with Node 22.15 or newer'
    throw new UnsupportedError({ where: file, what: 'this Node cannot unpack zstd', hint })
  }
  const isGzip = buffer.readUInt16BE() === 0x1f8b
  const unpack = isZstd ? createZstdDecompress!() : isGzip ? zlib.createGunzip() : new PassThrough()
  const source = createReadStream(file).on('error', (error) => unpack.destroy(error))
  return source.pipe(unpack)
}

/** Bytes of a stream, in pieces of a wanted length. */
class Bytes {
  readonly #chunks: AsyncIterator<Buffer>
  #rest: Buffer = Buffer.alloc(0)

  constructor(stream: Readable) {
    this.#chunks = stream[Symbol.asyncIterator]()
  }

  /** At most `most` bytes; undefined at the end. */
  async some(most: number): Promise<Buffer | undefined> {
    while (this.#rest.length === 0) {
      const { value, done } = await this.#chunks.next()
      if (done) return undefined
      this.#rest = value
    }
    const taken = this.#rest.subarray(0, most)
    this.#rest = this.#rest.subarray(taken.length)
    return taken
  }

  /** Exactly so many bytes; undefined if there are fewer. */
  async take(length: number): Promise<Buffer | undefined> {
    const parts: Buffer[] = []
    for (let left = length; left > 0; ) {
      const part = await this.some(left)
      if (part === undefined) return undefined
      parts.push(part)
      left -= part.length
    }
    return Buffer.concat(parts)
  }
}
