// A store in an SQLite file. One thread writes and one reads, so that a long list holds up nobody who stores something.
// Changes that come at the same time are committed together, because each commit waits for the disk.

import path from 'node:path'
import { Worker } from 'node:worker_threads'
import { type DatabaseConnection, Kysely, SqliteAdapter, SqliteIntrospector, SqliteQueryCompiler } from 'kysely'
import { Turns } from '../../../core/base/turns.js'
import { HttpError } from '../../http.js'
import { type Store, UNUSABLE } from '../store.js'
import type { Rows, Tables } from '../tables.js'
import type { Answered, Asked, Beginning } from './sqlite-thread.js'

const THREAD = new URL('./sqlite-thread.js', import.meta.url)

/** Changes that are committed together at most. */
const MOST_TOGETHER = 64
/** The log of changes is copied into the database after this many commits. */
const COMMITS_BETWEEN_COPIES = 256

const BOTH =
  'PRAGMA busy_timeout = 10000; PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -8000;'
// The reader copies, so the writer need not wait for it.
const OF_WRITER = `${BOTH} PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0;`
const OF_READER = `${BOTH} PRAGMA query_only = ON;`

/** A store whose database is damaged: every route that needs it says so. */
export function unusableStore(folder: string, damage: string): Store {
  const refuse = () => Promise.reject(unusable(damage))
  return { folder, rows: rowsOf(refuse), write: refuse, stop() {}, async close() {} }
}

function unusable(damage: string): HttpError {
  return new HttpError(503, `The server cannot use its store: ${damage}`, { code: UNUSABLE })
}

/** An error of SQLite, with its code, such as SQLITE_FULL. */
export class SqliteFailure extends Error {
  constructor(
    message: string,
    readonly code: string | undefined,
  ) {
    super(message)
  }
}

export const isDamage = (code = '') => /^SQLITE_(CORRUPT|NOTADB)/.test(code)
const isFull = (code = '') => /^SQLITE_(FULL|IOERR_(WRITE|FSYNC|TRUNCATE|SHMSIZE))/.test(code)

class Thread {
  readonly #worker: Worker
  readonly #waiting = new Map<number, { resolve(answered: Answered): void; reject(error: Error): void }>()
  #asked = 0
  #ended: Error | undefined

  constructor(beginning: Beginning) {
    this.#worker = new Worker(THREAD, { workerData: beginning, execArgv: [], env: {} })
    this.#worker.unref()
    this.#worker.on('message', ({ id, error, ...answered }: Answered) => {
      const waiting = this.#waiting.get(id)!
      this.#waiting.delete(id)
      if (this.#waiting.size === 0) this.#worker.unref()
      if (error === undefined) waiting.resolve({ id, ...answered })
      else waiting.reject(new SqliteFailure(error.message, error.code))
    })
    const end = (error: Error) => {
      this.#ended = error
      for (const { reject } of this.#waiting.values()) reject(error)
      this.#waiting.clear()
    }
    this.#worker.on('error', end)
    this.#worker.on('exit', () => end(new Error('the thread of the database has ended')))
  }

  run(sql: string, parameters?: readonly unknown[]): Promise<Answered> {
    return new Promise((resolve, reject) => {
      if (this.#ended !== undefined) return reject(this.#ended)
      const id = ++this.#asked
      this.#waiting.set(id, { resolve, reject })
      this.#worker.ref()
      this.#worker.postMessage({ id, sql, parameters } satisfies Asked)
    })
  }

  async close(): Promise<void> {
    this.#worker.ref()
    const ended = new Promise((resolve) => this.#worker.once('exit', resolve))
    this.#worker.postMessage(undefined)
    await ended
  }
}

/** Rows by kysely, whose statements run in a thread. */
function rowsOf(run: Thread['run']): Rows {
  const connection: DatabaseConnection = {
    async executeQuery<Result>({ sql, parameters }: { sql: string; parameters: readonly unknown[] }) {
      const { rows = [], changes = 0 } = await run(sql, parameters)
      return { rows: rows as Result[], numAffectedRows: BigInt(changes) }
    },
    // biome-ignore lint/correctness/useYield: nothing is streamed.
    async *streamQuery() {
      throw new Error('rows are read in pages')
    },
  }
  const nothing = async () => {}
  return new Kysely<Tables>({
    dialect: {
      createAdapter: () => new SqliteAdapter(),
      createQueryCompiler: () => new SqliteQueryCompiler(),
      createIntrospector: (rows) => new SqliteIntrospector(rows),
      // `write` makes the transactions.
      createDriver: () => ({
        ...{ init: nothing, destroy: nothing, releaseConnection: nothing },
        ...{ beginTransaction: nothing, commitTransaction: nothing, rollbackTransaction: nothing },
        acquireConnection: async () => connection,
      }),
    },
  })
}

interface Group {
  count: number
  readonly committed: Promise<void>
  resolve(): void
  reject(error: unknown): void
}

export class SqliteStore implements Store {
  readonly rows: Rows
  #opened: Thread | undefined
  readonly #writer: Thread | undefined
  readonly #written: Rows
  readonly #turns = new Turns()
  #pending = 0
  #group: Group | undefined
  #commits = 0
  /** Why nothing can be written or read any more, once that is known. */
  #damage: string | undefined

  /**
   * @param libsql its address
   * @param isReader true beside a server: then nothing can be written
   */
  constructor(
    readonly file: string,
    private readonly libsql: string,
    isReader = false,
  ) {
    this.#writer = isReader ? undefined : new Thread({ libsql, file, script: OF_WRITER })
    this.rows = rowsOf((...asked) => this.#heard(this.#reader.run(...asked)))
    this.#written = rowsOf((...asked) => this.#writer!.run(...asked))
  }

  /** It starts after the writer's first change: before, the file may be no database yet. */
  get #reader(): Thread {
    const { libsql, file } = this
    this.#opened ??= new Thread({ libsql, file, script: OF_READER })
    return this.#opened
  }

  get folder(): string {
    return path.dirname(this.file)
  }

  /** Reads what can be read of a damaged database. */
  get salvage(): Rows {
    return rowsOf((...asked) => this.#reader.run(...asked))
  }

  stop(damage: string): void {
    this.#damage ??= damage
  }

  async write<T>(work: (rows: Rows) => Promise<T>): Promise<T> {
    this.#pending++
    const { value, committed } = await this.#heard(
      this.#turns.take(async () => {
        this.#pending--
        return this.#writeOne(work)
      }),
    )
    await this.#heard(committed)
    return value
  }

