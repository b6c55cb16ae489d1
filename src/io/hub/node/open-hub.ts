// The Hub in Node, by way of the cache that Python shares: what is there opens without the Hub.

import { createHash } from 'node:crypto'
import { readFile, rename, stat, unlink, writeFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import path from 'node:path'
import type { ByteSource } from '../../../base/bytes.js'
import { FileError, nearMisses } from '../../../base/errors.js'
import { withFileErrors } from '../../node/errors.js'
import { openFile } from '../../node/files.js'
import { makeFolders } from '../../node/folders.js'
import type { HubSource } from '../../source.js'
import { UrlDirectory, type UrlFile, urlConnection, urlRefusal } from '../../url-directory.js'
import { COMMIT, digestOf, fileUrl, type HubFile, type HubRequest, listTree, refusal, resolveRevision } from '../api.js'
import { HubDirectory, hubName, type RemoteOptions } from '../directory.js'
import { MAX_WHOLE_BYTES, rangeSource } from '../range-source.js'
import { type HubConnection, HubError, STALL_MS, shown } from '../request.js'
import { cachedIds, ModelCache } from './cache.js'
import { download } from './download.js'
import { hubEnvironment, hubToken } from './environment.js'

export interface OpenHubOptions extends RemoteOptions {
  readonly variables?: Readonly<Record<string, string | undefined>> | undefined
}

/** With a copy in the cache nobody waits longer for the Hub to name its newest commit. */
const REFRESH_STALL_MS = 10_000

/** Files come when they are opened. With neither Hub nor cache: FileError. */
export async function openHub(source: HubSource, options: OpenHubOptions = {}): Promise<HubDirectory> {
  const { cacheFolder, ...environment } = hubEnvironment(options.variables)
  const connection: HubConnection = {
    endpoint: options.endpoint ?? environment.endpoint,
    token: options.token ?? (await hubToken(options.variables)),
    signal: options.signal,
    stallMs: environment.stallMs ?? STALL_MS,
    ...options.times,
  }
  const { stallMs = STALL_MS } = connection
  const { id, revision } = source
  const cache = new ModelCache(cacheFolder, id, environment.avoidsLinks)
  /** Why the Hub is not asked any more. */
  let closed = environment.isOffline ? 'HF_HUB_OFFLINE is set' : undefined

  const commit = await commitOf()
  const files = await filesOf()
  const cached = files === undefined ? await cache.cachedFiles(commit) : undefined
  if (cached?.size === 0) throw await notCached(`commit ${commit}`)
  const paths = new Set((files ?? cached)!.keys())
  return new HubDirectory(source, commit, { paths, open: (path) => open(path, files?.get(path)) })

  async function commitOf(): Promise<string> {
    if (COMMIT.test(revision)) return revision
    const known = await cache.readRef(revision)
    if (closed === undefined) {
      const patience = known === undefined ? stallMs : Math.min(stallMs, REFRESH_STALL_MS)
      try {
        return await resolveRevision(await asked({ ...connection, stallMs: patience }))
      } catch (error) {
        fallBack(error, known !== undefined)
      }
    }
    if (known === undefined) throw await notCached(`revision ${JSON.stringify(revision)}`)
    return known
  }

  /** Undefined where only the cache tells. */
  async function filesOf(): Promise<ReadonlyMap<string, HubFile> | undefined> {
    const known = await cache.readTree(commit)
    if (known !== undefined || closed !== undefined) return known
    try {
      const listed = await listTree(await asked(), commit)
      // A cache that cannot be written, as one of a whole institute, is still read.
      await cache.writeTree(commit, listed).catch(() => {})
      return listed
    } catch (error) {
      fallBack(error, (await cache.cachedFiles(commit)).size > 0)
      return undefined
    }
  }

  /** Goes on with the cache, if there is something in it and the Hub gives nothing; throws what is wrong otherwise. */
  function fallBack(error: unknown, isCached: boolean): void {
    if (!(error instanceof HubError) || error.kind === 'absent' || !isCached) throw error
    closed = error.what
    options.onWarning?.(`${error.message}. The copy in the cache is used, as it was when it came`)
  }

  async function open(path: string, file: HubFile | undefined): Promise<ByteSource> {
    const local = cache.snapshot(commit, path)
    const status = await stat(local).catch(() => undefined)
    if (status?.isFile() && (file === undefined || status.size === file.byteLength)) {
      // A cache that cannot be written is still read.
      if (closed === undefined) await cache.writeRef(revision, commit).catch(() => {})
      return openFile(local)
    }
    const name = hubName({ ...source, path })
    if (closed !== undefined || file === undefined) {
      const what = status === undefined ? 'not in the cache' : 'damaged in the cache'
      const other = (await cache.commitsWith(path)).find((one) => one !== commit)
      const hint = other === undefined ? '' : `, or name an older commit that is here: hf:${id}@${other}`
      throw new FileError({
        where: name,
        what: `${what}, and ${closed}`,
        hint: `Open it once with the Hub in reach${hint}`,
      })
    }
    const request = { ...(await asked()), file: path }
    const refused = (response: Response) => refusal(response, request)
    const url = fileUrl(connection, source, commit, path)
    const { byteLength } = file
    if (options.readsRanges && byteLength > MAX_WHOLE_BYTES) {
      return rangeSource(connection, { url, name, byteLength }, refused)
    }
    const digest = file.sha256 ?? file.gitSha1
    const target = cache.blob(digest)
    await cache.prepare()
    const isNew = (await stat(target).catch(() => undefined))?.size !== byteLength
    if (isNew) {
      const { onDownload } = options
      await download({ url, name, refused, connection, byteLength, digest: digestOf(file), target, onDownload })
    }
    await cache.link(digest, commit, path, isNew)
    await cache.writeRef(revision, commit)
    return openFile(local)
  }

  async function asked(own = connection): Promise<HubRequest> {
    return { connection: own, source, knownIds: await cachedIds(cacheFolder) }
  }

  async function notCached(what: string): Promise<FileError> {
    const near = nearMisses(id, await cachedIds(cacheFolder))
    return new FileError({
      where: id,
      what: `${what} is not in the cache, and ${closed}`,
      hint:
        near.length > 0
          ? `Did you mean ${near.join(' or ')}?`
          : `The cache is ${cacheFolder}; unset HF_HUB_OFFLINE to load it`,
    })
  }
}

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
