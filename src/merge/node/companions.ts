// Copies a base's other files in Node, with those in folders inside it, reading through the symlinks of Hugging Face's cache.

import { copyFile, readdir, readFile, realpath, stat, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { FileError } from '../../base/errors.js'
import { fileError, makeFolders } from '../../io/node/files.js'
import { CONFIG_FILE, editConfig, isCompanion } from '../plan/companions.js'
import type { MergePlan } from '../plan/plan.js'
import { NOTES_FOLDER, syncFile, syncFolder } from './output.js'
import { RECORD_FILE } from './place.js'

/** One of these is in the folder of a merge, finished or not. */
const MERGED = [RECORD_FILE, NOTES_FOLDER]

/** The base’s other files. */
export interface Companions {
  copied: string[]
  leftOut: string[]
  /** Of the copied files. */
  bytes: number
}

/** Where the base or the output is a file. */
export const NO_COMPANIONS: Companions = { copied: [], leftOut: [], bytes: 0 }

/**
 * What of the base's folder goes along.
 *
 * @param skip folders that belong to the output, when it lies inside the base
 * @throws FileError for a link that leads nowhere: what it stands for would be missing without a word
 */
export async function findCompanions(base: string, plan: MergePlan, skip: readonly string[]): Promise<Companions> {
  const { checkpoint } = plan
  const own = new Set([...checkpoint.shards.map((shard) => shard.path), checkpoint.indexPath, RECORD_FILE])
  const result: Companions = { copied: [], leftOut: [], bytes: 0 }
  const skipped = new Set(await Promise.all(skip.map((folder) => realpath(folder).catch(() => folder))))
  const visit = async (folder: string, trail: readonly string[]): Promise<void> => {
    const real = await realpath(path.join(base, folder))
    if (skipped.has(real) || trail.includes(real)) return
    const entries = await readdir(real)
    // The result of another merge is no part of the base.
    if (folder !== '' && MERGED.some((name) => entries.includes(name))) {
      result.leftOut.push(`${folder}/`)
      return
    }
    for (const name of entries.sort()) {
      const relative = folder === '' ? name : `${folder}/${name}`
      const status = await stat(path.join(base, relative)).catch(() => undefined)
      if (status?.isDirectory()) {
        if (isCompanion(`${relative}/`)) await visit(relative, [...trail, real])
        else result.leftOut.push(`${relative}/`)
      } else if (own.has(relative)) continue
      else if (!isCompanion(relative)) result.leftOut.push(relative)
      else if (status === undefined) throw brokenLinkError(path.join(base, relative))
      else if (status.isFile()) {
        result.copied.push(relative)
        result.bytes += status.size
      }
    }
  }
  try {
    await visit('', [])
  } catch (error) {
    throw fileError(base, 'cannot be listed', error)
  }
  return result
}

function brokenLinkError(where: string): FileError {
  return new FileError({
    where,
    what: 'a link that leads nowhere',
    expected: 'a file that goes along with the weights',
    hint: 'Download it again, or remove the link',
  })
}

/** Copies files and writes the index and the changed config.json. Returns the bytes written. */
export async function writeCompanions(
  files: readonly string[],
  plan: MergePlan,
  { folder, isDurable }: { folder: string; isDurable: boolean },
): Promise<number> {
  const { checkpoint, configEdit, index } = plan
  const copied = plan.copiesIndex ? [...files, checkpoint.indexPath!] : files
  let bytes = 0
  const write = async (file: string, fill: (target: string) => Promise<void>) => {
    const target = path.join(folder, file)
    try {
      await makeFolders(path.dirname(target))
      await fill(target)
      bytes += (await stat(target)).size
      if (isDurable) await syncFile(target)
    } catch (error) {
      throw fileError(target, 'cannot be written', error)
    }
  }
  for (const file of copied) {
    const source = path.join(checkpoint.directory.name, file)
    const isEdited = file === CONFIG_FILE && configEdit !== undefined
    await write(file, async (target) => {
      if (isEdited) await writeFile(target, editConfig(await readFile(source), configEdit, source))
      else await copyReadable(source, target)
    })
  }
  if (index !== undefined) await write(index.path, (target) => writeFile(target, index.content))
  if (isDurable) for (const nested of foldersOf(copied)) await syncFolder(path.join(folder, nested))
  return bytes
}

/** Those that files lie in, below the one that all are in. */
function foldersOf(files: readonly string[]): Set<string> {
  const result = new Set<string>()
  for (const file of files) {
    for (let at = path.dirname(file); at !== '.'; at = path.dirname(at)) result.add(at)
  }
  return result
}

/** Not copyFile alone: it would carry over read-only modes, with which the copy could not be synced. */
async function copyReadable(source: string, target: string): Promise<void> {
  const { mode } = await stat(source)
  if ((mode & 0o200) !== 0) await copyFile(source, target)
  else await writeFile(target, await readFile(source))
}
