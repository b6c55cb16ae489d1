// Reads a file as chunks of text, or as lines. Only a chunk and one record are in memory.

import type { ByteSource } from '../../core/base/bytes.js'
import { DataError } from '../../core/base/errors.js'

/** Bytes read at a time: enough for few reads, little compared with a model. */
const CHUNK_BYTES = 1 << 20

/** The longest record, in characters. Without a limit, a broken file would be read into memory as a whole. */
export const MAX_RECORD_LENGTH = 1 << 26

export interface Line {
  readonly text: string
  readonly number: number
}

export async function* textChunks(source: ByteSource): AsyncGenerator<string> {
  const decoder = new TextDecoder('utf-8', { fatal: true })
  let line = 1
  for (let offset = 0; offset < source.byteLength; offset += CHUNK_BYTES) {
    const byteLength = Math.min(CHUNK_BYTES, source.byteLength - offset)
    const bytes = await source.read(offset, byteLength)
    let text: string
    try {
      text = decoder.decode(bytes, { stream: offset + byteLength < source.byteLength })
    } catch (cause) {
      throw new DataError({
        where: `${source.name}, in or after line ${line}`,
        what: 'not valid UTF-8',
        hint: 'Save the file as UTF-8',
        cause,
      })
    }
    for (let at = text.indexOf('\n'); at >= 0; at = text.indexOf('\n', at + 1)) line++
    yield text
  }
}

export async function* textLines(source: ByteSource): AsyncGenerator<Line> {
  let number = 1
  let parts: string[] = []
  let length = 0
  const line = (last: string): Line => {
    const text = parts.length === 0 ? last : parts.join('') + last
    parts = []
    length = 0
    return { text: text.endsWith('\r') ? text.slice(0, -1) : text, number: number++ }
  }
  for await (const chunk of textChunks(source)) {
    let start = 0
    for (let end = chunk.indexOf('\n'); end >= 0; end = chunk.indexOf('\n', start)) {
      yield line(chunk.slice(start, end))
      start = end + 1
    }
    parts.push(chunk.slice(start))
    length += chunk.length - start
    checkLength(length, `${source.name}, line ${number}`)
  }
  if (length > 0) yield line('')
}

export function checkLength(length: number, where: string): void {
  if (length <= MAX_RECORD_LENGTH) return
  throw new DataError({
    where,
    what: 'a record that is too long',
    expected: `at most ${MAX_RECORD_LENGTH} characters`,
    hint: 'The file may be broken here, or of another format',
  })
}
