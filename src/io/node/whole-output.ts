// Results that appear whole or not at all. A process makes files in a hidden folder beside the result's place, waits
// until they are on the disk, and gives them their names. Nobody waits for anybody: of two processes at one place the
// file system decides, and the process that comes too late says so.
//   .NAME.TOKEN.tmp/folder  the folder that becomes NAME
//   .NAME.TOKEN.tmp/files   or files: NAME, and the files that it refers to
//   .NAME.TOKEN.tmp/old     the folder that NAME replaces, or links to the files that the replaced NAME refers to

import { link, lstat, mkdir, open, readdir, realpath, rename, rm, rmdir, stat, unlink } from 'node:fs/promises'
import path from 'node:path'
import { FileError } from '../../base/errors.js'
import { codeOf, fileError } from './errors.js'
import { isDirectory, makeFolders, removeEmptyFolders, syncFolder } from './folders.js'
import { isAlive, isDead, newToken, TOKEN } from './owner.js'

const WORK = new RegExp(`^\\.(.+)\\.(${TOKEN})\\.tmp$`)

/** Tries, while other processes keep publishing at the same place. */
const MAX_ATTEMPTS = 20

export class WholeOutput {
  private constructor(
    private readonly out: string,
    private readonly work: string,
    /** Where the files are made. */
    readonly folder: string,
    private readonly firstMade: string | undefined,
  ) {}

  /** Makes the hidden folder, and removes those of dead processes beside it. Throws FileError. */
  static async begin(out: string, kind: 'folder' | 'files'): Promise<WholeOutput> {
    const parent = path.dirname(out)
    const work = path.join(parent, `.${path.basename(out)}.${newToken()}.tmp`)
    let firstMade: string | undefined
    try {
      for (let attempt = 1; ; attempt++) {
        try {
          firstMade = (await makeFolders(parent)) ?? firstMade
          await mkdir(work)
          break
        } catch (error) {
          // A process that fails removes the parent that it has made.
          if (codeOf(error) !== 'ENOENT' || attempt === MAX_ATTEMPTS) throw error
        }
      }
      await mkdir(path.join(work, kind))
      await sweep(parent)
      return new WholeOutput(out, work, path.join(work, kind), firstMade)
    } catch (error) {
      await removeAll(work).catch(() => {})
      await removeEmptyFolders(parent, firstMade)
      throw fileError(out, 'cannot be written', error)
    }
  }

  /**
   * @param mayReplace looks at the folder that was there, and throws if it must stay. Without it nothing is replaced
   * @throws FileError also if another process has published here first
   */
  async publishFolder(mayReplace?: (old: string) => Promise<void>): Promise<void> {
    const old = path.join(this.work, 'old')
    await this.#publish(async () => {
      await syncFolder(this.folder)
      for (let attempt = 1; ; attempt++) {
        // Windows renames no folder to the name of an empty one.
        await rmdir(this.out).catch(() => {})
        try {
          return await rename(this.folder, this.out)
        } catch (error) {
          if (mayReplace === undefined || !isTaken(error) || attempt === MAX_ATTEMPTS) throw error
        }
        await removeAll(old)
        await rename(this.out, old)
          .then(() => mayReplace(old))
          .catch((error) => {
            if (codeOf(error) !== 'ENOENT') throw error
          })
      }
    })
  }

  /**
   * Files beside the result itself get their names first. They replace nothing, so that an earlier result keeps the
   * files that it refers to.
   *
   * @param replaces whether the result itself may replace a file
   * @param superseded names of the files that only the replaced result refers to: they are removed at last
   * @throws FileError also if another process has published here first
   */
  async publishFiles(replaces: boolean, superseded: readonly string[] = []): Promise<void> {
    const [own, folder] = [path.basename(this.out), path.dirname(this.out)]
    await this.#publish(async () => {
      await mkdir(path.join(this.work, 'old'))
      for (const name of superseded)
        await link(path.join(folder, name), path.join(this.work, 'old', name)).catch(() => {})
      for (const name of await readdir(this.folder)) {
        if (name !== own) await nameNew(path.join(this.folder, name), path.join(folder, name))
      }
      await (replaces ? rename : nameNew)(path.join(this.folder, own), this.out)
    })
  }

  /** Removes what was not published. */
  async close(): Promise<void> {
    await settle(this.work, this.out).catch(() => {})
    await removeEmptyFolders(path.dirname(this.out), this.firstMade)
  }

  async #publish(giveNames: () => Promise<void>): Promise<void> {
    try {
      for (const name of await readdir(this.folder)) await sync(path.join(this.folder, name))
      await giveNames()
      await syncFolder(path.dirname(this.out))
    } catch (error) {
      throw isTaken(error) ? lostError(this.out, error) : fileError(this.out, 'cannot be written', error)
    }
  }
}

