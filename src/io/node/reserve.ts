// One writer at a time in a folder whose files appear one after the other. The lock is a folder with one file, which
// has the writer's token as its name and its host as content. It gets its name by a rename, which fails if a lock is
// there.

import { mkdir, readdir, readFile, rename, rm, rmdir, stat, unlink, writeFile } from 'node:fs/promises'
import { hostname } from 'node:os'
import path from 'node:path'
import type { Reservation } from '../../base/bytes.js'
import { FileError } from '../../base/errors.js'
import { codeOf, fileError } from './errors.js'
import { makeFolders, removeEmptyFolders } from './folders.js'
import { isAlive, isDead, newToken, processOf, TOKEN } from './owner.js'

const LOCK = '.lowrank-writer'
const UNFINISHED_LOCK = new RegExp(`^\\.lowrank-writer\\.(${TOKEN})$`)
/** One that leaves may remove the folder at the same moment: then it is made again. */
const MAX_ATTEMPTS = 20

/** Takes a folder, which need not exist. Throws FileError while another process has it. */
export async function reserveFolder(folder: string, what: string): Promise<Reservation> {
  const token = newToken()
  const [lock, own] = [path.join(folder, LOCK), path.join(folder, `${LOCK}.${token}`)]
  let firstMade: string | undefined
  try {
    for (let attempt = 1; ; attempt++) {
      try {
        firstMade = (await makeFolders(folder)) ?? firstMade
        await mkdir(own, { recursive: false })
        await writeFile(path.join(own, token), hostname())
        break
      } catch (error) {
        if (codeOf(error) !== 'ENOENT' || attempt === MAX_ATTEMPTS) throw error
      }
    }
    await take(own, lock, what)
    await removeDeadLocks(folder)
  } catch (error) {
    await rm(own, { recursive: true, force: true }).catch(() => {})
    await removeEmptyFolders(folder, firstMade)
    throw fileError(folder, 'cannot be written', error)
  }
  return {
    async release() {
      await unlink(path.join(lock, token)).catch(() => {})
      await rmdir(lock).catch(() => {})
      await removeEmptyFolders(folder, firstMade)
    },
    async check() {
      if ((await stat(path.join(lock, token)).catch(() => undefined)) !== undefined) return
      throw new FileError({
        where: folder,
        what: `another ${what} has taken over this folder, or its lock ${LOCK} was removed`,
        hint: `Run one ${what} at a time in a folder`,
      })
    },
  }
}

/** Removes the files of dead processes from the lock; an empty lock belongs to nobody. */
async function take(own: string, lock: string, what: string): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      await rmdir(lock).catch(() => {})
      return await rename(own, lock)
    } catch (error) {
      if (attempt === MAX_ATTEMPTS || !['ENOTEMPTY', 'EEXIST', 'EPERM'].includes(codeOf(error) ?? '')) throw error
      for (const name of await readdir(lock).catch((): string[] => [])) {
        if (isDead(name)) await rm(path.join(lock, name), { force: true })
        else throw await busyError(lock, name, what)
      }
    }
  }
}

async function busyError(lock: string, token: string, what: string): Promise<FileError> {
  const host = await readFile(path.join(lock, token), 'utf8').catch(() => 'another host')
  const pid = processOf(token) ?? 'unknown'
  return new FileError({
    where: path.dirname(lock),
    what: `another ${what} is writing here: process ${pid} on ${host}`,
    hint: isAlive(token)
      ? 'Wait until that one ends, or name another folder'
      : `Wait until that one ends, or name another folder. If that process has ended, remove ${lock}`,
  })
}

async function removeDeadLocks(folder: string): Promise<void> {
  for (const name of await readdir(folder)) {
    const token = UNFINISHED_LOCK.exec(name)?.[1]
    if (token !== undefined && isDead(token)) await rm(path.join(folder, name), { recursive: true, force: true })
  }
}
