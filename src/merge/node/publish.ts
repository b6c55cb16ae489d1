// How an output gets its name: by renaming, so that it is whole from the first moment, and never over what may not be replaced.

import { link, readdir, rename, rm, rmdir, stat, unlink } from 'node:fs/promises'
import path from 'node:path'
import { FileError } from '../../base/errors.js'
import { RECORD_FILE } from '../plan/companions.js'
import { NOTES_FOLDER, oldPrefix } from './staging-notes.js'

/** Notes go last: without them nobody knows whose the folder is. Other folders stay, whatever they are called. */
export async function removeStaging(folder: string): Promise<void> {
  const entries = await readdir(folder).catch(() => undefined)
  if (entries === undefined || (entries.length > 0 && !entries.includes(NOTES_FOLDER))) return
  for (const name of entries) {
    if (name !== NOTES_FOLDER) await rm(path.join(folder, name), { recursive: true, force: true })
  }
  await rm(folder, { recursive: true, force: true })
}

/**
 * Puts `folder` at `out`. An empty folder there goes; one that is to be replaced stays beside it until the new one is there.
 *
 * @param old where that is; undefined when nothing may be replaced
 */
export async function replaceFolder(out: string, folder: string, old: string | undefined): Promise<void> {
  // Another merge may put its own there between two steps: then the one that comes later replaces it.
  for (let attempt = 0; ; attempt++) {
    const entries = await readdir(out).catch(() => undefined)
    const isReplaced = entries !== undefined && entries.length > 0 && old !== undefined
    if (entries?.length === 0) await rmdir(out).catch(() => {})
    if (isReplaced) await rename(out, old)
    try {
      await rename(folder, out)
    } catch (error) {
      if (isReplaced) await rename(old, out).catch(() => rm(old, { recursive: true, force: true }))
      const isTaken = ['ENOTEMPTY', 'EEXIST'].includes((error as NodeJS.ErrnoException).code ?? '')
      if (isTaken && old !== undefined && attempt < 3) continue
      if (isTaken) throw new FileError({ where: out, what: 'another merge has written it meanwhile', cause: error })
      throw error
    }
    if (isReplaced) await removeOld(old)
    return
  }
}

/** Gives a file its place, where nothing is yet. */
export async function nameOnce(from: string, to: string): Promise<void> {
  try {
    await link(from, to)
    await unlink(from)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'EEXIST')
      throw new FileError({ where: to, what: 'another merge has written it meanwhile', cause: error })
    // File systems without links.
    if (!['EPERM', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EMLINK', 'EXDEV', 'EACCES'].includes(code ?? '')) throw error
    await rename(from, to)
  }
}

/** Its record goes first: without that a folder is never taken for a whole output. */
async function removeOld(old: string): Promise<void> {
  await rm(path.join(old, RECORD_FILE), { force: true })
  await rm(old, { recursive: true, force: true })
}

/** A merge that was killed between two names has left the earlier output under another: it comes back, or goes if it was replaced. */
export async function restoreOld(out: string): Promise<void> {
  const prefix = path.basename(oldPrefix(out))
  for (const name of await readdir(path.dirname(out))) {
    if (!name.startsWith(prefix) || !/^[0-9a-f]{12}$/.test(name.slice(prefix.length))) continue
    const old = path.join(path.dirname(out), name)
    const isGone = (await stat(out).catch(() => undefined)) === undefined
    const isWhole = (await readdir(old)).includes(RECORD_FILE)
    if (isGone && isWhole) await rename(old, out)
    else await removeOld(old)
  }
}