export function lostError(where: string, cause?: unknown): FileError {
  const what = 'another process has written it meanwhile'
  return new FileError({ where, what, hint: 'Nothing was changed. Choose another place, or remove that result', cause })
}

/** Follows links: the result is made on the file system on which it will be. */
export async function realOutput(out: string): Promise<string> {
  const target = path.resolve(out)
  if (!(await exists(target))) return target
  try {
    return await realpath(target)
  } catch {
    throw new FileError({
      where: out,
      what: 'this link points to a place that does not exist',
      hint: 'Remove the link, or make the folder',
    })
  }
}

/** True if a file system is mounted on the folder, so that no other folder can get its name. */
export async function isMountPoint(folder: string): Promise<boolean> {
  const both = [folder, path.dirname(folder)].map((one) => stat(one).catch(() => undefined))
  const [status, parent] = await Promise.all(both)
  if (status === undefined || parent === undefined || !status.isDirectory()) return false
  return status.dev !== parent.dev
}

/** Removes what dead processes have left in a folder. */
async function sweep(folder: string): Promise<void> {
  for (const name of await readdir(folder).catch((): string[] => [])) {
    const [, own, token] = WORK.exec(name) ?? []
    if (token === undefined || isAlive(token)) continue
    const [work, out] = [path.join(folder, name), path.join(folder, own)]
    // Nobody knows whether a process of another host is dead: it would see that its place is taken again.
    if (isDead(token)) await settle(work, out).catch(() => {})
    else await restore(work, out)
  }
}

/** Ends a work: what it has published stays, what it has not published goes. */
async function settle(work: string, out: string): Promise<void> {
  await restore(work, out)
  const [files, old] = [path.join(work, 'files'), path.join(work, 'old')]
  const own = path.join(files, path.basename(out))
  if (await exists(files)) {
    const isPublished = !(await exists(own)) || (await isSameFile(own, out))
    const others = isPublished ? old : files
    for (const name of await readdir(others).catch((): string[] => [])) {
      const named = path.join(path.dirname(out), name)
      if (await isSameFile(path.join(others, name), named)) await unlink(named)
    }
  }
  // In this order, so that no half of an old folder is ever brought back.
  await removeAll(path.join(work, 'folder'))
  await removeAll(work)
}

/** Brings the earlier folder back if it has made room for one that did not come. */
async function restore(work: string, out: string): Promise<void> {
  if (await exists(path.join(work, 'folder'))) await rename(path.join(work, 'old'), out).catch(() => {})
}

/** Tries twice: some failures last for a moment only, such as one of too many open files. */
async function removeAll(target: string): Promise<void> {
  const remove = () => rm(target, { recursive: true, force: true })
  await remove().catch(remove)
}

/** Gives a file a name that nothing has. */
async function nameNew(from: string, to: string): Promise<void> {
  try {
    await link(from, to)
  } catch (error) {
    if (!['EPERM', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EMLINK', 'EACCES'].includes(codeOf(error) ?? '')) throw error
    // A file system without links: an empty file keeps the name free of others.
    await (await open(to, 'wx')).close()
    await rename(from, to)
  }
}

/** True if a name could not be given because something has it. */
export function isTaken(error: unknown): boolean {
  const codes = ['ENOTEMPTY', 'EEXIST', 'ENOTDIR', 'EISDIR', ...(process.platform === 'win32' ? ['EPERM'] : [])]
  return codes.includes(codeOf(error) ?? '')
}

async function sync(target: string): Promise<void> {
  if (await isDirectory(target)) {
    for (const name of await readdir(target)) await sync(path.join(target, name))
    return syncFolder(target)
  }
  const file = await open(target, 'r+')
  await file.sync().finally(() => file.close())
}

async function exists(target: string): Promise<boolean> {
  return (await lstat(target).catch(() => undefined)) !== undefined
}

async function isSameFile(one: string, other: string): Promise<boolean> {
  const [a, b] = await Promise.all([one, other].map((file) => stat(file, { bigint: true }).catch(() => undefined)))
  return a !== undefined && a.ino === b?.ino && a.dev === b.dev
}
