// The folder beside the output in which it is made, OUT.partial-ID: finished shards and a note for each. ID stands for the plan, so
// that only jobs of one plan meet there. To publish, a merge first renames the folder to a name that nobody else knows: whoever loses
// that race fails by name, and nothing can be changed under the winner. A killed merge leaves nothing that looks finished.

import { randomBytes } from 'node:crypto'
import { closeSync, openSync } from 'node:fs'
import { readdir, rename, rm, rmdir, stat } from 'node:fs/promises'
import path from 'node:path'
import { writeFile as writeThroughFile } from '../../base/bytes.js'
import { LowrankError, MismatchError } from '../../base/errors.js'
import { fileError } from '../../io/node/errors.js'
import { NodeDirectory } from '../../io/node/files.js'
import { syncFolder } from '../../io/node/folders.js'
import { enterFolder, isOwned, Owner } from '../../io/node/owners.js'
import { RECORD_FILE } from '../plan/companions.js'
import type { OutputFile } from '../plan/layout.js'
import { checksumOfFile, parseShardNote, type ShardNote } from './notes.js'
import type { OutputPlace } from './place.js'
import { nameOnce, removeStaging, replaceFolder, restoreOld } from './publish.js'
import { PUBLISH_FILE, removeNotes, stagingFolders } from './recover.js'
import {
  busyError,
  holdsPlan,
  isNameOf,
  NOTES_FOLDER,
  oldPrefix,
  PLAN_FILE,
  partialPrefix,
  readNote,
  takenError,
  writeNote,
} from './staging-notes.js'

const ID_LENGTH = 12

/** How a folder is entered. */
export interface StagingOptions {
  /** Of the plan; undefined for a result of which no part is ever kept. */
  planHash: string | undefined
  /** What is finished there is kept. */
  isContinued: boolean
  /** This is one of several jobs at work. */
  isShare: boolean
  /** Jobs may still be at work: what they have finished is all that counts. */
  isFinish: boolean
}

/** The folder in which an output is made. */
export class Staging {
  readonly #place: OutputPlace
  readonly #options: StagingOptions
  readonly #owner: Owner
  /** Its name among all jobs of the plan. */
  readonly #shared: string
  /** Where it is now. */
  #folder: string
  /** The file of each shard that this merge made, or has verified. */
  readonly #files = new Map<string, string>()
  /** Those with a note. */
  readonly #noted = new Set<string>()
  readonly #open = new Map<string, number>()
  #isPublished = false

  private constructor(place: OutputPlace, options: StagingOptions) {
    this.#place = place
    this.#options = options
    this.#owner = new Owner(options.isShare)
    const id = options.planHash?.slice(0, ID_LENGTH) ?? randomBytes(ID_LENGTH / 2).toString('hex')
    this.#shared = `${partialPrefix(place.out)}${id}`
    this.#folder = this.#shared
  }

  /** Where files are written. */
  get folder(): string {
    return this.#folder
  }

