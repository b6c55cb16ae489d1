// Opens a source that a string names in a browser: a model on the Hub, or a URL.

import { type ByteSource, concatBytes, type Place } from '../../../core/base/bytes.js'
import { FileError, LowrankError, messageOf } from '../../../core/base/errors.js'
import {
  COMMIT,
  type Digest,
  damage,
  digestOf,
  fileUrl,
  gitHeader,
  type HubFile,
  type HubRequest,
  listTree,
  parseFile,
  refusal,
  resolveRevision,
} from '../hub/api.js'
import { HubDirectory, hubName, type OnDownload, type RemoteOptions } from '../hub/directory.js'
import { inPlace, MAX_WHOLE_BYTES, type RangeSource, rangeSource } from '../hub/range-source.js'
import { type HubConnection, HubError, shown } from '../hub/request.js'
import { locateAtUrl, locateInHub } from '../locate.js'
import { type HubSource, parseSource } from '../source.js'
import { UrlDirectory, type UrlFile, urlConnection, urlRefusal } from '../url-directory.js'
import { BlobSource } from './files.js'

/**
 * Files are requested in parts of this size. An interruption costs at most one part, which takes a second or two on a
 * usual connection, and a model takes a few dozen requests.
 */
const PART_BYTES = 8 << 20
/** Browsers can only hash bytes that are all in memory. For larger files only the length is checked. */
const MAX_DIGESTED_BYTES = 64 << 20
const CACHE_NAME = 'lowrank'

export type Caches = Pick<CacheStorage, 'open'>

interface WantedFile {
  readonly digest?: Digest | undefined
  /** True if the server does not support ranges, so that the file is downloaded at once. */
  readonly isWhole?: boolean
  readonly onDownload?: OnDownload | undefined
}

/** Keeps files in a browser's Cache API, in parts, so that downloads can continue and memory stays small. */
class FileCache {
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

  /** Opens a file: cached parts from the cache, the others from the server. `key` names the exact content. */
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
      // If the browser forbids storage, everything is read from the server.
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

export async function openTextInBrowser(text: string, where: string, options: WebHubOptions = {}): Promise<Place> {
  const source = parseSource(text, { where, endpoint: options.endpoint, scheme: globalThis.location?.protocol })
  if (source.kind === 'hub') return locateInHub(await openHubInBrowser(source, options))
  return locateAtUrl(openUrlFolder(source.url, options))
}

function openUrlFolder(url: string, options: WebHubOptions): UrlDirectory {
  const { fetch, signal, times, readsRanges, onDownload } = options
  const connection = urlConnection(url, { fetch, signal, hidesRedirects: true, ...times })
  const cache = new FileCache(options.caches, options.onWarning)
  const open = async (file: UrlFile, isInPlace?: boolean): Promise<ByteSource> => {
    const refused = (response: Response) => urlRefusal(file.url, response)
    const ranges = rangeSource(connection, { ...file, name: shown(file.url) }, refused)
    const isRead = readsRanges && isInPlace !== false && file.byteLength > MAX_WHOLE_BYTES
    if (file.hasRanges && (isRead || file.version === undefined)) return ranges
    const key = new URL(file.url)
    key.searchParams.set('lowrank-version', file.version ?? `${Date.now()}`)
    const download = () => cache.open(ranges, key.href, { onDownload, isWhole: !file.hasRanges })
    const isHere = !isInPlace || !file.hasRanges || (await cache.has(key.href, file.byteLength))
    return isHere ? download() : inPlace(ranges, download)
  }
  return new UrlDirectory(url, connection, open)
}

export interface WebHubOptions extends RemoteOptions {
  readonly fetch?: typeof globalThis.fetch | undefined
  readonly caches?: Caches | undefined
}

const ENDPOINT = 'https://huggingface.co'

export async function openHubInBrowser(source: HubSource, options: WebHubOptions = {}): Promise<HubDirectory> {
  const { endpoint = ENDPOINT, token, fetch, signal, onWarning, times } = options
  const connection: HubConnection = { endpoint, token, fetch, signal, hidesRedirects: true, ...times }
  const cache = new FileCache(options.caches, onWarning)
  const asked: HubRequest = { connection, source }
  const { id, revision } = source
  const models = `${endpoint}/api/models/${id}`
  const commit = await commitOf()
  const files = await filesOf()
  const open = async (path: string, isInPlace?: boolean): Promise<ByteSource> => {
    const file = files.get(path)!
    const { byteLength } = file
    const url = fileUrl(connection, source, commit, path)
    const name = hubName({ ...source, path })
    const refused = (response: Response) => refusal(response, { ...asked, file: path })
    const ranges = rangeSource(connection, { url, name, byteLength }, refused)
    const isAway = async () => !(await cache.has(url, byteLength))
    const isRead = options.readsRanges && isInPlace !== false && byteLength > MAX_WHOLE_BYTES
    if (isRead && (await isAway())) return ranges
    const download = () => cache.open(ranges, url, { digest: digestOf(file), onDownload: options.onDownload })
    return isInPlace && (await isAway()) ? inPlace(ranges, download) : download()
  }
  return new HubDirectory(source, commit, { paths: new Set(files.keys()), open })

  async function commitOf(): Promise<string> {
    if (COMMIT.test(revision)) return revision
    const key = `${models}/revision/${encodeURIComponent(revision)}`
    try {
      const resolved = await resolveRevision(asked)
      await cache.writeJson(key, resolved)
      return resolved
    } catch (error) {
      const known = await cache.readJson(key)
      const isKept = typeof known === 'string' && COMMIT.test(known)
      if (!(error instanceof HubError) || error.kind === 'absent' || !isKept) throw error
      onWarning?.(`${error.message}. The copy in the browser is used, as it was when it came`)
      return known
    }
  }

  async function filesOf(): Promise<ReadonlyMap<string, HubFile>> {
    const key = `${models}/tree/${commit}?recursive=true`
    const known = await cache.readJson(key)
    if (Array.isArray(known)) {
      try {
        return new Map(known.map((entry) => [String(entry.path), parseFile(entry, id)]))
      } catch (error) {
        // Another page of the same origin may have changed the entry. Then the part is downloaded again.
        if (!(error instanceof LowrankError)) throw error
      }
    }
    const listed = await listTree(asked, commit)
    await cache.writeJson(key, [...listed.values()])
    return listed
  }
}
