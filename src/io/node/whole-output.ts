// Results that appear whole or not at all. A process makes the files in a hidden folder beside the result's place, and
// renames at the end. Nobody waits for anybody: of two processes at one place, a rename decides.
//   .NAME.TOKEN.tmp/new/ and .NAME.PLAN.TOKEN.tmp/new/: files that a process is making, in the second case for a plan
//   .NAME.TOKEN.tmp/old/: the earlier result, from when it makes room until the new one has its name
//   .NAME.PLAN.partial/: finished files, each of them whole. The processes of one plan share it

import { link, lstat, mkdir, readdir, realpath, rename, rm, rmdir, stat, unlink } from 'node:fs/promises'
import path from 'node:path'
import { FileError } from '../../base/errors.js'
import { codeOf, fileError } from './errors.js'
import { makeFolders, makeInner, removeEmptyFolders, syncFolder } from './folders.js'
import { isAlive, isDead, newToken, processOf, TOKEN } from './owner.js'

const MAX_ATTEMPTS = 5

export interface WholeOutputOptions {
  /** The result is a file, or a file and others beside it that its name begins the names of. Default: a folder. */
  readonly isFile?: boolean | undefined
  /** Digest of all that the result is made from. Processes of one plan share what they have finished. */
  readonly plan?: string | undefined
  /** Files and names are on the disk before the result has its name. Default true. */
  readonly fsync?: boolean | undefined
}

export class WholeOutput {
  readonly folder: string
  /** The folder that processes of one plan share. Undefined without a plan. */
  readonly gathered: string | undefined
  readonly #work: string
  #firstMade: string | undefined

  private constructor(
    private readonly out: string,
    private readonly options: WholeOutputOptions,
  ) {
    const { plan } = options
    const prefix = path.join(path.dirname(out), `.${path.basename(out)}${plan === undefined ? '' : `.${plan}`}`)
    this.#work = `${prefix}.${newToken()}.tmp`
    this.folder = path.join(this.#work, 'new')
    this.gathered = plan === undefined ? undefined : `${prefix}.partial`
  }

  /** Mends what killed processes left at this place. Throws FileError while another result is made here. */
  static async begin(out: string, options: WholeOutputOptions = {}): Promise<WholeOutput> {
    const output = new WholeOutput(out, options)
    try {
      output.#firstMade = await makeFolders(path.dirname(out))
      await output.#mend()
      await makeFolders(output.folder)
      if (output.gathered !== undefined) await mkdir(output.gathered, { recursive: true })
      return output
    } catch (error) {
      await output.close()
      throw fileError(out, 'cannot be written', error)
    }
  }

  async #mend(): Promise<void> {
    const { plan, isFile = false } = this.options
    const { works, gathered } = await unfinishedOf(this.out)
    const other = works.find((work) => isAlive(work.token) && (plan === undefined || work.plan !== plan))
    if (other !== undefined) throw busyError(this.out, other.token)
    for (const work of works) {
      const [old, isThere] = [path.join(work.path, 'old'), await exists(this.out)]
      if (!isThere && (await exists(old))) await rename(old, this.out)
      if (!isDead(work.token)) continue
      if (isFile && !isThere) await this.#removeNamed(path.join(work.path, 'new'))
      await removeWork(work.path).catch(() => {})
    }
    // A result of another plan is made now, unless somebody is still at work on that one.
    for (const one of gathered) {
      const isUsed = works.some((work) => work.plan === one.plan && !isDead(work.token))
      if (one.plan !== plan && !isUsed) await rm(one.path, { recursive: true, force: true })
    }
  }

