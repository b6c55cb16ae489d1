// Takes a folder for a server that trains. A marker says that it is the server's.

import { lstat } from 'node:fs/promises'
import path from 'node:path'
import { FileError, listed } from '../../../core/base/errors.js'
import { isUnfinished, KINDS, type KindName, namesOf } from './kinds.js'
import { ALIASES } from './models.js'
import { RECORD, writePrivate } from './store.js'

const MARKER = 'lowrank-server.json'

/**
 * Makes a folder the server's. One without the marker is taken if it is empty, or if all that is where the server
 * keeps its entries is the server's.
 *
 * @throws FileError if it has other things in it
 */
export async function claimFolder(folder: string): Promise<void> {
  const marker = path.join(folder, MARKER)
  if (await isThere(marker)) return
  let records = 0
  const [others, strange]: string[][] = [[], []]
  for (const name of await namesOf(folder)) {
    if (!Object.hasOwn(KINDS, name)) {
      if (!name.startsWith(ALIASES) && name !== 'uploads') others.push(name) // Earlier servers kept unfinished uploads there.
      continue
    }
    const entryKind = KINDS[name as KindName]
    for (const id of await namesOf(path.join(folder, name))) {
      const place = path.join(folder, name, id)
      const hasRecord = entryKind.id.test(id) && (await isThere(path.join(place, RECORD)))
      if (hasRecord) records++
      else if (!entryKind.id.test(id) || !(await isUnfinished(place, entryKind))) strange.push(`${name}/${id}`)
    }
  }
  const foreign = records === 0 ? [...strange, ...others] : strange
  if (foreign.length > 0) {
    throw new FileError({
      where: folder,
      what: 'it has other things in it',
      got: listed(foreign, 'entries'),
      hint: 'Give an empty or a new folder',
    })
  }
  await writePrivate(marker, `${JSON.stringify({ version: 1, kind: 'training server' })}\n`)
}

function isThere(file: string): Promise<boolean> {
  return lstat(file).then(
    () => true,
    () => false,
  )
}
