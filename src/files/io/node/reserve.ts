// One writer at a time in a folder whose files appear one after the other. The lock is a folder with one file, which
// has the writer's token as its name and says who that is. It appears whole, and only if no lock is there.

import { lstat, mkdir, readdir, readFile, rmdir, stat, unlink, writeFile } from 'node:fs/promises'
import { hostname } from 'node:os'
import path from 'node:path'
import type { Reservation } from '../../../core/base/bytes.js'
import { FileError } from '../../../core/base/errors.js'
import { codeOf, fileError } from './errors.js'
import { isDead, newToken } from './owner.js'
import { isTaken, WholeOutput } from './whole-output.js'

export const LOCK = '.lowrank-writer'

/** Takes a folder, which need not exist. Throws FileError while another process has it. */
export async function reserveFolder(folder: string, what: string): Promise<Reservation> {
  const [lock, token] = [path.join(folder, LOCK), newToken()]
  const output = await WholeOutput.begin(lock)
  try {
    await mkdir(output.made)
    await writeFile(path.join(output.made, token), `process ${process.pid} on ${hostname()}`)
    for (const name of await readdir(lock).catch((): string[] => [])) {
      if (isDead(name)) await unlink(path.join(lock, name)).catch(() => {})
    }
    await output.publish()
  } catch (error) {
    await output.close()
    if (!isTaken((error as FileError).cause)) throw fileError(folder, 'cannot be written', error)
    const isFolder = (await lstat(lock).catch(() => undefined))?.isDirectory() ?? true
    if (!isFolder) throw new FileError({ where: lock, what: 'not a folder, so it is no lock', hint: 'Remove it' })
    const [holder] = await readdir(lock).catch((cause): string[] => {
      if (codeOf(cause) === 'ENOENT') return []
      throw fileError(lock, 'cannot be read', cause)
    })
    // The other writer may have left at this moment.
    if (holder === undefined) return reserveFolder(folder, what)
    const writer = await readFile(path.join(lock, holder), 'utf8').catch(() => 'a process that has just ended')
    throw new FileError({
      where: folder,
      what: `another ${what} is writing here: ${writer}`,
      hint: `Wait until that one ends, or name another folder. If that process has ended, remove ${lock}`,
    })
  }
  await output.close()
  return {
    async release() {
      await unlink(path.join(lock, token)).catch(() => {})
      await rmdir(lock).catch(() => {})
      await output.close()
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
