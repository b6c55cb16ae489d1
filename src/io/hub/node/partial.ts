// The unfinished part of a download, beside its place. Its name says whose it is: two processes never write into one
// file, one waits while another's grows, and what a process left behind is taken up by the next, by a rename.

import { readdir, rename, stat, unlink, utimes, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { codeOf, withFileErrors } from '../../node/errors.js'
import { isDead, newToken } from '../../node/owner.js'

/**
 * A part that its process has not touched for so long belongs to nobody: a process touches it with each piece and
 * before each new try, which come more often. Only so can a dead process on another machine be told from a slow one.
 */
const QUIET_MS = 120_000

interface Found {
  file: string
  byteLength: number
  isTaken: boolean
}

export class Partial {
  readonly file: string
  readonly #free: string

  constructor(target: string) {
    this.file = `${target}.lowrank-${newToken()}.incomplete`
    this.#free = `${target}.lowrank.incomplete`
  }

  /** Leaves what has come to the next download. Never throws: at worst it starts anew. */
  async release(): Promise<void> {
    await rename(this.file, this.#free).catch(() => {})
  }

  async remove(): Promise<void> {
    await unlink(this.file).catch(() => {})
  }

  /** Shows others that this download goes on. */
  async touch(): Promise<void> {
    const now = new Date()
    await utimes(this.file, now, now).catch(() => {})
  }
}

/** The part to write, with what an earlier download left; or how many bytes the process has that writes one now. */
export async function claimPartial(target: string): Promise<Partial | { busyBytes: number }> {
  const found = await findPartials(target)
  const busy = found.find(({ isTaken }) => isTaken)
  if (busy !== undefined) return { busyBytes: busy.byteLength }
  const partial = new Partial(target)
  await withFileErrors(partial.file, 'cannot be written', async () => {
    for (const { file } of found.sort((a, b) => b.byteLength - a.byteLength)) {
      if (await renamed(file, partial.file)) return partial.touch()
    }
    await writeFile(partial.file, '', { flag: 'wx' })
  })
  return partial
}

export async function removePartials(target: string): Promise<void> {
  for (const { file, isTaken } of await findPartials(target)) if (!isTaken) await unlink(file).catch(() => {})
}

async function findPartials(target: string): Promise<Found[]> {
  const folder = path.dirname(target)
  const prefix = `${path.basename(target)}.lowrank`
  const names = (await readdir(folder).catch(() => [])).filter((name) => name.startsWith(prefix))
  const found = await Promise.all(
    names.map(async (name) => {
      const token = /^-(.+)\.incomplete$/.exec(name.slice(prefix.length))?.[1]
      const file = path.join(folder, name)
      const status = await stat(file).catch(() => undefined)
      if (status === undefined) return []
      const isQuiet = Date.now() - status.mtimeMs > QUIET_MS
      const isTaken = token !== undefined && !isQuiet && !isDead(token)
      return [{ file, byteLength: status.size, isTaken }]
    }),
  )
  return found.flat()
}

/** False where another process was faster. */
async function renamed(from: string, to: string): Promise<boolean> {
  try {
    await rename(from, to)
    return true
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return false
    throw error
  }
}
