// Opens the store of a server: its folder, its database, and what an earlier server left there.

import { lstat, mkdir, open, rm, stat, statfs } from 'node:fs/promises'
import path from 'node:path'
import { Migrator } from 'kysely'
import { RUN_FILES, removeWritten } from '../../../api/node/parts.js'
import { FileError, messageOf } from '../../../core/base/errors.js'
import { resolvePeer } from '../../../core/base/node/peers.js'
import { CONTENT } from '../../jobs/node/files.js'
import { OF_NEW_JOB } from '../../jobs/node/job-rows.js'
import { isUnusable, type Store } from '../store.js'
import { migrations, type Rows } from '../tables.js'
import { KINDS, namesOf, requireOurs, takeOver } from './earlier.js'
import { notInstalled } from './peers.js'
import { PRIVATE, PRIVATE_FOLDER } from './private.js'
import { checkWhole, SqliteStore } from './sqlite.js'

export const DATABASE = 'store.sqlite'
/** The fault of a database that cannot be used. */
export const DAMAGED = 'the database is damaged'
const HINT =
  'It stays as it is. lowrank store restore BACKUP DIR restores a backup, and store export DIR saves what can be read'

/** Is there while a server has the database open. */
const MARK = 'store.open'
const HEADER = 'SQLite format 3\0'

/** Types of Linux's `statfs` whose locks do not hold between machines, by linux/magic.h. */
const UNSAFE = new Map([
  [0x6969, 'NFS'],
  [0x517b, 'SMB'],
  [0xff534d42, 'SMB'],
  [0xfe534d42, 'SMB'],
  [0x65735546, 'FUSE'],
])

/** Rows that are compared with the folder at a time. */
const BATCH = 500

/**
 * Opens the store in a folder, and makes it if the folder is empty or an earlier server's.
 *
 * @param onError hears of each thing that does not belong together. It stays as it is
 * @throws FileError if the folder has other things in it, or if the database is damaged
 */
export async function openStore(folder: string, onError: (error: unknown) => void): Promise<Store> {
  const file = path.join(folder, DATABASE)
  const mark = path.join(folder, MARK)
  requireLocks(folder, (await statfs(folder)).type)
  const wasOpen = await isThere(mark)
  if (!(await isThere(file))) await requireOurs(folder)
  else await checkDatabase(file, wasOpen)
  await (await open(file, 'a', PRIVATE.mode)).close()
  const store = new SqliteStore(file, libsql())
  try {
    await store.write((rows) => migrate(rows, file))
    // From the first commit on there is a log of changes, without which the database is not whole.
    await (await open(mark, 'a', PRIVATE.mode)).close().catch(() => {})
    for (const name of Object.keys(KINDS)) await mkdir(path.join(folder, name), PRIVATE_FOLDER)
    await finish(store)
    await takeOver(store, onError)
    await compare(store, onError)
  } catch (error) {
    await store.close()
    throw isUnusable(error) ? new FileError({ where: file, what: DAMAGED, got: messageOf(error), hint: HINT }) : error
  }
  if (wasOpen) {
    // Its server did not stop in order. The models answer meanwhile.
    void checkWhole(libsql(), file).catch((error) => {
      store.stop(`its database is damaged (${messageOf(error)})`)
      onError(new FileError({ where: file, what: DAMAGED, got: messageOf(error), hint: HINT }))
    })
  }
  return Object.assign(store, {
    async close() {
      await rm(mark, { force: true }).catch(() => {})
      await SqliteStore.prototype.close.call(store)
    },
  })
}

/** @throws FileError if SQLite could lose changes on this type of file system */
export function requireLocks(where: string, type: number): void {
  // A type with its highest bit set may come as a negative number.
  const got = UNSAFE.get(type >>> 0)
  if (got === undefined) return
  const what = 'a file system on which SQLite cannot lock its database'
  throw new FileError({ where, what, got, expected: 'a local disk', hint: 'Name a folder on a local disk' })
}

