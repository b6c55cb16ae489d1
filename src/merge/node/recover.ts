// What a killed merge left of its last steps, when parts of its output had their names already. Looked at before an output counts
// as there, so that nobody has to clear up by hand.

import { randomBytes } from 'node:crypto'
import { readdir, rename, rm, rmdir, stat } from 'node:fs/promises'
import path from 'node:path'
import { fileError } from '../../io/node/errors.js'
import { type OtherOwner, Owner } from '../../io/node/owners.js'
import type { OutputPlace } from './place.js'
import { removeStaging, restoreOld } from './publish.js'
import { busyError, NOTES_FOLDER, PLAN_FILE, partialPrefix, readNote } from './staging-notes.js'

/** In a claimed folder's notes: which files are getting their names beside the output's. */
export const PUBLISH_FILE = 'publish.json'

const RANDOM_BYTES = 6
const ID_LENGTH = 2 * RANDOM_BYTES

/**
 * Clears up after killed merges. Changes nothing while another merge is at work on this output.
 *
 * @param isOwn whether a plan, by its hash, is the one that is about to be made; the hash is empty where no part is ever kept
 * @returns whether an output was there that only lacks its last steps: it is unfinished output of this plan again
 * @throws FileError when the output has its name already, and its merge is still at work
 */
export async function recoverOutput(
  place: OutputPlace,
  isOwn: (planHash: string) => Promise<boolean>,
): Promise<boolean> {
  const { out, isFile } = place
  try {
    const notes = path.join(out, NOTES_FOLDER)
    const isNamed = !isFile && (await isThere(notes))
    const siblings = await stagingFolders(out)
    const old = (await readdir(path.dirname(out)).catch((): string[] => [])).some((name) =>
      name.startsWith(`${path.basename(out)}.old-`),
    )
    if (!isNamed && !old && !(siblings.length > 0 && isFile)) return false
    const rival = await rivalIn([...siblings, out])
    if (rival !== undefined && isNamed) throw busyError(out, rival)
    if (rival !== undefined) return false
    if (isFile) for (const folder of siblings) await recoverFiles(out, folder)
    const isTaken = isNamed && (await recoverFolder(out, isOwn))
    await restoreOld(out)
    return isTaken
  } catch (error) {
    throw fileError(out, 'cannot be written', error)
  }
}

/** All folders in which this output is or was made. */
export async function stagingFolders(out: string): Promise<string[]> {
  const prefix = path.basename(partialPrefix(out))
  const names = await readdir(path.dirname(out)).catch((): string[] => [])
  const own = names.filter(
    (name) => name.startsWith(prefix) && /^[0-9a-f]{12}(-[0-9a-f]{12})?$/.test(name.slice(prefix.length)),
  )
  return own.map((name) => path.join(path.dirname(out), name))
}

/** Removes the notes of an output that has its name. The plan goes last: with it the output counts as unfinished. */
export async function removeNotes(out: string): Promise<void> {
  const notes = path.join(out, NOTES_FOLDER)
  for (const name of await readdir(notes)) {
    if (name !== PLAN_FILE) await rm(path.join(notes, name), { recursive: true, force: true })
  }
  await rm(path.join(notes, PLAN_FILE), { force: true })
  await rmdir(notes)
}

/** An output of this plan is unfinished output again. Another one is whole: it stays, without the notes. */
async function recoverFolder(out: string, isOwn: (planHash: string) => Promise<boolean>): Promise<boolean> {
  const plan = (await readNote(out, PLAN_FILE))?.plan
  if (typeof plan !== 'string' || !(await isOwn(plan))) {
    await removeNotes(out)
    return false
  }
  const id = /^[0-9a-f]{12}/.test(plan) ? plan.slice(0, ID_LENGTH) : randomBytes(RANDOM_BYTES).toString('hex')
  await rename(out, `${partialPrefix(out)}${id}-${randomBytes(RANDOM_BYTES).toString('hex')}`)
  return true
}

/** Files that got their names before the output itself did are removed; where the output has its name, what is left beside it goes. */
async function recoverFiles(out: string, folder: string): Promise<void> {
  const files = (await readNote(folder, PUBLISH_FILE))?.files
  if (!Array.isArray(files) || !files.every((name) => typeof name === 'string' && name === path.basename(name))) return
  const isWhole = await hasName(folder, out)
  if (!isWhole) {
    for (const name of files) {
      const target = path.join(path.dirname(out), name)
      if (await hasName(folder, target)) await rm(target, { force: true })
    }
  }
  await removeStaging(folder)
}

/** Whether what was made in the folder for this place is there now, and not a file of somebody else. */
async function hasName(folder: string, target: string): Promise<boolean> {
  const [there, made] = await Promise.all(
    [target, path.join(folder, path.basename(target))].map((file) =>
      stat(file, { bigint: true }).catch(() => undefined),
    ),
  )
  if (there === undefined) return false
  return made === undefined || (made.ino === there.ino && made.dev === there.dev)
}

function rivalIn(folders: readonly string[]): Promise<OtherOwner | undefined> {
  const notes = folders.map((folder) => path.join(folder, NOTES_FOLDER))
  return new Owner(false).firstRival(notes, () => true)
}

async function isThere(target: string): Promise<boolean> {
  return (await stat(target).catch(() => undefined)) !== undefined
}