  async #writeOne<T>(work: (rows: Rows) => Promise<T>) {
    if (this.#damage !== undefined) throw this.#unusable()
    const writer = this.#writer!
    this.#group ?? (await writer.run('BEGIN IMMEDIATE'))
    this.#group ??= newGroup()
    const group = this.#group
    try {
      await writer.run('SAVEPOINT one')
      const value = await work(this.#written)
      await writer.run('RELEASE one')
      return { value, committed: group.committed }
    } catch (error) {
      // If the disk is full, SQLite may have taken back the whole transaction.
      await writer.run('ROLLBACK TO one; RELEASE one').catch(() => this.#lose(group, error))
      throw error
    } finally {
      const isLast = this.#pending === 0 || ++group.count >= MOST_TOGETHER
      if (isLast && this.#group === group) await this.#commit(group)
    }
  }

  async #commit(group: Group): Promise<void> {
    try {
      await this.#writer!.run('COMMIT')
      this.#group = undefined
      group.resolve()
      if (++this.#commits % COMMITS_BETWEEN_COPIES === 0)
        void this.#reader.run('PRAGMA wal_checkpoint', []).catch(() => {})
    } catch (error) {
      await this.#lose(group, error)
    }
  }

  async #lose(group: Group, error: unknown): Promise<void> {
    this.#group = undefined
    await this.#writer!.run('ROLLBACK').catch(() => {})
    group.reject(error)
  }

  /** Errors as callers hear of them. */
  async #heard<T>(answer: Promise<T>): Promise<T> {
    if (this.#damage !== undefined) throw this.#unusable()
    return answer.catch((error) => {
      if (!(error instanceof SqliteFailure)) throw error
      if (isDamage(error.code)) this.stop(`its database is damaged (${error.message})`)
      if (this.#damage !== undefined) throw this.#unusable()
      if (!isFull(error.code)) throw error
      throw new HttpError(507, 'The disk of the server is full: nothing was stored', { code: 'disk_full' })
    })
  }

  #unusable(): HttpError {
    return unusable(this.#damage!)
  }

  async close(): Promise<void> {
    await this.#turns.idle
    if (this.#damage === undefined) await this.#writer?.run('PRAGMA wal_checkpoint(TRUNCATE)', []).catch(() => {})
    await Promise.all([this.#opened?.close(), this.#writer?.close()])
  }
}

function newGroup(): Group {
  let [resolve, reject]: [() => void, (error: unknown) => void] = [() => {}, () => {}]
  const committed = new Promise<void>((resolved, rejected) => {
    ;[resolve, reject] = [resolved, rejected]
  })
  // Whoever waits for it hears of it.
  committed.catch(() => {})
  return { count: 0, committed, resolve, reject }
}

/** Copies a database as it is now into a new file, also while its server writes. */
export async function vacuumInto(libsql: string, file: string, to: string): Promise<void> {
  await withThread(libsql, file, async (thread) => {
    await quickCheck(thread)
    await thread.run('VACUUM INTO ?', [to])
  })
}

/** @throws SqliteFailure if the database is damaged */
export function checkWhole(libsql: string, file: string): Promise<void> {
  return withThread(libsql, file, quickCheck)
}

async function quickCheck(thread: Thread): Promise<void> {
  const { rows = [] } = await thread.run('PRAGMA quick_check(1)', [])
  const [{ quick_check: found }] = rows as [{ quick_check: string }]
  if (found !== 'ok') throw new SqliteFailure(found, 'SQLITE_CORRUPT')
}

async function withThread<T>(libsql: string, file: string, work: (thread: Thread) => Promise<T>): Promise<T> {
  const thread = new Thread({ libsql, file, script: BOTH })
  return work(thread).finally(() => thread.close())
}
