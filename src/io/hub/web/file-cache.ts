// Files in a browser's Cache API, in parts: downloads can go on, and nothing large is held in memory.

import { type ByteSource, concatBytes } from '../../../base/bytes.js'
import { FileError, messageOf } from '../../../base/errors.js'
import { BlobSource } from '../../web/files.js'
import { type Digest, damage, gitHeader } from '../api.js'
import type { OnDownload } from '../directory.js'
import type { RangeSource } from '../range-source.js'

/** A second or two of a usual connection: what an interruption costs, at some dozen requests for a model. */
const PART_BYTES = 8 << 20
/** Browsers digest what is in memory as a whole; larger content is checked by its length alone. */
const MAX_DIGESTED_BYTES = 64 << 20
const CACHE_NAME = 'lowrank'

export type Caches = Pick<CacheStorage, 'open'>

export interface WantedFile {
  readonly digest?: Digest | undefined
  /** The server has no ranges: all comes at once. */
  readonly isWhole?: boolean
  readonly onDownload?: OnDownload | undefined
}

export class FileCache {
  #isFull = false

  constructor(
    private readonly caches: Caches | undefined = 'caches' in globalThis ? globalThis.caches : undefined,
    private readonly onWarning: (message: string) => void = () => {},
  ) {}

  async readJson(url: string): Promise<unknown> {
    return (await this.#match(url))?.json().catch(() => undefined)
  }

  async writeJson(url: string, value: unknown): Promise<void> {
    await this.#put(url, new Blob([JSON.stringify(value)]))
  }

  async has(key: string, byteLength: number): Promise<boolean> {
    for (const { name } of partsOf(key, byteLength)) if ((await this.#match(name)) === undefined) return false
    return true
  }

  /** Opens what is kept of a file, and the rest from the server. `key` names this very content, as by a commit. */
  async open(source: RangeSource, key: string, wanted: WantedFile): Promise<ByteSource> {
    const { name, byteLength } = source
    const { digest, isWhole = false, onDownload } = wanted
    const parts = partsOf(key, byteLength, isWhole ? byteLength : PART_BYTES)
    const blobs = await Promise.all(parts.map(async (part) => (await this.#match(part.name))?.blob()))
    const kept = blobs.map((blob, i) => (blob?.size === parts[i].byteLength ? blob : undefined))
    let receivedBytes = kept.reduce((sum, blob) => sum + (blob?.size ?? 0), 0)
    const isNew = kept.includes(undefined)
    if (isNew) onDownload?.({ name, byteLength, receivedBytes })
    const whole: Blob[] = []
    for (const [i, part] of parts.entries()) {
      let blob = kept[i]
      if (blob === undefined) {
        const before = receivedBytes
        const bytes = await source.read(part.offset, part.byteLength, (received) => {
          receivedBytes = before + received
          onDownload?.({ name, byteLength, receivedBytes })
        })
        blob = new Blob([bytes])
        await this.#put(part.name, blob)
      }
      whole.push(blob)
    }
    const content = new Blob(whole)
    if (isNew && digest !== undefined && byteLength <= MAX_DIGESTED_BYTES && !(await isRight(content, digest))) {
      await Promise.all(parts.map((part) => this.#delete(part.name)))
      throw new FileError(damage({ name, byteLength, digest }))
    }
    return new BlobSource(content, name)
  }

  async #match(url: string): Promise<Response | undefined> {
    try {
      return await (await this.caches?.open(CACHE_NAME))?.match(url)
    } catch {
      // A browser that forbids storage still reads from the server.
      return undefined
    }
  }

  async #put(url: string, content: Blob): Promise<void> {
    if (this.#isFull) return
    try {
      await (await this.caches?.open(CACHE_NAME))?.put(url, new Response(content))
    } catch (error) {
      this.#isFull = true
      this.onWarning(
        `The browser does not keep what is loaded (${messageOf(error)}): it will be loaded again next time`,
      )
    }
  }

  async #delete(url: string): Promise<void> {
    await (await this.caches?.open(CACHE_NAME))?.delete(url)
  }
}

function partsOf(
  key: string,
  byteLength: number,
  partBytes = PART_BYTES,
): { name: string; offset: number; byteLength: number }[] {
  return Array.from({ length: Math.ceil(byteLength / partBytes) }, (_, i) => {
    const offset = i * partBytes
    const url = new URL(key)
    url.searchParams.set('lowrank-part', `${i}`)
    return { name: url.href, offset, byteLength: Math.min(partBytes, byteLength - offset) }
  })
}

async function isRight(content: Blob, digest: Digest): Promise<boolean> {
  const subtle = globalThis.crypto?.subtle
  if (subtle === undefined) return true
  const bytes = new Uint8Array(await content.arrayBuffer())
  if ('sha256' in digest) return hex(await subtle.digest('SHA-256', bytes)) === digest.sha256
  const header = new TextEncoder().encode(gitHeader(bytes.byteLength))
  return hex(await subtle.digest('SHA-1', concatBytes([header, bytes]) as Uint8Array<ArrayBuffer>)) === digest.gitSha1
}

function hex(digest: ArrayBuffer): string {
  return [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, '0')).join('')
}
