// Bodies of multipart/form-data (RFC 7578): files go on piece by piece, and are never in memory as a whole.

import { GrowingBytes } from '../../bodies/inbox.js'
import { HttpError } from '../../http.js'
import type { Call } from '../../route.js'

export type Write = (piece: Uint8Array) => Promise<void>
type OnFile = (field: string, filename: string) => Write

const HEADERS_END = Buffer.from('\r\n\r\n')
const MAX_HEADERS = 16 << 10
const MAX_FIELD = 64 << 10
/** The other fields and the headers of all parts together. */
const MAX_AROUND = 256 << 10

/**
 * Reads a form with one file. Its other fields come back by their names.
 *
 * @param onFile returns the function that takes the content of this field's file
 */
export async function readForm(call: Call, maxFileBytes: number, onFile: OnFile): Promise<Record<string, string>> {
  const type = call.request.headers.get('content-type') ?? ''
  const [, quoted, plain] = /^multipart\/form-data\s*;.*\bboundary=(?:"([^"]{1,200})"|([^\s;]{1,70}))/i.exec(type) ?? []
  const boundary = quoted ?? plain
  if (boundary === undefined) throw new HttpError(415, 'The body must be multipart/form-data with a boundary')
  return call.inbox.receive(call, maxFileBytes + MAX_AROUND, (pieces, holds) => {
    holds(MAX_AROUND)
    return readParts(pieces, boundary, onFile)
  })
}

async function readParts(
  pieces: AsyncGenerator<Uint8Array, void>,
  boundary: string,
  onFile: OnFile,
): Promise<Record<string, string>> {
  const broken = () => new HttpError(400, 'The body is not valid multipart/form-data')
  const mark = Buffer.from(`\r\n--${boundary}`)
  // A body may begin with its first boundary, without a line break before it.
  let held = Buffer.from('\r\n')
  const more = async () => {
    const next = await pieces.next()
    if (next.done) throw broken()
    held = Buffer.concat([held, next.value])
  }
  /** Hands out what comes before the next boundary. */
  const until = async (take: (piece: Buffer) => Promise<void> | void) => {
    for (;;) {
      const at = held.indexOf(mark)
      const end = at < 0 ? Math.max(0, held.length - mark.length) : at
      if (end > 0) await take(held.subarray(0, end))
      held = held.subarray(end)
      if (at >= 0) break
      await more()
    }
    held = held.subarray(mark.length)
    while (held.length < 2) await more()
    return held.subarray(0, 2).toString() !== '--'
  }
  const fields: Record<string, string> = {}
  let hasFile = false
  for (let hasNext = await until(() => {}); hasNext; ) {
    for (; held.indexOf(HEADERS_END) < 0; await more()) if (held.length > MAX_HEADERS) throw broken()
    const end = held.indexOf(HEADERS_END)
    const headers = held.subarray(0, end).toString()
    held = held.subarray(end + HEADERS_END.length)
    const [, name = ''] = /^content-disposition:.*?\bname="([^"\r\n]{1,200})"/im.exec(headers) ?? []
    const [, filename] = /^content-disposition:.*?\bfilename="([^"\r\n]*)"/im.exec(headers) ?? []
    if (name === '' || (filename !== undefined && hasFile)) throw broken()
    if (filename !== undefined) {
      hasFile = true
      hasNext = await until(onFile(name, filename))
      continue
    }
    const text = new GrowingBytes((bytes) => {
      if (bytes > MAX_FIELD) throw new HttpError(413, `${name}: longer than ${MAX_FIELD} bytes`, { param: name })
    })
    hasNext = await until((piece) => text.add(piece))
    fields[name] = Buffer.from(text.bytes).toString()
  }
  if (!hasFile) throw new HttpError(400, 'The form has no file', { param: 'file' })
  return fields
}
