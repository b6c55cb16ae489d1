// Results that appear whole or not at all. A process makes them in a hidden folder beside their place, waits until they
// are on the disk, and gives them their names. Nobody waits for anybody: of two processes at one place the file system
// decides, and the process that comes too late says so.
//   .NAME.TOKEN.tmp/NAME      the result: a folder, or a file beside others that it refers to
//   .NAME.TOKEN.tmp/NAME.old  the folder that it replaces
//   .NAME.TOKEN.tmp/old       links to the files that the replaced NAME refers to

import { link, lstat, mkdir, open, readdir, realpath, rename, rm, rmdir, unlink } from 'node:fs/promises'
import path from 'node:path'
import { FileError } from '../../../core/base/errors.js'
import { codeOf, fileError } from './errors.js'
import { isDirectory, makeFolders, removeEmptyFolders, syncFolder } from './folders.js'
import { isDead, newToken, TOKEN } from './owner.js'

const WORK = new RegExp(`^\\.(.+)\\.(${TOKEN})\\.tmp$`)

/** True for the name of a hidden folder in which a result is being made, or was when its process ended. */
export const isUnfinishedWork = (name: string) => WORK.test(name)

/** Removes the files of a folder that have these names, what is unfinished, and the folder if nothing else is in it. */
export async function removeWritten(folder: string, isWritten: (name: string) => boolean): Promise<void> {
  const entries = await readdir(folder, { withFileTypes: true }).catch((error) => {
    if (codeOf(error) === 'ENOENT') return []
    throw fileError(folder, 'cannot be removed', error)
  })
  for (const entry of entries) {
    const target = path.join(folder, entry.name)
    if (isUnfinishedWork(entry.name)) await removeAll(target)
    else if (!entry.isDirectory() && isWritten(entry.name)) await rm(target, { force: true })
  }
  await rmdir(folder).catch(() => {})
}

/** Tries to replace a folder, while other processes keep publishing at the same place. */
const MAX_ATTEMPTS = 20

export class WholeOutput {
  private constructor(
    private readonly out: string,
    /** The hidden folder. The result is made in it, under its own name: see `made`. */
    readonly work: string,
    private readonly firstMade: string | undefined,
  ) {}

  /** Makes the hidden folder, and removes those of dead processes beside it. Throws FileError. */
  static async begin(out: string): Promise<WholeOutput> {
    const work = path.join(path.dirname(out), `.${path.basename(out)}.${newToken()}.tmp`)
    const firstMade = await makeFolders(work).catch((error: FileError) => {
      throw error.where === work ? fileError(out, 'cannot be written', error.cause) : error
    })
    await sweep(path.dirname(out))
    return new WholeOutput(out, work, firstMade)
  }

  get made(): string {
    return path.join(this.work, path.basename(this.out))
  }

  /**
   * Files that the result refers to get their names first. They replace nothing, so that an earlier result keeps the
   * files that it refers to.
   *
   * @param mayReplace looks at the folder that was there, and throws if it must stay. Without it nothing is replaced
   * @param superseded names of files that only the replaced result refers to. `close` removes them
   * @throws FileError also if another process has published here first
   */
  async publish(mayReplace?: (old: string) => Promise<void>, superseded: readonly string[] = []): Promise<void> {
    const { out, work, made } = this
    try {
      await sync(work)
      const beside = (name: string) => path.join(path.dirname(out), name)
      for (const name of await readdir(work)) {
        if (name !== path.basename(out)) await nameNew(path.join(work, name), beside(name))
      }
      if (superseded.length > 0) await mkdir(path.join(work, 'old'))
      for (const name of superseded) await link(beside(name), path.join(work, 'old', name)).catch(() => {})
      if (await isDirectory(made)) await nameFolder(made, out, mayReplace)
      else await (mayReplace === undefined ? nameNew : rename)(made, out)
      await syncFolder(path.dirname(out))
    } catch (error) {
      throw isTaken(error) ? lostError(out, error) : fileError(out, 'cannot be written', error)
    }
  }

  /** Removes what was not published. */
  async close(): Promise<void> {
    await settle(this.work, this.out).catch(() => {})
    await removeEmptyFolders(path.dirname(this.out), this.firstMade)
  }
}

export function lostError(where: string, cause?: unknown): FileError {
  const what = 'another process has written it meanwhile'
  return new FileError({ where, what, hint: 'Nothing was changed. Choose another place, or remove that result', cause })
}

/** Follows links: the result is made on the file system on which it will be. */
export async function realOutput(out: string): Promise<string> {
  const target = path.resolve(out)
  if ((await statusOf(target)) === undefined) return target
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
  const [status, parent] = await Promise.all([folder, path.dirname(folder)].map(statusOf))
  return status?.isDirectory() === true && status.dev !== parent?.dev
}

/** Removes what dead processes have left in a folder. */
async function sweep(folder: string): Promise<void> {
  for (const name of await readdir(folder).catch((): string[] => [])) {
    const [, out, token] = WORK.exec(name) ?? []
    if (token !== undefined && isDead(token)) {
      await settle(path.join(folder, name), path.join(folder, out)).catch(() => {})
    }
  }
}

/** Ends a work: what it has published stays, what it has not published goes, and what it replaced comes back. */
async function settle(work: string, out: string): Promise<void> {
  const made = path.join(work, path.basename(out))
  const isPublished = (await statusOf(made)) === undefined || (await isLinked(made))
  if (!isPublished) await rename(`${made}.old`, out).catch(() => {})
  const leftovers = isPublished ? path.join(work, 'old') : work
  for (const name of await readdir(leftovers).catch((): string[] => [])) {
    if (await isLinked(path.join(leftovers, name))) await unlink(path.join(path.dirname(out), name))
  }
  // Removes the new result before the rest: while it is there, it counts as not published, and the next command would
  // bring back the old folder, even if half of it is removed.
  await removeAll(made)
  await removeAll(work)
}

/** Tries twice: some failures last for a moment only, such as one of too many open files. */
async function removeAll(target: string): Promise<void> {
  const remove = () => rm(target, { recursive: true, force: true })
  await remove().catch(remove)
}

async function nameFolder(made: string, out: string, mayReplace?: (old: string) => Promise<void>): Promise<void> {
  const old = `${made}.old`
  for (let attempt = 1; ; attempt++) {
    // Windows renames no folder to the name of an empty one.
    await rmdir(out).catch(() => {})
    try {
      return await rename(made, out)
    } catch (error) {
      if (mayReplace === undefined || !isTaken(error) || attempt === MAX_ATTEMPTS) throw error
    }
    await removeAll(old)
    // Another process may have taken it away at this moment.
    await rename(out, old).catch((error) => {
      if (codeOf(error) !== 'ENOENT') throw error
    })
    if ((await statusOf(old)) !== undefined) await mayReplace(old)
  }
}

/** Gives a file the name `to`. Throws if something has this name. */
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

/** True for a file that has its name beside the hidden folder too. */
async function isLinked(file: string): Promise<boolean> {
  const status = await statusOf(file)
  return status?.isFile() === true && status.nlink > 1
}

function statusOf(target: string) {
  return lstat(target).catch(() => undefined)
}
