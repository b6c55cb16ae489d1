// The Hub in Node, through the cache that is shared with Python. Cached files open without a connection.

import { createHash, randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { access, copyFile, lstat, readdir, readFile, rename, stat, symlink, unlink, writeFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import path from 'node:path'
import type { ByteSource } from '../../../../core/base/bytes.js'
import { didYouMean, FileError } from '../../../../core/base/errors.js'
import { fileError, withFileErrors } from '../../node/errors.js'
import { openFile } from '../../node/files.js'
import { makeFolders } from '../../node/folders.js'
import { type HubSource, isId } from '../../source.js'
import { UrlDirectory, type UrlFile, urlConnection, urlRefusal } from '../../url-directory.js'
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
} from '../api.js'
import { HubDirectory, hubName, type RemoteOptions } from '../directory.js'
import { inPlace, MAX_WHOLE_BYTES, rangeSource } from '../range-source.js'
import { type HubConnection, HubError, STALL_MS, shown } from '../request.js'
import { download } from './download.js'
import { hubEnvironment, hubToken } from './environment.js'

export interface OpenHubOptions extends RemoteOptions {
  readonly variables?: Readonly<Record<string, string | undefined>> | undefined
}

/** If the cache has a copy, we wait at most this long for the Hub to name the newest commit. */
const REFRESH_STALL_MS = 10_000

/**
 * Opens a repository. Files are downloaded when they are opened. Throws FileError if the Hub cannot be reached and the
 * cache has no copy.
 */
export async function openHub(source: HubSource, options: OpenHubOptions = {}): Promise<HubDirectory> {
  const { cacheFolder, cacheVariable, ...environment } = hubEnvironment(options.variables)
  const connection: HubConnection = {
    endpoint: options.endpoint ?? environment.endpoint,
    token: (options.token ?? (await hubToken(options.variables))) || undefined,
    signal: options.signal,
    stallMs: environment.stallMs ?? STALL_MS,
    ...options.times,
  }
  const { stallMs = STALL_MS } = connection
  const { id, revision } = source
  const cache = new ModelCache(cacheFolder, id, environment.avoidsLinks)
  /** The reason why no more requests are sent to the Hub; undefined if requests are sent. */
  let closed = environment.isOffline ? 'HF_HUB_OFFLINE is set' : undefined

  const commit = await commitOf()
  const files = await filesOf()
  const cached = files === undefined ? await cache.cachedFiles(commit) : undefined
  if (cached?.size === 0) throw await notCached(`commit ${commit}`)
  const paths = new Set((files ?? cached)!.keys())
  return new HubDirectory(source, commit, { paths, open: (path, isInPlace) => open(path, files?.get(path), isInPlace) })

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

  /** The files of the commit, or undefined if only the cache knows them. */
  async function filesOf(): Promise<ReadonlyMap<string, HubFile> | undefined> {
    const known = await cache.readTree(commit)
    if (known !== undefined || closed !== undefined) return known
    try {
      const listed = await listTree(await asked(), commit)
      // A cache that we cannot write to, such as a shared one, is still useful for reading.
      await cache.writeTree(commit, listed).catch(() => {})
      return listed
    } catch (error) {
      fallBack(error, (await cache.cachedFiles(commit)).size > 0)
      return undefined
    }
  }

  /** Continues with the cache if it has a copy and the Hub cannot be used. Otherwise throws the error. */
  function fallBack(error: unknown, isCached: boolean): void {
    if (!(error instanceof HubError) || error.kind === 'absent' || !isCached) throw error
    closed = error.what
    options.onWarning?.(`${error.message}. The copy in the cache is used, as it was when it came`)
  }

  async function open(path: string, file: HubFile | undefined, isInPlace?: boolean): Promise<ByteSource> {
    const local = cache.snapshot(commit, path)
    const status = await stat(local).catch(() => undefined)
    if (status?.isFile() && (file === undefined || status.size === file.byteLength)) {
      // If the cache cannot be written, go on without it.
      if (closed === undefined) await cache.writeRef(revision, commit).catch(() => {})
      return openFile(local)
    }
    const name = hubName({ ...source, path })
    if (closed !== undefined || file === undefined) {
      const what = status === undefined ? 'not in the cache' : 'damaged in the cache'
      const olderCommit = (await cache.commitsWith(path)).find((candidate) => candidate !== commit)
      const hint = olderCommit === undefined ? '' : `, or name an older commit that is here: hf:${id}@${olderCommit}`
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
    const ranges = rangeSource(connection, { url, name, byteLength }, refused)
    if (options.readsRanges && isInPlace !== false && byteLength > MAX_WHOLE_BYTES) return ranges
    const digest = file.sha256 ?? file.gitSha1
    const target = cache.blob(digest)
    await cache.prepare().catch(({ where, what, cause }: FileError) => {
      const said = cacheVariable === undefined ? '' : `, as ${cacheVariable} says`
      const hint = `The cache is ${cacheFolder}${said}: set ${cacheVariable ?? 'HF_HOME'} to a folder that you may write to`
      throw new FileError({ where, what, hint, cause })
    })
    const bring = async () => {
      const isNew = (await stat(target).catch(() => undefined))?.size !== byteLength
      if (isNew) {
        const { onDownload } = options
        await download({ url, name, refused, connection, byteLength, digest: digestOf(file), target, onDownload })
      }
      await cache.link(digest, commit, path, isNew)
      await cache.writeRef(revision, commit)
      return openFile(local)
    }
    return isInPlace ? inPlace(ranges, bring) : bring()
  }

  async function asked(hub = connection): Promise<HubRequest> {
    return { connection: hub, source, knownIds: await cachedIds(cacheFolder) }
  }

  async function notCached(what: string): Promise<FileError> {
    const meant = didYouMean(id, await cachedIds(cacheFolder), 3)
    return new FileError({
      where: id,
      what: `${what} is not in the cache, and ${closed}`,
      hint: meant ?? `The cache is ${cacheFolder}; unset HF_HUB_OFFLINE to load it`,
    })
  }
}

export function openUrlFolder(url: string, options: OpenHubOptions = {}): UrlDirectory {
  const { variables = process.env, signal, times, readsRanges, onDownload } = options
  const { stallMs } = hubEnvironment(variables)
  const connection = urlConnection(url, { signal, ...(stallMs !== undefined && { stallMs }), ...times })
  const cache = path.join(variables.XDG_CACHE_HOME || path.join(homedir(), '.cache'), 'lowrank', 'urls')
  const open = async (file: UrlFile, isInPlace?: boolean): Promise<ByteSource> => {
    const refused = (response: Response) => urlRefusal(file.url, response)
    const target = path.join(cache, ...placeOf(file.url))
    if (await isKept(target, file)) return openFile(target)
    const name = shown(file.url)
    const ranges = rangeSource(connection, { ...file, name }, refused)
    const isRead = readsRanges && isInPlace !== false && file.byteLength > MAX_WHOLE_BYTES
    if (isRead && file.hasRanges) return ranges
    const bring = async () => {
      await makeFolders(path.dirname(target))
      // The name contains the version, so that a partial file of another version is not continued.
      const versioned = `${target}.${hash(file.version ?? `${Date.now()}`)}`
      await download({ ...file, name, connection, digest: undefined, target: versioned, onDownload, refused })
      await withFileErrors(target, 'cannot be written', async () => {
        await unlink(`${target}.version`).catch(() => {})
        // Another process may already have renamed the same content.
        await rename(versioned, target).catch(async (error) => {
          if ((await stat(target).catch(() => undefined))?.size !== file.byteLength) throw error
        })
        if (file.version !== undefined) await writeFile(`${target}.version`, file.version)
      })
      return openFile(target)
    }
    return isInPlace && file.hasRanges ? inPlace(ranges, bring) : bring()
  }
  return new UrlDirectory(url, connection, open)
}

/** Where a URL's file is kept: a folder for each folder of the server. UrlDirectory has checked the file's name. */
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

const PREFIX = 'models--'
const TREE_VERSION = 1
const NO_LINKS = ['EPERM', 'EACCES', 'ENOSYS', 'ENOTSUP', 'EOPNOTSUPP', 'EINVAL', 'UNKNOWN']

async function cachedIds(cacheFolder: string): Promise<string[]> {
  const folders = await readdir(cacheFolder).catch(() => [])
  return folders
    .filter((name) => name.startsWith(PREFIX))
    .map((name) => name.slice(PREFIX.length).replace('--', '/'))
    .filter(isId)
}

/** A model's folder in huggingface_hub's cache, in its layout. Each file is renamed into place once it is complete. */
class ModelCache {
  readonly #folder: string

  constructor(
    cacheFolder: string,
    id: string,
    private readonly avoidsLinks: boolean,
  ) {
    this.#folder = path.join(cacheFolder, PREFIX + id.replace('/', '--'))
  }

  blob(digest: string): string {
    return path.join(this.#folder, 'blobs', digest)
  }

  snapshotFolder(commit: string): string {
    return path.join(this.#folder, 'snapshots', commit)
  }

  snapshot(commit: string, file: string): string {
    return path.join(this.snapshotFolder(commit), ...file.split('/'))
  }

  async readRef(revision: string): Promise<string | undefined> {
    const text = await readFile(path.join(this.#folder, 'refs', ...revision.split('/')), 'utf8').catch(() => '')
    return COMMIT.test(text.trim()) ? text.trim() : undefined
  }

  async writeRef(revision: string, commit: string): Promise<void> {
    if (revision === commit || (await this.readRef(revision)) === commit) return
    await place(path.join(this.#folder, 'refs', ...revision.split('/')), (file) => writeFile(file, commit))
  }

  /** The list of a commit's files, or undefined if the cache has no readable list. */
  async readTree(commit: string): Promise<Map<string, HubFile> | undefined> {
    try {
      const text = await readFile(this.#tree(commit), 'utf8')
      const { format_version, files } = JSON.parse(text) as {
        format_version: unknown
        files: Record<string, TreeEntry>
      }
      if (format_version !== TREE_VERSION) return undefined
      return new Map(
        Object.entries(files).map(([name, { size, blob_id, lfs_sha256, lfs_size, xet_hash }]) => {
          const found = {
            path: name,
            byteLength: lfs_size ?? size,
            gitSha1: blob_id,
            sha256: lfs_sha256,
            xetHash: xet_hash,
          }
          return [name, parseFile(found, this.#folder)]
        }),
      )
    } catch {
      return undefined
    }
  }

  async writeTree(commit: string, files: ReadonlyMap<string, HubFile>): Promise<void> {
    const entries = [...files]
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([name, file]): [string, TreeEntry] => {
        const { byteLength, gitSha1, sha256, xetHash } = file
        const lfs = sha256 !== undefined && { lfs_sha256: sha256, lfs_size: byteLength }
        return [
          name,
          { size: byteLength, blob_id: gitSha1, ...lfs, ...(xetHash !== undefined && { xet_hash: xetHash }) },
        ]
      })
    const tree = { format_version: TREE_VERSION, files: Object.fromEntries(entries) }
    await place(this.#tree(commit), (file) => writeFile(file, JSON.stringify(tree, null, 1)))
  }

  async cachedFiles(commit: string): Promise<Map<string, number>> {
    const root = this.snapshotFolder(commit)
    const entries = await readdir(root, { recursive: true, withFileTypes: true }).catch(() => [])
    const found = new Map<string, number>()
    for (const entry of entries) {
      const file = path.join(entry.parentPath, entry.name)
      const status = await stat(file).catch(() => undefined)
      if (status?.isFile()) found.set(path.relative(root, file).split(path.sep).join('/'), status.size)
    }
    return found
  }

  async commitsWith(file: string): Promise<string[]> {
    const commits = await readdir(path.join(this.#folder, 'snapshots')).catch(() => [])
    const found = await Promise.all(
      commits.map(async (commit) => {
        const status = COMMIT.test(commit) ? await stat(this.snapshot(commit, file)).catch(() => undefined) : undefined
        return status?.isFile() ? [commit] : []
      }),
    )
    return found.flat()
  }

  /** @throws FileError if the cache is not a folder, or if this process may not write to it */
  async prepare(): Promise<void> {
    const folder = path.join(this.#folder, 'blobs')
    await makeFolders(folder)
    await withFileErrors(folder, 'cannot be written', () => access(folder, constants.W_OK))
  }

  /** Creates a relative link. Without links, a new file is moved, and an old one, which others may use, is copied. */
  async link(digest: string, commit: string, file: string, isNew: boolean): Promise<void> {
    const blob = this.blob(digest)
    const target = this.snapshot(commit, file)
    await place(target, async (temporary) => {
      if (await this.#tryLink(path.relative(path.dirname(target), blob), temporary)) return
      const isShared = (await lstat(blob)).isSymbolicLink()
      await (isNew && !isShared ? rename(blob, temporary) : copyFile(blob, temporary))
    })
  }

  async #tryLink(to: string, at: string): Promise<boolean> {
    if (this.avoidsLinks) return false
    try {
      await symlink(to, at, 'file')
      return true
    } catch (error) {
      if (NO_LINKS.includes((error as NodeJS.ErrnoException).code ?? '')) return false
      throw error
    }
  }

  #tree(commit: string): string {
    return path.join(this.#folder, 'trees', `${commit}.json`)
  }
}

/** Creates a file under a temporary name and renames it, so that nobody sees half of it. */
async function place(target: string, make: (temporary: string) => Promise<void>): Promise<void> {
  const temporary = `${target}.${randomBytes(4).toString('hex')}.tmp`
  try {
    await makeFolders(path.dirname(target))
    await make(temporary)
    await rename(temporary, target)
  } catch (error) {
    await unlink(temporary).catch(() => {})
    throw fileError(target, 'cannot be written', error)
  }
}

interface TreeEntry {
  size: number
  blob_id: string
  lfs_sha256?: string
  lfs_size?: number
  xet_hash?: string
}
