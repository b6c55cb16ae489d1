// Takes an adapter out of the archive in which a provider sends it: a tar, packed by zstd, gzip or nothing.

import { readFile, stat } from 'node:fs/promises'
import * as zlib from 'node:zlib'
import { writeFile } from '../../../core/base/bytes.js'
import { FormatError, messageOf, UnsupportedError } from '../../../core/base/errors.js'
import type { Folder } from './folder.js'

const BLOCK = 512
/** Bytes of the largest adapter. A larger archive has a whole model. */
const MOST = 2 ** 31 - 1
const WANTED = /^(adapter_config\.json|adapter_model\.(safetensors|bin)|README\.md|chat_template\.jinja)$/

/**
 * Writes the files of an adapter, wherever they are in the archive, into a folder, and returns their names.
 *
 * @param from the place of the archive, and @param to that of the folder
 * @throws FormatError for a file that is no archive, is cut or damaged; UnsupportedError without zstd, and for one that
 *   is too large
 */
export async function unpackAdapter(folder: Folder, from: string, to: string): Promise<string[]> {
  const bytes = await unpacked(folder.at(from), from)
  const found = new Map<string, Buffer>()
  for (let at = 0; ; ) {
    const header = bytes.subarray(at, at + BLOCK)
    if (header.every((byte) => byte === 0)) break
    const text = (start: number, end: number) => header.toString('latin1', start, end).split('\0')[0].trim()
    const [size, kind] = [Number.parseInt(text(124, 136), 8), text(156, 157)]
    if (!/^ustar/.test(text(257, 263)) || !(size >= 0))
      throw new FormatError({ where: from, what: 'not a tar archive' })
    const start = at + BLOCK
    at = start + Math.ceil(size / BLOCK) * BLOCK
    if (start + size > bytes.length) throw new FormatError({ where: from, what: 'the archive is cut' })
    const name = text(0, 100).split('/').at(-1)!
    const isWanted = ['', '0'].includes(kind) && WANTED.test(name) && !found.has(name)
    if (isWanted) found.set(name, bytes.subarray(start, start + size))
  }
  for (const [name, content] of found) await writeFile(folder.directory, `${to}/${name}`, content)
  return [...found.keys()]
}

async function unpacked(file: string, where: string): Promise<Buffer> {
  const tooLarge = (cause?: unknown) => {
    return new UnsupportedError({ where, what: 'it is too large for an adapter, and may be a whole model', cause })
  }
  if ((await stat(file)).size > MOST) throw tooLarge()
  const packed = await readFile(file)
  try {
    if (packed.readUInt32LE() === 0xfd2fb528) return await withoutZstd(packed, where)
    return packed.readUInt16BE() === 0x1f8b ? zlib.gunzipSync(packed, { maxOutputLength: MOST }) : packed
  } catch (cause) {
    if (cause instanceof UnsupportedError) throw cause
    if ((cause as NodeJS.ErrnoException).code === 'ERR_BUFFER_TOO_LARGE') throw tooLarge(cause)
    throw new FormatError({ where, what: 'the archive is damaged', got: messageOf(cause), cause })
  }
}

async function withoutZstd(packed: Buffer, where: string): Promise<Buffer> {
  type Unpack = (packed: Uint8Array, options?: { maxOutputLength: number }) => Uint8Array
  // Node has it since 22.15.
  const { zstdDecompressSync: own } = zlib as { zstdDecompressSync?: Unpack }
  if (own !== undefined) return Buffer.from(own(packed, { maxOutputLength: MOST }))
  const { decompressZstd } = await import('hyparquet-compressors').catch((cause) => {
    const hint = 'Use Node 22.15 or newer, or run: npm install hyparquet-compressors'
    throw new UnsupportedError({ where, what: 'this Node cannot unpack zstd', hint, cause })
  })
  return Buffer.from(decompressZstd(packed))
}
