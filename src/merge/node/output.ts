// The output of a merge while it is made: a folder OUT.partial with the finished shards and, for each, a note of its checksum.
// It gets its final name when it is complete and on disk, so that a killed merge leaves nothing that looks finished.

import { closeSync, fstatSync, openSync, rmSync } from 'node:fs'
import { open, readdir, readFile, rename, rm, rmdir, stat, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { FileError, MismatchError } from '../../base/errors.js'
import { fileError, makeFolders } from '../../io/node/files.js'
import type { OutputShard } from '../plan/layout.js'
import { checksumOfFile, type ShardNote } from './notes.js'
import { type OutputPlace, partialFolder, RECORD_FILE } from './place.js'

export const NOTES_FOLDER = '.merge'
const PLAN_FILE = 'plan.json'
/** Stands for the hash of a plan of whose output no part is ever kept. */
export const NOTHING_KEPT = ''

/** The folder in which an output is made. */
export class PartialOutput {
  /** Where files are written. */
  readonly folder: string
  readonly #out: string
  readonly #isFile: boolean
  readonly #planHash: string
  /** Descriptors of the shards that this merge made or found: while they are open, no file of another merge has their inodes. */
  readonly #open = new Map<string, number>()
  /** Shards whose notes are there. */
  readonly #noted = new Set<string>()

  constructor({ out, isFile }: OutputPlace, planHash: string) {
    this.#out = out
    this.#isFile = isFile
    this.#planHash = planHash
    this.folder = partialFolder(out)
  }

  pathOf(file: string): string {
    return path.join(this.folder, file)
  }

  /**
   * Makes the folder anew: what an earlier merge left there is removed.
   *
   * @throws FileError when something else is there
   */
  async startOver(): Promise<void> {
    await this.#requireOurs()
    await this.#removeAll()
    await this.#make()
  }

  /**
   * Takes the folder as an earlier merge left it, or makes it.
   *
   * @throws FileError when something else is there; MismatchError when it belongs to another plan
   */
  async goOn(): Promise<void> {
    await this.#requireOurs()
    const begun = await this.#readNote(PLAN_FILE)
    if (begun !== undefined && begun.plan !== NOTHING_KEPT && begun.plan !== this.#planHash) {
      throw new MismatchError({
        where: this.folder,
        what: 'it was begun with another base, adapter or options',
        hint: 'Use the same ones to continue it, or merge without resuming to start over',
      })
    }
    await this.#make()
  }

  /** The folder of notes comes first and goes last: a merge that was killed right then left it empty. */
  async #requireOurs(): Promise<void> {
    const entries = await readdir(this.folder).catch((): string[] => [])
    if (entries.length === 0 || entries.includes(NOTES_FOLDER)) return
    throw new FileError({
      where: this.folder,
      what: 'the folder for unfinished output holds something else',
      hint: 'Move it away',
    })
  }

  async #make(): Promise<void> {
    try {
      await makeFolders(this.pathOf(NOTES_FOLDER))
      await this.#writeNote(PLAN_FILE, { plan: this.#planHash })
    } catch (error) {
      throw fileError(this.folder, 'cannot be written', error)
    }
  }

  /** Opens a new file for a shard, in place of one that was not finished. `close` closes it. */
  create({ path: file }: OutputShard): { name: string; fd: number } {
    const target = this.pathOf(file)
    try {
      rmSync(target, { force: true })
      const fd = openSync(target, 'wx')
      this.#open.set(file, fd)
      return { name: target, fd }
    } catch (error) {
      throw fileError(target, 'cannot be written', error)
    }
  }

  async note(shard: OutputShard, note: ShardNote): Promise<void> {
    await this.#writeNote(`${shard.path}.json`, { ...note, plan: this.#planHash })
    this.#noted.add(shard.path)
  }

  /** The note of a shard that is there, whole, unchanged and of this plan; undefined when it has to be made again. */
  async verified(shard: OutputShard): Promise<ShardNote | undefined> {
    const note = await this.#readNote(`${shard.path}.json`)
    if (note?.plan !== this.#planHash) return undefined
    const file = this.pathOf(shard.path)
    const status = await stat(file).catch(() => undefined)
    if (status?.size !== shard.byteLength || checksumOfFile(shard, file) !== note.checksum) return undefined
    this.#open.set(shard.path, openSync(file, 'r'))
    this.#noted.add(shard.path)
    return note as unknown as ShardNote
  }

  /** Removes shards that are not finished. */
  async remove(shards: readonly OutputShard[]): Promise<void> {
    for (const { path: file } of shards) {
      await rm(this.pathOf(file), { force: true })
      this.#close(file)
      this.#noted.delete(file)
    }
  }

  /** Removes what is no finished shard: other files that a killed merge had copied. */
  async removeOthers(shards: readonly OutputShard[]): Promise<void> {
    const kept = new Set([NOTES_FOLDER, ...shards.map(({ path: file }) => file)])
    for (const name of await readdir(this.folder)) {
      if (!kept.has(name)) await rm(this.pathOf(name), { recursive: true, force: true })
    }
  }

  /**
   * After a failure: removes of what this merge has made all that nobody can go on with.
   *
   * @param shards of this merge
   * @param options.isUseless what is finished does not help: it would fail again
   * @param options.isShared other jobs make files there too
   * @returns whether there is something finished to go on with
   */
  async drop(
    shards: readonly OutputShard[],
    { isUseless, isShared }: { isUseless: boolean; isShared: boolean },
  ): Promise<boolean> {
    if (!(await this.#isOwn())) return false
    const unfinished = shards.filter(({ path: file }) => isUseless || !this.#noted.has(file))
    await this.remove(unfinished)
    if (!isShared && this.#noted.size === 0) await this.#removeAll()
    return this.#noted.size > 0
  }

  /**
   * Gives the complete output its name.
   *
   * @param record what a folder says of the merge
   * @param options.file the shard that is the output, when that is a file
   */
  async publish(record: object, { file, isDurable }: { file: string; isDurable: boolean }): Promise<void> {
    try {
      await this.requireOwn()
      // Windows renames no folder with open files.
      this.close()
      if (this.#isFile) {
        await rename(this.pathOf(file), this.#out)
        await this.#removeAll()
      } else {
        await writeFile(this.pathOf(RECORD_FILE), `${JSON.stringify(record, null, 2)}\n`)
        if (isDurable) {
          await syncFile(this.pathOf(RECORD_FILE))
          await syncFolder(this.folder)
        }
        await replaceFolder(this.#out, this.folder)
        // Not before: without notes nobody knows whose the folder is.
        await rm(path.join(this.#out, NOTES_FOLDER), { recursive: true, force: true })
      }
      if (isDurable) await syncFolder(path.dirname(this.#out))
    } catch (error) {
      throw fileError(this.#out, 'cannot be written', error)
    }
  }

  close(): void {
    for (const file of this.#open.keys()) this.#close(file)
  }

  #close(file: string): void {
    const fd = this.#open.get(file)
    this.#open.delete(file)
    if (fd !== undefined) closeSync(fd)
  }

  /** Throws FileError when another merge has put its shards in place of this one's. */
  async requireOwn(): Promise<void> {
    if (await this.#isOwn()) return
    throw new FileError({
      where: this.folder,
      what: 'another merge has written here meanwhile',
      hint: 'Run one merge at a time for an output',
    })
  }

  /** Whether the shards in the folder are still those of this merge. */
  async #isOwn(): Promise<boolean> {
    for (const [file, fd] of this.#open) {
      const status = await stat(this.pathOf(file), { bigint: true }).catch(() => undefined)
      if (status?.ino !== fstatSync(fd, { bigint: true }).ino) return false
    }
    return true
  }

  async #removeAll(): Promise<void> {
    try {
      const entries = await readdir(this.folder).catch(() => undefined)
      if (entries === undefined) return
      for (const name of entries) {
        if (name !== NOTES_FOLDER) await rm(this.pathOf(name), { recursive: true, force: true })
      }
      await rm(this.folder, { recursive: true, force: true })
    } catch (error) {
      throw fileError(this.folder, 'cannot be removed', error)
    }
  }

  async #readNote(name: string): Promise<Record<string, unknown> | undefined> {
    const text = await readFile(path.join(this.folder, NOTES_FOLDER, name), 'utf8').catch(() => undefined)
    try {
      return text === undefined ? undefined : (JSON.parse(text) ?? undefined)
    } catch {
      return undefined
    }
  }

  /** By renaming, so that a note is whole or absent, and jobs that share the folder do not meet half of one. */
  async #writeNote(name: string, note: object): Promise<void> {
    const target = path.join(this.folder, NOTES_FOLDER, name)
    const temporary = `${target}.${process.pid}.tmp`
    await writeFile(temporary, JSON.stringify(note), { flush: true } as object)
    await rename(temporary, target)
  }
}

/** Puts `folder` at `out`. An empty folder there goes; one that is to be replaced stays beside it until the new one is there. */
async function replaceFolder(out: string, folder: string): Promise<void> {
  const entries = await readdir(out).catch(() => undefined)
  if (entries?.length === 0) await rmdir(out)
  const old = entries === undefined || entries.length === 0 ? undefined : `${out}.${process.pid}.old`
  if (old !== undefined) await rename(out, old)
  try {
    await rename(folder, out)
  } catch (error) {
    if (old !== undefined) await rename(old, out)
    throw error
  }
  if (old !== undefined) await rm(old, { recursive: true, force: true })
}

/** Waits until a file is on disk. */
export async function syncFile(file: string): Promise<void> {
  const handle = await open(file, 'r+')
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

/** Makes a folder's names durable. Windows cannot open folders; there the names alone have to do. */
export async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r').catch(() => undefined)
  try {
    await handle?.sync()
  } catch {
    // The files themselves are on disk.
  } finally {
    await handle?.close()
  }
}
