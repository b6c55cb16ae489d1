// Reads a file as chunks of text, or as lines. Only a chunk and one record are in memory.

import type { ByteSource } from '../../core/base/bytes.js'
import { DataError, LowrankError } from '../../core/base/errors.js'

/** Bytes read at a time: enough for few reads, little compared with a model. */
const CHUNK_BYTES = 1 << 20

/** The longest record, in characters. Without a limit, a broken file would be read into memory as a whole. */
export const MAX_RECORD_LENGTH = 1 << 26

export interface Line {
  readonly text: string
  readonly number: number
}

async function* storedBytes(source: ByteSource): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  for (let offset = 0; offset < source.byteLength; offset += CHUNK_BYTES) {
    yield (await source.read(offset, Math.min(CHUNK_BYTES, source.byteLength - offset))) as Uint8Array<ArrayBuffer>
  }
}

/** The bytes of a file in pieces; those of a .gz file unpacked. */
export async function* contentOf(source: ByteSource): AsyncGenerator<Uint8Array> {
  if (!PACKED.test(source.name)) return yield* storedBytes(source)
  const stored = storedBytes(source)
  const packed = new ReadableStream<Uint8Array<ArrayBuffer>>({
    async pull(controller) {
      const { value, done } = await stored.next()
      if (done) controller.close()
      else controller.enqueue(value)
    },
  })
  const reader = packed.pipeThrough(new DecompressionStream('gzip')).getReader()
  try {
    for (let part = await next(reader, source); !part.done; part = await next(reader, source)) yield part.value
  } finally {
    await reader.cancel().catch(() => {})
  }
}

function next(reader: ReadableStreamDefaultReader<Uint8Array>, { name }: ByteSource) {
  return reader.read().catch((cause) => {
    if (cause instanceof LowrankError) throw cause
    throw new DataError({ where: name, what: 'not valid gzip, or not whole', cause })
  })
}

export const PACKED = /\.gz(?=$|[?#])/i

export async function* textChunks(source: ByteSource): AsyncGenerator<string> {
  const decoder = new TextDecoder('utf-8', { fatal: true })
  let line = 1
  const decode = (bytes?: Uint8Array) => {
    try {
      return decoder.decode(bytes, { stream: bytes !== undefined })
    } catch (cause) {
      throw new DataError({
        where: `${source.name}, in or after line ${line}`,
        what: 'not valid UTF-8',
        hint: 'Save the file as UTF-8',
        cause,
      })
    }
  }
  for await (const bytes of contentOf(source)) {
    const text = decode(bytes)
    for (let at = text.indexOf('\n'); at >= 0; at = text.indexOf('\n', at + 1)) line++
    yield text
  }
  decode()
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
