// A connection to an SQLite file, in a thread of its own: libsql's calls block the thread that makes them.

import { parentPort, workerData } from 'node:worker_threads'
import type Database from 'libsql'

/** What a thread begins with: the address of libsql, the file, and what is run first. */
export interface Beginning {
  readonly libsql: string
  readonly file: string
  readonly script: string
}

/** With parameters, one statement; without, a script. */
export interface Asked {
  readonly id: number
  readonly sql: string
  readonly parameters?: readonly unknown[] | undefined
}

export interface Answered {
  readonly id: number
  readonly rows?: readonly object[]
  readonly changes?: number
  readonly error?: { readonly message: string; readonly code: string | undefined }
}

const MOST_STATEMENTS = 200

const { libsql, file, script } = workerData as Beginning
const statements = new Map<string, Database.Statement>()
let database: Database.Database | undefined
let failure: unknown
try {
  const { default: Opened } = (await import(libsql)) as { default: typeof Database }
  database = new Opened(file)
  database.exec(script)
} catch (error) {
  failure = error
}

parentPort!.on('message', (asked: Asked | undefined) => {
  if (asked === undefined) {
    database?.close()
    process.exit()
  }
  const { id } = asked
  try {
    if (failure !== undefined) throw failure
    parentPort!.postMessage({ id, ...run(asked) } satisfies Answered)
  } catch (error) {
    const { message, code } = error as Error & { code?: string }
    parentPort!.postMessage({ id, error: { message, code } } satisfies Answered)
  }
})

function run({ sql, parameters }: Asked): Omit<Answered, 'id'> {
  if (parameters === undefined) {
    database!.exec(sql)
    return {}
  }
  let statement = statements.get(sql)
  if (statement === undefined) {
    if (statements.size === MOST_STATEMENTS) statements.clear()
    statement = database!.prepare(sql)
    statements.set(sql, statement)
  }
  return statement.reader
    ? { rows: statement.all(parameters) as object[] }
    : { changes: statement.run(parameters).changes }
}
