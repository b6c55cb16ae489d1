// Opens in a browser what a string names: a model on the Hub, or a URL.

import type { ByteSource, Place } from '../../base/bytes.js'
import { MAX_WHOLE_BYTES, rangeSource } from '../hub/range-source.js'
import { shown } from '../hub/request.js'
import { FileCache } from '../hub/web/file-cache.js'
import { openHubInBrowser, type WebHubOptions } from '../hub/web/open-hub.js'
import { locateAtUrl, locateInHub } from '../locate.js'
import { parseSource } from '../source.js'
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
