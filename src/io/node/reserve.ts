// One writer at a time in a folder whose files appear one after the other, on any number of hosts that see it.

import { readdir, rm } from 'node:fs/promises'
import path from 'node:path'
import type { Reservation } from '../../base/bytes.js'
import { FileError } from '../../base/errors.js'
import { fileError } from './errors.js'
import { removeEmptyFolders } from './folders.js'
import { enterFolder, Owner } from './owners.js'

/** In the folder: who writes there. */
const NOTES_FOLDER = '.lowrank-writer'

/**
 * Takes a folder, which need not exist, for this process.
 *
 * @param what writes there, for messages
 * @throws FileError while another process has it, or when it cannot be written to
 */
export async function reserveFolder(folder: string, what: string): Promise<Reservation> {
  const notes = path.join(folder, NOTES_FOLDER)
  const owner = new Owner(false)
  let outermost = notes
  const release = async () => {
    await owner.leave()
    await removeEmptyFolders(notes, outermost)
  }
  try {
    outermost = (await enterFolder(owner, notes)) ?? notes
    const rival = await owner.firstRival([notes], () => true)
    if (rival !== undefined) {
      throw new FileError({
        where: folder,
        what: `another ${what} is writing here: process ${rival.process} on ${rival.host}`,
        hint: 'Wait until that one ends, or name another folder',
      })
    }
    await owner.removeGone()
    await removeUnknown(notes, owner.token)
  } catch (error) {
    await release()
    throw fileError(folder, 'cannot be written', error)
  }
  return {
    release,
    async check() {
      if (await owner.isIn()) return
      throw new FileError({
        where: folder,
        what: `another ${what} has taken over this folder`,
        hint: `Run one ${what} at a time in a folder`,
      })
    },
  }
}

/** Files of processes that were killed before their record was whole: a record appears whole, so that nobody else's is among them. */
async function removeUnknown(notes: string, token: string): Promise<void> {
  const names = await readdir(notes)
  const known = new Set(names.flatMap((name) => /^owner-([0-9a-f]+)\.json$/.exec(name)?.[1] ?? []))
  for (const name of names) {
    const owner = /^(?:owner|beat)-([0-9a-f]+)/.exec(name)?.[1]
    if (owner === undefined || owner === token || known.has(owner)) continue
    await rm(path.join(notes, name), { force: true })
  }
}
