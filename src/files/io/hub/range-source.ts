// A file on a server, read in ranges (RFC 9110, section 14), for readers that need a small part of a large file.

import { type ByteSource, checkRange, concatBytes } from '../../../core/base/bytes.js'
import { counted, FileError } from '../../../core/base/errors.js'
import { type HubConnection, isWorthATry, pause, request } from './request.js'

/** Smaller files are read whole, because several ranges would take several requests. */
export const MAX_WHOLE_BYTES = 1 << 20

/** Readers of headers ask for a few bytes at a time. In the time of one more request, about this many bytes arrive. */
const BLOCK_BYTES = 1 << 18
const MAX_TRIES = 4

/** A text that changes when the content at a URL changes: from the ETag or the date of the last change. */
export function versionOf({ headers }: Response): string | undefined {
  return headers.get('etag') ?? headers.get('last-modified') ?? undefined
}

interface Block {
  offset: number
  bytes: Uint8Array<ArrayBuffer>
}

type OnReceived = (receivedBytes: number) => void

/** A file whose length is known. `onReceived` is told how many bytes of a range have arrived. */
export interface RangeSource extends ByteSource {
  read(offset: number, byteLength: number, onReceived?: OnReceived): Promise<Uint8Array<ArrayBuffer>>
}

/** A file that stays on its server until `fetch` or the first `read` downloads it. */
export function inPlace({ name, byteLength }: RangeSource, download: () => Promise<ByteSource>): ByteSource {
  let here: ByteSource | undefined
  let coming: Promise<ByteSource> | undefined
  const bring = async () => {
    coming ??= download()
    try {
      here = await coming
    } finally {
      coming = undefined
    }
    return here
  }
  return {
    name,
    byteLength,
    get realPath() {
      return here?.realPath
    },
    get fd() {
      return here?.fd
    },
    get blob() {
      return here?.blob
    },
    read: async (offset, length) => (here ?? (await bring())).read(offset, length),
    get fetch() {
      return here === undefined ? async () => void (await bring()) : undefined
    },
    close: async () => here?.close(),
  }
}

/** @param file `version` is set if the content at the URL may change: see {@link versionOf} */
export function rangeSource(
  connection: HubConnection,
  file: { url: string; name: string; byteLength: number; version?: string | undefined },
  refused: (response: Response) => FileError,
): RangeSource {
  const { url, name, version } = file
  let lastBlock: Promise<Block | undefined> = Promise.resolve(undefined)
  /** The address from which the last answer came, after redirects. It is valid for some minutes. */
  let direct = url
  const source: RangeSource = {
    name,
    byteLength: file.byteLength,
    async read(offset, byteLength, onReceived) {
      checkRange(source, offset, byteLength)
      if (byteLength === 0) return new Uint8Array()
      if (byteLength >= BLOCK_BYTES || onReceived !== undefined) return load(offset, byteLength, onReceived)
      const end = offset + byteLength
      let block = await lastBlock
      if (block === undefined || offset < block.offset || end > block.offset + block.bytes.byteLength) {
        const loading = load(offset, Math.min(BLOCK_BYTES, source.byteLength - offset)).then(
          (bytes): Block => ({ offset, bytes }),
        )
        // If loading fails, the next read requests the block again.
        lastBlock = loading.catch(() => undefined)
        block = await loading
      }
      return block.bytes.slice(offset - block.offset, end - block.offset)
    },
    async close() {},
  }
  return source

  async function load(offset: number, byteLength: number, onReceived?: OnReceived) {
    for (let attempt = 1; ; attempt++) {
      try {
        return await fetchRange(offset, byteLength, onReceived)
      } catch (error) {
        if (!isWorthATry(error) || attempt === MAX_TRIES) throw error
        await pause(connection, attempt)
      }
    }
  }

  async function fetchRange(offset: number, byteLength: number, onReceived?: OnReceived) {
    const range = `bytes=${offset}-${offset + byteLength - 1}`
    let answer = await request(connection, direct, { range })
    if (!answer.response.ok && direct !== url) {
      await answer.cancel()
      answer = await request(connection, url, { range })
    }
    direct = answer.address
    const { response } = answer
    const refuse = async (error: FileError) => {
      await answer.cancel()
      throw error
    }
    if (!response.ok) return refuse(refused(response))
    const isWhole = response.status === 200 && offset === 0 && byteLength === source.byteLength
    const given = response.headers.get('content-range')
    // A server of another origin may hide this header from a page. Then we check only the length of the part.
    const isPart =
      response.status === 206 && (given === null || given === `bytes ${range.slice(6)}/${source.byteLength}`)
    if (!isWhole && !isPart) {
      return refuse(changed(`a range of ${source.byteLength} bytes`, given ?? `status ${response.status}`))
    }
    if (version !== undefined && versionOf(response) !== version) {
      return refuse(changed(`the version ${version}`, versionOf(response) ?? 'none'))
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
    throw changed(counted(byteLength, 'byte'), `${bytes.byteLength}`)
  }

  function changed(expected: string, got: string): FileError {
    const what = 'the server sent other bytes than it was asked for'
    return new FileError({ where: name, what, expected, got, hint: 'Open it again' })
  }
}
