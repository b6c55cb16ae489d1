// A folder on a web server in Node: kept in the user's cache until the server has another version.

import { createHash } from 'node:crypto'
import { readFile, rename, stat, unlink, writeFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import path from 'node:path'
import type { ByteSource } from '../../../base/bytes.js'
import { withFileErrors } from '../../node/errors.js'
import { openFile } from '../../node/files.js'
import { makeFolders } from '../../node/folders.js'
import { UrlDirectory, type UrlFile, urlConnection, urlRefusal } from '../../url-directory.js'
import { MAX_WHOLE_BYTES, rangeSource } from '../range-source.js'
import { shown } from '../request.js'
import { download } from './download.js'
import { hubEnvironment } from './environment.js'
import type { OpenHubOptions } from './open-hub.js'

export function openUrlFolder(url: string, options: OpenHubOptions = {}): UrlDirectory {
  const { variables = process.env, signal, times, readsRanges, onDownload } = options
  const { stallMs } = hubEnvironment(variables)
  const connection = urlConnection(url, { signal, ...(stallMs !== undefined && { stallMs }), ...times })
  const cache = path.join(variables.XDG_CACHE_HOME || path.join(homedir(), '.cache'), 'lowrank', 'urls')
  const open = async (file: UrlFile): Promise<ByteSource> => {
    const refused = (response: Response) => urlRefusal(file.url, response)
    const target = path.join(cache, ...placeOf(file.url))
    if (await isKept(target, file)) return openFile(target)
    if (readsRanges && file.hasRanges && file.byteLength > MAX_WHOLE_BYTES) {
      return rangeSource(connection, { ...file, name: shown(file.url) }, refused)
    }
    await makeFolders(path.dirname(target))
    // The version is in the part's name, so that no other one's part is taken up.
    const versioned = `${target}.${hash(file.version ?? `${Date.now()}`)}`
    const name = shown(file.url)
    await download({ ...file, name, connection, digest: undefined, target: versioned, onDownload, refused })
    await withFileErrors(target, 'cannot be written', async () => {
      await unlink(`${target}.version`).catch(() => {})
      // Another process may have given the same content its name already.
      await rename(versioned, target).catch(async (error) => {
        if ((await stat(target).catch(() => undefined))?.size !== file.byteLength) throw error
      })
      if (file.version !== undefined) await writeFile(`${target}.version`, file.version)
    })
    return openFile(target)
  }
  return new UrlDirectory(url, connection, open)
}

/** A folder for each of the server's; UrlDirectory has seen to it that the file's name leads nowhere else. */
function placeOf(url: string): [folder: string, name: string] {
  const { origin, pathname } = new URL(url)
  const slash = pathname.lastIndexOf('/')
  return [hash(origin + pathname.slice(0, slash)), decodeURIComponent(pathname.slice(slash + 1))]
}

async function isKept(target: string, { byteLength, version }: UrlFile): Promise<boolean> {
  if (version === undefined) return false
  const [status, kept] = await Promise.all([
    stat(target).catch(() => undefined),
    readFile(`${target}.version`, 'utf8').catch(() => undefined),
  ])
  return status?.size === byteLength && kept === version
}

function hash(text: string): string {
  return createHash('sha256').update(text).digest('hex').slice(0, 16)
}
