// The output of a merge while it is made: a folder OUT.partial with the finished shards and, for each, a note of its checksum.
// It gets its final name when it is complete and on disk, so that a killed merge leaves nothing that looks finished.

import { statfsSync } from 'node:fs'
import { mkdir, open, readdir, readFile, realpath, rename, rm, rmdir, stat, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { FileError, MismatchError } from '../../base/errors.js'
import { fileError } from '../../io/node-files.js'
import type { OutputShard } from './layout.js'
import { checksumOfFile, type ShardNote } from './node-notes.js'

/** Marks a folder as made by a merge, and says how; only such a folder is ever replaced. */
export const RECORD_FILE = 'lowrank-merge.json'
const NOTES_FOLDER = '.merge'
const PLAN_FILE = 'plan.json'
/** Stands for the hash of a plan of whose output no part is ever kept. */
export const NOTHING_KEPT = ''

export class PartialOutput {
  /** Where files are written. */
  readonly folder: string
  readonly #out: string
  readonly #isFile: boolean
  readonly #planHash: string

  /** @param isFile the output is one safetensors file, not a folder */
  constructor(out: string, isFile: boolean, planHash: string) {
    this.#out = path.resolve(out)
    this.#isFile = isFile
    this.#planHash = planHash
    this.folder = `${this.#out}.partial`
  }

  pathOf(file: string): string {
    return path.join(this.folder, file)
  }

  /**
   * Makes the folder. Without `keep`, what an earlier merge left there is removed.
   *
   * @throws FileError when something else is there; MismatchError when it belongs to another plan and is to be kept
   */
  async open(keep: boolean): Promise<void> {
    const plan = await this.#readNote(PLAN_FILE)
    const entries = await readdir(this.folder).catch((): string[] => [])
    // The folder of notes comes first: a merge that was killed right then left it empty.
    if (entries.length > 0 && !entries.includes(NOTES_FOLDER)) {
      throw new FileError({
        where: this.folder,
        what: 'the folder for unfinished output holds something else',
        hint: 'Move it away',
      })
    }
    if (keep && plan !== undefined && plan.plan !== NOTHING_KEPT && plan.plan !== this.#planHash) {
      throw new MismatchError({
        where: this.folder,
        what: 'it was begun with another base, adapter or options',
        hint: 'Use the same ones to continue it, or merge without resuming to start over',
      })
    }
    try {
      if (!keep) await rm(this.folder, { recursive: true, force: true })
      await mkdir(this.pathOf(NOTES_FOLDER), { recursive: true })
      await this.#writeNote(PLAN_FILE, { plan: this.#planHash })
    } catch (error) {
      throw fileError(this.folder, 'cannot be written', error)
    }
  }

  async note(shard: OutputShard, note: ShardNote): Promise<void> {
    await this.#writeNote(`${shard.path}.json`, note)
  }

  /** The note of a shard that is there, whole and unchanged; undefined when it has to be made again. */
  async verified(shard: OutputShard): Promise<ShardNote | undefined> {
    const note = (await this.#readNote(`${shard.path}.json`)) as ShardNote | undefined
    if (note === undefined) return undefined
    const file = this.pathOf(shard.path)
    const status = await stat(file).catch(() => undefined)
    if (status?.size !== shard.byteLength) return undefined
    return checksumOfFile(shard, file) === note.checksum ? note : undefined
  }

  /** @throws FileError when the file system has less room than `bytes` */
  checkSpace(bytes: number): void {
    const { bavail, bsize } = statfsSync(this.folder)
    const free = bavail * bsize
    if (bytes <= free) return
    throw new FileError({
      where: this.folder,
      what: 'not enough free space for the output',
      expected: `${bytes} bytes`,
      got: `${free} free`,
      hint: 'Free some, or choose another disk; nothing was written',
    })
  }

  /** Removes a shard that is not finished, or everything when no shard is. Returns whether something is left to resume. */
  async drop(unfinished: readonly OutputShard[], hasFinished: boolean): Promise<boolean> {
    if (!hasFinished) await rm(this.folder, { recursive: true, force: true })
    else for (const { path: file } of unfinished) await rm(this.pathOf(file), { force: true })
    return hasFinished
  }

  /** Gives the complete output its name. */
  async publish(record: object, file: string, isDurable: boolean): Promise<void> {
    try {
      await rm(this.pathOf(NOTES_FOLDER), { recursive: true, force: true })
      if (this.#isFile) {
        await rename(this.pathOf(file), this.#out)
        await rm(this.folder, { recursive: true, force: true })
      } else {
        await writeFile(this.pathOf(RECORD_FILE), `${JSON.stringify(record, null, 2)}\n`)
        if (isDurable) {
          await syncFile(this.pathOf(RECORD_FILE))
          await syncFolder(this.folder)
        }
        const old = await moveAway(this.#out)
        await rename(this.folder, this.#out)
        if (old !== undefined) await rm(old, { recursive: true, force: true })
      }
      if (isDurable) await syncFolder(path.dirname(this.#out))
    } catch (error) {
      throw fileError(this.#out, 'cannot be written', error)
    }
  }

  async #readNote(name: string): Promise<Record<string, unknown> | undefined> {
    const text = await readFile(path.join(this.folder, NOTES_FOLDER, name), 'utf8').catch(() => undefined)
    try {
      return text === undefined ? undefined : JSON.parse(text)
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

/** An empty folder goes; one that is to be replaced moves aside until the new one is there. */
async function moveAway(out: string): Promise<string | undefined> {
  const entries = await readdir(out).catch(() => undefined)
  if (entries === undefined) return undefined
  if (entries.length === 0) {
    await rmdir(out)
    return undefined
  }
  const old = `${out}.${process.pid}.old`
  await rename(out, old)
  return old
}

/**
 * Refuses to write where the inputs are, or over something that is not a merge's output.
 *
 * @param inputs files and folders that are read
 */
export async function refuseOutput(
  out: string,
  isFile: boolean,
  isReplaceable: (out: string) => Promise<boolean>,
  inputs: readonly string[],
): Promise<void> {
  const status = await stat(out).catch(() => undefined)
  for (const input of inputs) {
    const other = await stat(input).catch(() => undefined)
    if (status === undefined || other === undefined || status.dev !== other.dev || status.ino !== other.ino) continue
    throw new FileError({
      where: out,
      what: `the output is the ${other.isDirectory() ? 'folder' : 'file'} that is being read`,
      got: await realpath(input),
      hint: 'Choose another place for it',
    })
  }
  if (status === undefined) return
  if (status.isDirectory() === isFile) {
    throw new FileError({ where: out, what: isFile ? 'is a folder' : 'is no folder', hint: 'Choose another place' })
  }
  if (!isFile && (await readdir(out)).length === 0) return
  const real = await realpath(out)
  for (const input of inputs) {
    const inside = path.relative(real, await realpath(input))
    if (!inside.startsWith('..') && !path.isAbsolute(inside)) {
      throw new FileError({ where: out, what: `it holds ${inside}, which is being read`, hint: 'Choose another place' })
    }
  }
  if (await isReplaceable(out)) return
  throw new FileError({
    where: out,
    what: isFile ? 'exists already' : 'exists already and is not empty',
    hint: 'Choose another place, or overwrite it if a merge wrote it',
  })
}

export async function syncFile(file: string): Promise<void> {
  const handle = await open(file, 'r+')
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

/** Makes renames durable. Windows cannot open folders; there the rename alone has to do. */
async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r').catch(() => undefined)
  try {
    await handle?.sync()
  } catch {
    // The files themselves are on disk.
  } finally {
    await handle?.close()
  }
}