  /** Writes there, and only there: a folder that another merge has taken is not made again. */
  directory(isDurable: boolean): NodeDirectory {
    return new NodeDirectory(this.#folder, { fsync: isDurable, isThere: true })
  }

  /**
   * Enters the folder of a plan, or makes it.
   *
   * @throws FileError when another merge is making this output; MismatchError when something else than this plan is to be continued
   */
  static async enter(place: OutputPlace, options: StagingOptions): Promise<Staging> {
    const staging = new Staging(place, options)
    try {
      await staging.#enter()
      return staging
    } catch (error) {
      await staging.leave()
      throw staging.#failure(staging.folder, error)
    }
  }

  async #enter(): Promise<void> {
    const { isContinued } = this.#options
    await this.#refuseRivals()
    if (isContinued) await this.#restore()
    await enterFolder(this.#owner, this.#pathOf(NOTES_FOLDER))
    await this.#refuseRivals()
    await restoreOld(this.#place.out)
    const others = (await stagingFolders(this.#place.out)).filter((folder) => folder !== this.#shared)
    if (!isContinued) await this.#removeContent()
    for (const folder of others) if (!isContinued || !(await holdsPlan(folder))) await removeStaging(folder)
    await writeNote(this.#folder, PLAN_FILE, { plan: this.#options.planHash ?? '' }, this.#owner.token)
  }

  /** Jobs of one plan work side by side; all else takes turns. */
  async #refuseRivals(): Promise<void> {
    const { isShare, isFinish } = this.#options
    const notes = [...(await stagingFolders(this.#place.out)), this.#place.out].map((folder) =>
      path.join(folder, NOTES_FOLDER),
    )
    const rival = await this.#owner.firstRival(notes, (other) => !(other.isShare && (isShare || isFinish)))
    if (rival !== undefined) throw busyError(this.#place.out, rival)
  }

  /** Gives the folder of a merge that was killed while it published its shared name again. */
  async #restore(): Promise<void> {
    const siblings = await stagingFolders(this.#place.out)
    if (siblings.includes(this.#shared)) return
    const kept: string[] = []
    for (const folder of siblings) if (await holdsPlan(folder)) kept.push(folder)
    for (const folder of siblings) {
      const token = folder.startsWith(`${this.#shared}-`) ? folder.slice(this.#shared.length + 1) : undefined
      if (token === undefined || (await isOwned(path.join(folder, NOTES_FOLDER), token))) continue
      // Another job may do the same.
      await rename(folder, this.#shared).catch(() => {})
      return
    }
    if (kept.length === 0 || kept.some((folder) => folder.startsWith(this.#shared))) return
    throw new MismatchError({
      where: kept[0],
      what: 'it was begun with another base, adapter or options',
      hint: 'Use the same ones to continue, or merge without resume (--resume) to start again',
    })
  }

  /** Opens a new file for a shard. `close` closes it. */
  create({ path: shard }: OutputFile): { name: string; fd: number } {
    const name = this.#pathOf(`${shard}.${this.#owner.token}`)
    try {
      const fd = openSync(name, 'wx')
      this.#files.set(shard, path.basename(name))
      this.#open.set(shard, fd)
      return { name, fd }
    } catch (error) {
      throw this.#failure(name, error)
    }
  }

  /** Notes that a shard is finished. */
  async note(shard: OutputFile, note: ShardNote): Promise<void> {
    const file = this.#files.get(shard.path)
    try {
      const content = { ...note, plan: this.#options.planHash, file }
      await writeNote(this.#folder, `${shard.path}.json`, content, this.#owner.token)
    } catch (error) {
      throw this.#failure(this.#pathOf(NOTES_FOLDER), error)
    }
    this.#noted.add(shard.path)
  }

  /** The note of a shard that is there, whole, unchanged and of this plan; undefined when it has to be made again. */
  async verified(shard: OutputFile): Promise<ShardNote | undefined> {
    const content = (await readNote(this.#folder, `${shard.path}.json`)) ?? {}
    const note = content.plan === this.#options.planHash ? parseShardNote(content) : undefined
    if (note === undefined) return undefined
    // A merge that was killed while it published has given some their last names.
    for (const file of [content.file, shard.path]) {
      if (typeof file !== 'string' || !isNameOf(file, shard.path)) continue
      const status = await stat(this.#pathOf(file)).catch(() => undefined)
      if (status?.size !== shard.byteLength) continue
      if ((await checksumOfFile(shard, this.#pathOf(file))) !== note.checksum) continue
      this.#files.set(shard.path, file)
      this.#noted.add(shard.path)
      return note
    }
    return undefined
  }

  /** Forgets what was verified of shards that are made again. */
  forget(shards: readonly OutputFile[]): void {
    for (const { path: shard } of shards) {
      this.#files.delete(shard)
      this.#noted.delete(shard)
    }
  }

  /** Makes room: removes unfinished files that no process is at work on. */
  async removeUnfinished(shards: readonly OutputFile[]): Promise<void> {
    try {
      const kept = new Set([NOTES_FOLDER, ...this.#files.values()])
      if (this.#options.isShare) for (const file of await this.#filesOfOthers(shards)) kept.add(file)
      for (const name of await readdir(this.#folder)) {
        if (!kept.has(name)) await rm(this.#pathOf(name), { recursive: true, force: true })
      }
    } catch (error) {
      throw this.#failure(this.#folder, error)
    }
  }

  /** Files that other jobs have noted or are writing. */
  async #filesOfOthers(shards: readonly OutputFile[]): Promise<string[]> {
    const result: string[] = []
    for (const name of await readdir(this.#folder)) {
      const token = name.slice(name.lastIndexOf('.') + 1)
      if (await isOwned(this.#pathOf(NOTES_FOLDER), token, { waits: false })) result.push(name)
    }
    for (const name of await readdir(this.#pathOf(NOTES_FOLDER))) {
      const isOwn = shards.some((shard) => `${shard.path}.json` === name)
      const note = name.endsWith('.json') && !isOwn ? await readNote(this.#folder, name) : undefined
      if (typeof note?.file === 'string') result.push(note.file, name.slice(0, -'.json'.length))
    }
    return result
  }

  /**
   * Takes the folder for this merge alone, and gives all shards their last names.
   *
   * @param others what else is part of the output: names directly in the folder
   * @throws FileError when another merge has taken it, or a shard is not there as it was made
   */
  async claim(shards: readonly OutputFile[], others: readonly string[] = []): Promise<void> {
    this.close()
    const claimed = `${this.#shared}-${this.#owner.token}`
    try {
      await rename(this.#folder, claimed)
      this.#folder = claimed
      this.#owner.moved(this.#pathOf(NOTES_FOLDER))
      for (const { path: shard, byteLength } of shards) {
        const file = this.#files.get(shard)
        const status = file === undefined ? undefined : await stat(this.#pathOf(file)).catch(() => undefined)
        if (status?.size !== byteLength) throw takenError(this.#pathOf(shard))
        await rename(this.#pathOf(file!), this.#pathOf(shard))
        this.#files.set(shard, shard)
      }
      const kept = new Set([NOTES_FOLDER, ...others, ...shards.map(({ path: shard }) => shard)])
      for (const name of await readdir(this.#folder)) {
        if (!kept.has(name)) await rm(this.#pathOf(name), { recursive: true, force: true })
      }
    } catch (error) {
      throw this.#failure(this.#folder, error)
    }
  }

  /**
   * Gives the claimed folder the output's name.
   *
   * @param record what the folder says of the merge
   */
  async publishFolder(
    record: object,
    { overwrite, isDurable }: { overwrite: boolean; isDurable: boolean },
  ): Promise<void> {
    const { out } = this.#place
    try {
      const folder = this.directory(isDurable)
      await writeThroughFile(folder, RECORD_FILE, `${JSON.stringify(record, null, 2)}\n`)
      if (isDurable) await syncFolder(this.#folder)
      await replaceFolder(out, this.#folder, overwrite ? `${oldPrefix(out)}${this.#owner.token}` : undefined)
      this.#isPublished = true
      // Not before: without notes nobody knows whose the folder is.
      await this.#owner.leave()
      await removeNotes(out)
      if (isDurable) await syncFolder(path.dirname(out))
    } catch (error) {
      throw this.#failure(out, error)
    }
  }

  /**
   * Gives files of the claimed folder their places beside the output's: the output itself last.
   *
   * @param files their names, which they keep
   */
  async publishFiles(
    files: readonly string[],
    { overwrite, isDurable }: { overwrite: boolean; isDurable: boolean },
  ): Promise<void> {
    const { out } = this.#place
    const folder = path.dirname(out)
    const named: string[] = []
    try {
      await writeNote(this.#folder, PUBLISH_FILE, { files }, this.#owner.token)
      for (const name of files) {
        const target = path.join(folder, name)
        if (overwrite) await rename(this.#pathOf(name), target)
        else await nameOnce(this.#pathOf(name), target)
        named.push(target)
      }
      this.#isPublished = true
      await this.#owner.leave()
      await removeStaging(this.#folder)
      if (isDurable) await syncFolder(folder)
    } catch (error) {
      if (!overwrite) for (const target of named) await rm(target, { force: true })
      throw this.#failure(out, error)
    }
  }

  /**
   * After a failure: removes of what this merge has made all that nobody can go on with.
   *
   * @param isUseless what is finished does not help: it would fail again
   * @returns whether there is something finished to go on with
   * @throws FileError when another merge has taken the folder, which then is the reason
   */
  async drop(isUseless: boolean): Promise<boolean> {
    this.close()
    if (this.#isPublished) return false
    if ((await stat(this.#folder).catch(() => undefined)) === undefined) throw takenError(this.#shared)
    try {
      if (this.#folder !== this.#shared) {
        await rename(this.#folder, this.#shared)
        this.#folder = this.#shared
        this.#owner.moved(this.#pathOf(NOTES_FOLDER))
      }
      for (const [shard, file] of this.#files) {
        if (this.#noted.has(shard) && !isUseless) continue
        await rm(this.#pathOf(file), { force: true })
        if (isUseless) await rm(this.#pathOf(`${NOTES_FOLDER}/${shard}.json`), { force: true })
        this.#files.delete(shard)
        this.#noted.delete(shard)
      }
      if (!this.#options.isShare && this.#noted.size === 0) await this.#removeContent()
    } catch {
      // The error that led here says more than one of tidying up.
    }
    return this.#noted.size > 0
  }

  /** Ends this process's part; a folder in which nothing is left goes. */
  async leave(): Promise<void> {
    this.close()
    await this.#owner.leave()
    if (this.#options.planHash === undefined) await removeStaging(this.#folder).catch(() => {})
    const names = await readdir(this.#pathOf(NOTES_FOLDER)).catch(() => undefined)
    if (names === undefined || names.some((name) => name !== PLAN_FILE)) return
    // rmdir takes empty folders alone: another job may have come meanwhile.
    const entries = await readdir(this.#folder).catch((): string[] => [])
    if (entries.some((name) => name !== NOTES_FOLDER)) return
    await rm(this.#pathOf(`${NOTES_FOLDER}/${PLAN_FILE}`), { force: true }).catch(() => {})
    await rmdir(this.#pathOf(NOTES_FOLDER)).catch(() => {})
    await rmdir(this.#folder).catch(() => {})
  }

  /** Closes the files of shards: Windows renames no folder with open ones. */
  close(): void {
    for (const fd of this.#open.values()) closeSync(fd)
    this.#open.clear()
  }

  /** All but this process's own record. */
  async #removeContent(): Promise<void> {
    for (const name of await readdir(this.#folder)) {
      if (name !== NOTES_FOLDER) await rm(this.#pathOf(name), { recursive: true, force: true })
    }
    for (const name of await readdir(this.#pathOf(NOTES_FOLDER))) {
      if (!name.includes(this.#owner.token))
        await rm(this.#pathOf(`${NOTES_FOLDER}/${name}`), { recursive: true, force: true })
    }
  }

  #pathOf(file: string): string {
    return path.join(this.#folder, file)
  }

  /** An error of the file system as ours; where the folder has gone, another merge has taken it. */
  #failure(where: string, error: unknown): unknown {
    if (error instanceof LowrankError) return error
    const code = (error as NodeJS.ErrnoException | undefined)?.code
    if (code === 'ENOENT' || code === 'ESTALE') return takenError(this.#shared, error)
    return fileError(where, 'cannot be written', error)
  }
}
