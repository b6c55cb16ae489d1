// What whoever has the folder of a server does with its store, also while the server runs.

import path from 'node:path'
import type { StoredChoice } from '../../jobs/node/completions.js'
import { SERVER } from '../../keys.js'
import { withKysely } from './peers.js'
import type { Exported } from './verbs.js'

/**
 * Records of the completions that a server has stored in its folder of training, as lines of JSON. The server may run
 * meanwhile.
 *
 * @param folder the folder of `lowrank serve --train`
 * @throws FileError if the folder has no store; UnsupportedError without the packages `libsql` and `kysely`
 *
 * @example
 * import { storedRows } from 'lowrank/server'
 *
 * const rows = await storedRows('jobs', { metadata: { rating: 'good' } })
 */
export async function storedRows(folder: string, choice: StoredChoice): Promise<string> {
  const { openBeside } = await withKysely(() => import('./open.js'))
  const { Completions } = await import('../../jobs/node/completions.js')
  const store = await openBeside(path.resolve(folder))
  try {
    const limits = { maxStored: 0, maxStoredBytes: 0, maxAge: Number.POSITIVE_INFINITY }
    return await new Completions(store, limits).rows(SERVER, choice)
  } finally {
    await store.close()
  }
}

const verbs = () => withKysely(() => import('./verbs.js'))

/**
 * Looks for what is wrong with a store: damage of the database, rows without their bytes, and bytes without a row.
 * Nothing is changed. Returns a sentence for each fault.
 *
 * @param folder the folder of `lowrank serve --train`
 * @throws FileError if the folder has no store
 *
 * @example
 * import { checkStore } from 'lowrank/server'
 *
 * console.log(await checkStore('out/training'))
 */
export async function checkStore(folder: string): Promise<string[]> {
  return (await verbs()).check(path.resolve(folder))
}

/**
 * Copies a store into a new folder: the rows, the bytes (as links where they never change), and a list of digests.
 *
 * @param to is there as a whole afterwards, or not at all
 * @returns how many files the backup has
 * @throws FileError if something is at `to`, or if the folder has no store
 *
 * @example
 * import { backUpStore } from 'lowrank/server'
 *
 * await backUpStore('out/training', 'out/backup')
 */
export async function backUpStore(folder: string, to: string): Promise<{ readonly files: number }> {
  return (await verbs()).backUp(path.resolve(folder), path.resolve(to))
}

/**
 * Makes the folder of a server from a backup, and checks the digest of each file.
 *
 * @param to a new folder, which is there as a whole afterwards, or not at all
 * @throws FileError for a file that is damaged or missing
 *
 * @example
 * import { restoreStore } from 'lowrank/server'
 *
 * await restoreStore('out/backup', 'out/training-again')
 */
export async function restoreStore(backup: string, to: string): Promise<{ readonly files: number }> {
  return (await verbs()).restore(path.resolve(backup), path.resolve(to))
}

/**
 * Writes the rows of a store as JSON lines, a file for each table. Of a damaged database, it writes all rows that can
 * be read.
 *
 * @param to a new folder
 * @returns for each table, how many rows were written, and how many could not be read
 * @throws FileError if the folder has no store
 *
 * @example
 * import { exportStore } from 'lowrank/server'
 *
 * const { chats } = await exportStore('out/training', 'out/rows')
 * console.log(`${chats.rows} chats`)
 */
export async function exportStore(folder: string, to: string): Promise<Exported> {
  return (await verbs()).exportRows(path.resolve(folder), path.resolve(to))
}
