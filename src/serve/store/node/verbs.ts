// What an operator does with the folder of a server, also while the server runs.

import { copyFile, mkdir, mkdtemp, open, rm, rmdir } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { type RawBuilder, sql } from 'kysely'
import { WholeOutput } from '../../../api/node/parts.js'
import { messageOf } from '../../../core/base/errors.js'
import type { Row, Rows } from '../tables.js'
import { compare, DATABASE, libsql, openBeside } from './open.js'
import { PRIVATE, PRIVATE_FOLDER } from './private.js'
import { checkWhole, SqliteStore } from './sqlite.js'

export { backUp, restore } from './backup.js'

/** What is wrong with a store, in sentences. */
export async function check(folder: string): Promise<string[]> {
  const store = await openBeside(folder)
  try {
    const problems: string[] = []
    const named = (error: unknown) => void problems.push(messageOf(error))
    await checkWhole(libsql(), path.join(folder, DATABASE)).catch(named)
    await compare(store, named).catch(named)
    return problems
  } finally {
    await store.close()
  }
}

/** The tables of an export, with what a line has of a row. */
const LINES = {
  files: ({ seq: _, ...file }: Row<'files'>) => file,
  jobs: ({ record }: Row<'jobs'>) => JSON.parse(record),
  events: ({ seq: _, data, ...event }: Row<'events'>) => ({ ...event, data: data && JSON.parse(data) }),
  models: ({ seq: _, ...model }: Row<'models'>) => model,
  aliases: (alias: Row<'aliases'>) => alias,
  chats: ({ seq: _, bytes: __, model: ___, messages, tools, answer, metadata, ...chat }: Row<'chats'>) => ({
    ...{ ...chat, messages: JSON.parse(messages), tools: tools === null ? undefined : JSON.parse(tools) },
    ...{ answer: JSON.parse(answer), metadata: JSON.parse(metadata) },
  }),
} as const

/** For each table of an export: the rows that were written, and those that could not be read. */
export type Exported = Readonly<Record<string, { readonly rows: number; readonly lost: number }>>

/** Writes all rows that can be read as JSON lines, a file for each table. It reads a copy of the database. */
export async function exportRows(folder: string, to: string): Promise<Exported> {
  const scratch = await mkdtemp(path.join(tmpdir(), 'lowrank-export-'))
  const copied = path.join(scratch, DATABASE)
  const output = await WholeOutput.begin(to)
  let store: SqliteStore | undefined
  try {
    await copyFile(path.join(folder, DATABASE), copied)
    await copyFile(path.join(folder, `${DATABASE}-wal`), `${copied}-wal`).catch(() => {})
    store = new SqliteStore(copied, libsql(), true)
    await mkdir(output.made, PRIVATE_FOLDER)
    const counts: Record<string, { rows: number; lost: number }> = {}
    for (const [table, lineOf] of Object.entries(LINES)) {
      const count = { rows: 0, lost: 0 }
      const file = await open(path.join(output.made, `${table}.jsonl`), 'wx', PRIVATE.mode)
      try {
        for await (const rows of readable(store.salvage, table, count)) {
          await file.write(rows.map((row) => `${JSON.stringify(lineOf(row as never))}\n`).join(''))
          count.rows += rows.length
        }
      } finally {
        await file.close()
      }
      counts[table] = count
    }
    await output.publish()
    return counts
  } finally {
    await store?.close()
    await output.close()
    for (const end of ['', '-wal', '-shm']) await rm(`${copied}${end}`, { force: true })
    await rmdir(scratch).catch(() => {})
  }
}

const BATCH = 256
/** Places that are tried if nothing says where a table ends. */
const MOST_WITHOUT_END = 1 << 16

/** Reads a table by ranges of its places. Halves those that cannot be read until single rows are left. */
async function* readable(rows: Rows, table: string, count: { lost: number }): AsyncGenerator<object[]> {
  const from = sql.table(table)
  const numberOf = async (query: RawBuilder<{ n: number | null }>) => (await query.execute(rows)).rows[0]?.n ?? 0
  const last = await numberOf(sql`select max(rowid) as n from ${from}`).catch(() =>
    // The end of the table cannot be read.
    numberOf(sql`select seq as n from sqlite_sequence where name = ${table}`).catch(() => MOST_WITHOUT_END),
  )
  const ranges: [start: number, end: number][] = [[0, last]]
  for (let range = ranges.pop(); range !== undefined; range = ranges.pop()) {
    const [start, end] = range
    const some = sql<{ place: number }>`select rowid as place, * from ${from} where rowid > ${start} and rowid <= ${end}
      order by rowid limit ${BATCH}`
    const found = await some.execute(rows).catch(() => undefined)
    if (found !== undefined) {
      yield found.rows.map(({ place: _, ...row }) => row)
      if (found.rows.length === BATCH) ranges.push([found.rows.at(-1)!.place, end])
    } else if (end - start === 1) count.lost++
    else {
      const middle = start + Math.floor((end - start) / 2)
      ranges.push([middle, end], [start, middle])
    }
  }
}