/** Opens a store to read, also beside its server. */
export async function openBeside(folder: string): Promise<Store> {
  const file = path.join(folder, DATABASE)
  if (await isThere(file)) return new SqliteStore(file, libsql(), true)
  const hint =
    'Name the folder of lowrank serve --train. A folder of an earlier version gets its store at the next start'
  throw new FileError({ where: folder, what: `there is no store (${DATABASE}) in it`, hint })
}

/** The address of the package. */
export function libsql(): string {
  const found = resolvePeer('libsql', import.meta.url)
  if (found === undefined) throw notInstalled('libsql')
  return found
}

const isThere = (file: string) =>
  lstat(file).then(
    () => true,
    () => false,
  )

/** Looks at the file without opening it as a database, which could change it. */
async function checkDatabase(file: string, wasOpen: boolean): Promise<void> {
  const damaged = (got: string) => new FileError({ where: file, what: DAMAGED, got, hint: HINT })
  const handle = await open(file).catch((error) => {
    throw damaged(error.code)
  })
  try {
    const { size } = await handle.stat()
    const header = Buffer.alloc(100)
    await handle.read(header, 0, 100, 0)
    const written = header.readUInt16BE(16)
    const page = written === 1 ? 65_536 : written
    const isNew = size === 0 && !wasOpen
    if (isNew) return
    if (header.toString('latin1', 0, 16) !== HEADER) throw damaged('a file without the header of SQLite')
    if (page < 512 || (page & (page - 1)) !== 0 || size % page !== 0) throw damaged(`${size} bytes, which are no pages`)
    const log = await stat(`${file}-wal`).catch(() => undefined)
    if (log === undefined && wasOpen) throw damaged(`no ${path.basename(file)}-wal, though its server did not stop`)
    if (log === undefined && size < page * header.readUInt32BE(28)) throw damaged(`only ${size} bytes`)
  } finally {
    await handle.close()
  }
}

/** @throws FileError for a store of a newer version */
async function migrate(rows: Rows, where: string): Promise<void> {
  const provider = { getMigrations: async () => migrations(false) }
  const { error } = await new Migrator({ db: rows, provider }).migrateToLatest()
  if (error === undefined) return
  if (!String(error).includes('corrupted migrations')) throw error
  throw new FileError({ where, what: 'made by a newer version of lowrank', hint: 'Use that version', cause: error })
}

/** Removes what a server that ended had begun to fill or to remove. */
async function finish(store: Store): Promise<void> {
  for (const { place } of await store.rows.selectFrom('unfinished').selectAll().execute()) {
    const isOurs = (name: string) => name === CONTENT || OF_NEW_JOB.test(name) || RUN_FILES.includes(name)
    await removeWritten(path.join(store.folder, place), isOurs)
    await store.write((rows) => rows.deleteFrom('unfinished').where('place', '=', place).execute())
  }
}

/** Names folders without a row, and rows without their bytes. */
export async function compare(store: Store, onError: (error: unknown) => void): Promise<void> {
  for (const kind of ['files', 'jobs'] as const) {
    const names = await namesOf(path.join(store.folder, kind))
    for (let i = 0; i < names.length; i += BATCH) {
      const some = names.slice(i, i + BATCH)
      const known = await store.rows.selectFrom(kind).select('id').where('id', 'in', some).execute()
      const rest = new Set(some)
      for (const { id } of known) rest.delete(id)
      for (const name of rest) {
        const where = path.join(store.folder, kind, name)
        onError(new FileError({ where, what: 'not in the store of this server; it stays as it is' }))
      }
    }
  }
  for (let last = 0; ; ) {
    const all = store.rows.selectFrom('files').select(['seq', 'id', 'bytes']).orderBy('seq').limit(BATCH)
    const files = await all.where('seq', '>', last).execute()
    await Promise.all(
      files.map(({ id, bytes }) => checkSize(path.join(store.folder, 'files', id, CONTENT), bytes).catch(onError)),
    )
    if (files.length < BATCH) return
    last = files.at(-1)!.seq
  }
}

/** @throws FileError if something damaged the file */
async function checkSize(file: string, bytes: number): Promise<void> {
  const found = await stat(file).catch(() => undefined)
  if (found?.isFile() && found.size === bytes) return
  throw new FileError({ where: file, what: `damaged: not a file of ${bytes} bytes; it stays as it is` })
}