  /** Removes files that a killed process gave their names before the result itself had its name. */
  async #removeNamed(folder: string): Promise<void> {
    for (const name of await readdir(folder).catch((): string[] => [])) {
      const [made, named] = [path.join(folder, name), path.join(path.dirname(this.out), name)]
      if (await isSameFile(made, named)) await unlink(named)
    }
  }

  async hasFinished(name: string, byteLength: number): Promise<boolean> {
    if (this.gathered === undefined) return false
    const status = await stat(path.join(this.gathered, name)).catch(() => undefined)
    return status?.isFile() === true && status.size === byteLength
  }

  /** Throws FileError when another process has published the plan's result meanwhile. */
  async finish(name: string): Promise<void> {
    if (this.gathered === undefined) return
    try {
      await makeInner(this.gathered, path.join(this.gathered, path.dirname(name)))
      await rename(path.join(this.folder, name), path.join(this.gathered, name))
    } catch (error) {
      throw this.#failure(error)
    }
  }

  async publishFolder(replaces: boolean): Promise<void> {
    const from = this.gathered ?? this.folder
    const old = path.join(this.#work, 'old')
    try {
      if (this.#isDurable) await syncFolders(from)
      for (let attempt = 1; ; attempt++) {
        // Windows renames no folder to the name of an empty one.
        await rmdir(this.out).catch(() => {})
        try {
          await rename(from, this.out)
          break
        } catch (error) {
          const isTaken = ['ENOTEMPTY', 'EEXIST', 'EPERM'].includes(codeOf(error) ?? '')
          if (!isTaken || !replaces || attempt === MAX_ATTEMPTS) throw error
          await removeOld(this.#work)
          await rename(this.out, old)
        }
      }
      await removeOld(this.#work)
      if (this.#isDurable) await syncFolder(path.dirname(this.out))
      await this.#removeOthers()
    } catch (error) {
      await rename(old, this.out).catch(() => {})
      throw this.#failure(error)
    }
  }

  async publishFiles(replaces: boolean): Promise<void> {
    const own = path.basename(this.out)
    const named: string[] = []
    try {
      const names = await readdir(this.folder)
      for (const name of [...names.filter((one) => one !== own), own]) {
        const [from, to] = [path.join(this.folder, name), path.join(path.dirname(this.out), name)]
        if (replaces) await rename(from, to)
        else await nameOnce(from, to)
        named.push(to)
      }
      if (this.#isDurable) await syncFolder(path.dirname(this.out))
    } catch (error) {
      if (!replaces) for (const name of named) await rm(name, { force: true })
      throw this.#failure(error)
    }
  }

  async close(keepsFinished = true): Promise<void> {
    try {
      await removeWork(this.#work)
      if (this.gathered !== undefined) {
        if (keepsFinished) await rmdir(this.gathered)
        else await rm(this.gathered, { recursive: true, force: true })
      }
    } catch {
      // The folder holds finished files, or was published.
    }
    await removeEmptyFolders(path.dirname(this.out), this.#firstMade)
  }

  /** Removes the work of processes on this plan that nobody can find dead: it is published, and they find that out. */
  async #removeOthers(): Promise<void> {
    const { plan } = this.options
    if (plan === undefined) return
    const { works } = await unfinishedOf(this.out)
    for (const work of works) if (work.plan === plan && !isAlive(work.token)) await removeWork(work.path)
  }

  get #isDurable(): boolean {
    return this.options.fsync ?? true
  }

  #failure(error: unknown): FileError {
    if (!['ENOTEMPTY', 'EEXIST', 'ENOENT', 'EPERM'].includes(codeOf(error) ?? '')) {
      return fileError(this.out, 'cannot be written', error)
    }
    const what = 'another process has written it meanwhile'
    return new FileError({ where: this.out, what, hint: 'Choose another place', cause: error })
  }
}

/** Follows links: the result is made on the file system on which it will be. */
export async function realOutput(out: string): Promise<string> {
  const target = path.resolve(out)
  if ((await lstat(target).catch(() => undefined)) === undefined) return target
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

async function unfinishedOf(out: string) {
  const label = path.basename(out).replace(/[\\^$.*+?()[\]{}|]/g, '\\$&')
  const work = new RegExp(`^\\.${label}(?:\\.([0-9a-f]{16}))?\\.(${TOKEN})\\.tmp$`)
  const partial = new RegExp(`^\\.${label}\\.([0-9a-f]{16})\\.partial$`)
  const folder = path.dirname(out)
  const names = await readdir(folder).catch((): string[] => [])
  return {
    works: names.flatMap((name) => {
      const [found, plan = '', token] = work.exec(name) ?? []
      return found === undefined ? [] : [{ path: path.join(folder, name), plan, token }]
    }),
    gathered: names.flatMap((name) => {
      const plan = partial.exec(name)?.[1]
      return plan === undefined ? [] : [{ path: path.join(folder, name), plan }]
    }),
  }
}

export function unfinishedName(file: string): string {
  return path.join(path.dirname(file), `.${path.basename(file)}.${newToken()}.tmp`)
}

export async function removeUnfinished(file: string): Promise<void> {
  const { works } = await unfinishedOf(file)
  for (const { path: work, token } of works) if (isDead(token)) await unlink(work).catch(() => {})
}

function busyError(out: string, token: string): FileError {
  return new FileError({
    where: out,
    what: `another process is writing it: process ${processOf(token)}`,
    hint: 'Wait until that one ends, or choose another place',
  })
}

/** A result that made room gets another name first, so that no part of it ever comes back. */
async function removeOld(work: string): Promise<void> {
  const gone = path.join(work, 'gone')
  await rename(path.join(work, 'old'), gone).catch(() => {})
  await removeAll(gone)
}

async function removeWork(work: string): Promise<void> {
  await rename(path.join(work, 'old'), path.join(work, 'gone')).catch(() => {})
  await removeAll(work)
}

/** Tries twice: some failures last for a moment only, such as one of too many open files. */
async function removeAll(folder: string): Promise<void> {
  const remove = () => rm(folder, { recursive: true, force: true })
  await remove().catch(remove)
}

async function nameOnce(from: string, to: string): Promise<void> {
  try {
    await link(from, to)
  } catch (error) {
    // File systems without links.
    if (!['EPERM', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EMLINK', 'EACCES'].includes(codeOf(error) ?? '')) throw error
    await rename(from, to)
  }
}

async function syncFolders(folder: string): Promise<void> {
  const entries = await readdir(folder, { withFileTypes: true })
  for (const entry of entries) if (entry.isDirectory()) await syncFolders(path.join(folder, entry.name))
  await syncFolder(folder)
}

async function exists(target: string): Promise<boolean> {
  return (await lstat(target).catch(() => undefined)) !== undefined
}

async function isSameFile(one: string, other: string): Promise<boolean> {
  const [a, b] = await Promise.all([one, other].map((file) => stat(file, { bigint: true }).catch(() => undefined)))
  return a !== undefined && a.ino === b?.ino && a.dev === b.dev
}
