// Bytes in a browser behind ByteSource: Blobs (files that a user picked, OPFS) and URLs read with HTTP range requests
// (RFC 9110, section 14). Works in Node too.

import { type ByteSource, checkRange, MemorySource } from '../../base/bytes.js'
import { FileError } from '../../base/errors.js'

/** A Blob or File, read in slices. */
export class BlobSource implements ByteSource {
  readonly name: string
  readonly byteLength: number
  readonly #blob: Blob

  /** @param name for messages; default: a File's own name */
  constructor(blob: Blob, name = blob instanceof File ? blob.name : 'blob') {
    this.#blob = blob
    this.name = name
    this.byteLength = blob.size
  }

  async read(offset: number, byteLength: number): Promise<Uint8Array> {
    checkRange(this, offset, byteLength)
    try {
      return new Uint8Array(await this.#blob.slice(offset, offset + byteLength).arrayBuffer())
    } catch (cause) {
      throw new FileError({ where: this.name, what: 'cannot be read', hint: 'Pick the file again', cause })
    }
  }

  async close(): Promise<void> {}
}

/** How a URL is asked for. */
export interface UrlOptions {
  /** Default: the global fetch. */
  fetch?: typeof globalThis.fetch
  /** Sent with each request, as for authorization. */
  headers?: Record<string, string>
  /** Ends requests under way and all later ones. */
  signal?: AbortSignal
}

/**
 * Opens a URL: with range requests where the server has them, otherwise by downloading the whole of it.
 *
 * @throws FileError when the server cannot be reached, answers with an error, or does not tell the length.
 */
export async function openUrl(url: string, options: UrlOptions = {}): Promise<ByteSource> {
  const response = await request(url, options, { Range: 'bytes=0-0' })
  if (response.status !== 206) {
    // An empty resource has no first byte: servers answer 416.
    const isEmpty = response.status === 416 && response.headers.get('content-range') === 'bytes */0'
    if (!response.ok && !isEmpty) throw badStatus(url, response)
    return new MemorySource(isEmpty ? new Uint8Array() : await readBody(url, response), url)
  }
  const byteLength = Number(/\/(\d+)$/.exec(response.headers.get('content-range') ?? '')?.[1])
  await response.body?.cancel()
  if (!Number.isSafeInteger(byteLength)) {
    throw new FileError({ where: url, what: 'the server does not tell the length', expected: 'a Content-Range header' })
  }
  return new UrlSource(url, byteLength, response.headers.get('etag'), options)
}

class UrlSource implements ByteSource {
  readonly name: string
  readonly byteLength: number
  readonly #etag: string | null
  readonly #options: UrlOptions

  constructor(url: string, byteLength: number, etag: string | null, options: UrlOptions) {
    this.name = url
    this.byteLength = byteLength
    this.#etag = etag
    this.#options = options
  }

  async read(offset: number, byteLength: number): Promise<Uint8Array> {
    checkRange(this, offset, byteLength)
    if (byteLength === 0) return new Uint8Array()
    const response = await request(this.name, this.#options, { Range: `bytes=${offset}-${offset + byteLength - 1}` })
    if (!response.ok) throw badStatus(this.name, response)
    const isSame = response.status === 206 && response.headers.get('etag') === this.#etag
    const bytes = isSame ? await readBody(this.name, response) : undefined
    if (bytes?.byteLength !== byteLength) {
      await response.body?.cancel().catch(() => {})
      throw new FileError({
        where: this.name,
        what: 'changed on the server while it was being read',
        hint: 'Open it again',
      })
    }
    return bytes
  }

  async close(): Promise<void> {}
}

async function request(url: string, options: UrlOptions, headers: Record<string, string>): Promise<Response> {
  const { fetch = globalThis.fetch, signal } = options
  try {
    return await fetch(url, { headers: { ...options.headers, ...headers }, ...(signal && { signal }) })
  } catch (cause) {
    signal?.throwIfAborted()
    throw new FileError({ where: url, what: 'cannot be reached', cause })
  }
}

async function readBody(url: string, response: Response): Promise<Uint8Array> {
  try {
    return new Uint8Array(await response.arrayBuffer())
  } catch (cause) {
    throw new FileError({ where: url, what: 'the connection broke', cause })
  }
}

function badStatus(url: string, response: Response): FileError {
  return new FileError({
    where: url,
    what: 'the server answered with an error',
    expected: '200 or 206',
    got: `${response.status}`,
  })
}
