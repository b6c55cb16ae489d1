// Making folders with those around them, removing them again, and keeping their names through a crash.

import { statfsSync } from 'node:fs'
import { type FileHandle, mkdir, open, rmdir, stat } from 'node:fs/promises'
import path from 'node:path'
import { codeOf, fileError } from './errors.js'

/** Bytes that are free where a folder, which need not exist, is or will be; Infinity where the system does not know. */
export function freeBytes(folder: string): number {
  try {
    const { bavail, bsize, blocks } = statfsSync(folder)
    // Some network file systems report 0 for all sizes.
    return blocks > 0 ? bavail * bsize : Number.POSITIVE_INFINITY
  } catch {
    const around = path.dirname(folder)
    return around === folder ? Number.POSITIVE_INFINITY : freeBytes(around)
  }
}

/** Makes the names in a folder durable. Windows cannot open folders, so there this step is skipped. */
export async function syncFolder(folder: string): Promise<void> {
  let handle: FileHandle | undefined
  try {
    handle = await open(folder, 'r')
    await handle.sync()
  } catch {
    // The files themselves are on disk.
  } finally {
    await handle?.close()
  }
}

/** Processes that fail remove the folders that they have made, which others may be about to use. */
const MAX_ATTEMPTS = 20

/** Not by mkdir's `recursive`, which never ends in /proc. Returns the outermost folder that was made. */
export async function makeFolders(folder: string, attempt = 1): Promise<string | undefined> {
  const missing: string[] = []
  let outer = path.resolve(folder)
  for (; !(await isFound(outer)); outer = path.dirname(outer)) missing.unshift(outer)
  for (const target of missing) {
    try {
      await mkdir(target)
    } catch (error) {
      // Another process may have made it meanwhile.
      if (codeOf(error) === 'EEXIST' && (await isDirectory(target))) continue
      if (target !== missing[0]) await removeEmptyFolders(path.dirname(target), missing[0])
      if (codeOf(error) === 'ENOENT' && attempt < MAX_ATTEMPTS) return makeFolders(folder, attempt + 1)
      throw fileError(target, 'cannot be made', error)
    }
  }
  return missing[0]
}

async function isFound(target: string): Promise<boolean> {
  try {
    await stat(target)
    return true
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return false
    throw fileError(target, 'cannot be made', error)
  }
}

/** Removes what `makeFolders` made, as far as it is empty. */
export async function removeEmptyFolders(folder: string, outermost: string | undefined): Promise<void> {
  if (outermost === undefined) return
  const stop = path.dirname(path.resolve(outermost))
  try {
    for (let current = path.resolve(folder); current !== stop; current = path.dirname(current)) await rmdir(current)
  } catch {
    // Ignore it: something else is at this path by now.
  }
}

export async function isDirectory(target: string): Promise<boolean> {
  const status = await stat(target).catch(() => undefined)
  return status?.isDirectory() ?? false
}
