// Copies a base's other files in Node, with those in folders inside it, reading through the symlinks of Hugging Face's cache.

import { copyFile, mkdir, readdir, readFile, realpath, stat, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { fileError } from '../../io/node-files.js'
import { CONFIG_FILE, editConfig, isCompanion } from './companions.js'
import { RECORD_FILE, syncFile } from './node-output.js'
import type { MergePlan } from './plan.js'

export interface Companions {
  copied: string[]
  leftOut: string[]
}

/**
 * What of the base's folder goes along.
 *
 * @param skip folders that belong to the output, when it lies inside the base
 */
export async function findCompanions(base: string, plan: MergePlan, skip: readonly string[]): Promise<Companions> {
  const { checkpoint } = plan
  const own = new Set([...checkpoint.shards.map((shard) => shard.path), checkpoint.indexPath, RECORD_FILE])
  const result: Companions = { copied: [], leftOut: [] }
  const skipped = new Set(await Promise.all(skip.map((folder) => realpath(folder).catch(() => folder))))
  const visit = async (folder: string, trail: readonly string[]): Promise<void> => {
    const real = await realpath(path.join(base, folder))
    if (skipped.has(real) || trail.includes(real)) return
    for (const name of (await readdir(real)).sort()) {
      const relative = folder === '' ? name : `${folder}/${name}`
      const status = await stat(path.join(base, relative)).catch(() => undefined)
      if (status?.isDirectory()) {
        if (isCompanion(`${relative}/`)) await visit(relative, [...trail, real])
        else result.leftOut.push(`${relative}/`)
      } else if (status?.isFile() && !own.has(relative)) {
        result[isCompanion(relative) ? 'copied' : 'leftOut'].push(relative)
      }
    }
  }
  await visit('', [])
  return result
}

/** Copies files and writes the index and the changed config.json. Returns the bytes written. */
export async function writeCompanions(
  base: string | undefined,
  files: readonly string[],
  plan: MergePlan,
  folder: string,
  isDurable: boolean,
): Promise<number> {
  let bytes = 0
  const finish = async (target: string) => {
    bytes += (await stat(target)).size
    if (isDurable) await syncFile(target)
  }
  try {
    if (base !== undefined) {
      const index = plan.copiesIndex && plan.checkpoint.indexPath
      for (const file of index ? [...files, index] : files) {
        const [source, target] = [path.join(base, file), path.join(folder, file)]
        await mkdir(path.dirname(target), { recursive: true })
        if (file === CONFIG_FILE && plan.configEdit !== undefined) {
          await writeFile(target, editConfig(await readFile(source), plan.configEdit, source))
        } else await copyReadable(source, target)
        await finish(target)
      }
    }
    if (plan.index !== undefined) {
      const target = path.join(folder, plan.index.path)
      await writeFile(target, plan.index.content)
      await finish(target)
    }
  } catch (error) {
    throw fileError(folder, 'cannot be written', error)
  }
  return bytes
}

/** Not copyFile alone: it would carry over read-only modes, with which the copy could not be synced. */
async function copyReadable(source: string, target: string): Promise<void> {
  const { mode } = await stat(source)
  if ((mode & 0o200) !== 0) await copyFile(source, target)
  else await writeFile(target, await readFile(source))
}
