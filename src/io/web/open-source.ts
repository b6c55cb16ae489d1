// Opens in a browser what a string names: a model on the Hub, or a URL.

import type { ByteSource, Place } from '../../base/bytes.js'
import { LowrankError } from '../../base/errors.js'
import {
  COMMIT,
  digestOf,
  fileUrl,
  type HubFile,
  type HubRequest,
  listTree,
  parseFile,
  refusal,
  resolveRevision,
} from '../hub/api.js'
import { HubDirectory, hubName, type RemoteOptions } from '../hub/directory.js'
import { MAX_WHOLE_BYTES, rangeSource } from '../hub/range-source.js'
import { type HubConnection, HubError, shown } from '../hub/request.js'
import { type Caches, FileCache } from '../hub/web/file-cache.js'
import { locateAtUrl, locateInHub } from '../locate.js'
import { type HubSource, parseSource } from '../source.js'
import { UrlDirectory, type UrlFile, urlConnection, urlRefusal } from '../url-directory.js'

export async function openTextInBrowser(text: string, where: string, options: WebHubOptions = {}): Promise<Place> {
  const source = parseSource(text, { where, endpoint: options.endpoint })
  if (source.kind === 'hub') return locateInHub(await openHubInBrowser(source, options))
  return locateAtUrl(openUrlFolder(source.url, options))
}

function openUrlFolder(url: string, options: WebHubOptions): UrlDirectory {
  const { fetch, signal, times, readsRanges, onDownload } = options
  const connection = urlConnection(url, { fetch, signal, hidesRedirects: true, ...times })
  const cache = new FileCache(options.caches, options.onWarning)
  const open = async (file: UrlFile): Promise<ByteSource> => {
    const refused = (response: Response) => urlRefusal(file.url, response)
    const ranges = rangeSource(connection, { ...file, name: shown(file.url) }, refused)
    const isRead = readsRanges && file.byteLength > MAX_WHOLE_BYTES
    if (file.hasRanges && (isRead || file.version === undefined)) return ranges
    const key = new URL(file.url)
    key.searchParams.set('lowrank-version', file.version ?? `${Date.now()}`)
    return cache.open(ranges, key.href, { onDownload, isWhole: !file.hasRanges })
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
  const open = async (path: string): Promise<ByteSource> => {
    const file = files.get(path)!
    const { byteLength } = file
    const url = fileUrl(connection, source, commit, path)
    const name = hubName({ ...source, path })
    const refused = (response: Response) => refusal(response, { ...asked, file: path })
    const ranges = rangeSource(connection, { url, name, byteLength }, refused)
    const isRead = options.readsRanges && byteLength > MAX_WHOLE_BYTES && !(await cache.has(url, byteLength))
    if (isRead) return ranges
    return cache.open(ranges, url, { digest: digestOf(file), onDownload: options.onDownload })
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
        // Another page of the same origin may have written there: then the file is asked for again.
        if (!(error instanceof LowrankError)) throw error
      }
    }
    const listed = await listTree(asked, commit)
    await cache.writeJson(key, [...listed.values()])
    return listed
  }
}
