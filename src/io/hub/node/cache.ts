// A model's folder in the cache of Python's huggingface_hub, in its layout. Everything appears whole, by a rename.

import { randomBytes } from 'node:crypto'
import { copyFile, lstat, readdir, readFile, rename, stat, symlink, unlink, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { LowrankError } from '../../../base/errors.js'
import { fileError } from '../../node/errors.js'
import { makeFolders } from '../../node/folders.js'
import { isId } from '../../source.js'
import { COMMIT, type HubFile, parseFile } from '../api.js'

const PREFIX = 'models--'
const TREE_VERSION = 1
const NO_LINKS = ['EPERM', 'EACCES', 'ENOSYS', 'ENOTSUP', 'EOPNOTSUPP', 'EINVAL', 'UNKNOWN']

export async function cachedIds(cacheFolder: string): Promise<string[]> {
  const folders = await readdir(cacheFolder).catch(() => [])
  return folders
    .filter((name) => name.startsWith(PREFIX))
    .map((name) => name.slice(PREFIX.length).replace('--', '/'))
    .filter(isId)
}

export class ModelCache {
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

  /** Undefined where no list is kept that can be read. */
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
    } catch (error) {
      if (error instanceof LowrankError || error instanceof SyntaxError || error instanceof TypeError) return undefined
      if ((error as NodeJS.ErrnoException).code !== undefined) return undefined
      throw error
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

  async prepare(): Promise<void> {
    await makeFolders(path.join(this.#folder, 'blobs'))
  }

  /** A relative link; where there are no links the file itself, moved if no other snapshot can have it, else copied. */
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

/** Makes a file under another name first: it appears whole. */
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
