// The tables in which a server keeps what callers leave. SQLite and Postgres have the same ones. Bytes are in files:
// rows name them.

import { type CreateTableBuilder, type Generated, type Kysely, type Migration, type Selectable, sql } from 'kysely'

/** A row's place in lists: larger than that of each earlier row of its table. */
type Seq = Generated<number>

interface Owned {
  readonly seq: Seq
  readonly id: string
  /** Name of a key. */
  readonly owner: string
  /** Seconds since 1970, as in all tables. */
  readonly created_at: number
}

export interface Tables {
  files: Owned & {
    expires_at: number | null
    bytes: number
    filename: string
    purpose: 'fine-tune' | 'fine-tune-results'
    /** SHA-256 of the content. Null for files of earlier servers. */
    digest: string | null
  }
  jobs: Owned & {
    status: string
    is_paused: number
    /** The job as JSON. */
    record: string
  }
  events: {
    seq: Seq
    id: string
    job: string
    created_at: number
    level: string
    message: string
    /** JSON, or null for a plain message. */
    data: string | null
  }
  /** Models that jobs made. A deleted model keeps its name. */
  models: {
    seq: Seq
    name: string
    job: string
    owner: string
    /** Its folder in that of the job. */
    place: string
    created_at: number
    is_deleted: number
  }
  aliases: { name: string; model: string; created_at: number }
  /** Stored chats. Messages, tools, answer and metadata are JSON. */
  chats: Owned & {
    model: string
    bytes: number
    messages: string
    tools: string | null
    answer: string
    metadata: string
  }
  /** What lists can be filtered by: the model as `model`, and metadata as `metadata.NAME`. */
  labels: { kind: LabelKind; seq: number; name: string; owner: string; value: string }
  /** What each owner has of a kind, kept up to date with its rows. */
  sums: { owner: string; kind: 'files' | 'chats'; count: number; bytes: number }
  /** Folders that a server fills, and folders that it removes. What is in them may go at the next start. */
  unfinished: { place: string }
}

/** A table that is being made. Its columns are checked by `Tables`, not here. */
type Table = CreateTableBuilder<string, string>

export type LabelKind = 'chats' | 'jobs'
export type Row<Name extends keyof Tables> = Selectable<Tables[Name]>
export type Rows = Kysely<Tables>

/** A change of these tables is a further migration. A server refuses a store with migrations that it does not know. */
export function migrations(isPostgres: boolean): Record<string, Migration> {
  const withSeq = (table: Table) =>
    isPostgres
      ? table.addColumn('seq', 'bigint', (column) => column.primaryKey().generatedAlwaysAsIdentity())
      : table.addColumn('seq', 'integer', (column) => column.primaryKey().autoIncrement())
  const withTexts = (table: Table, ...names: string[]) =>
    names.reduce((made, name) => made.addColumn(name, 'text', (column) => column.notNull()), table)
  const withNumbers = (table: Table, ...names: string[]) =>
    names.reduce((made, name) => made.addColumn(name, 'bigint', (column) => column.notNull()), table)
  return {
    '1': {
      async up(rows: Kysely<unknown>) {
        const table = (name: string) => rows.schema.createTable(name) as Table
        const index = (on: string, ...columns: string[]) =>
          rows.schema
            .createIndex(`${on}_by_${columns.join('_')}`)
            .on(on)
            .columns(columns)
            .execute()
        const owned = (name: string, ...texts: string[]) =>
          withNumbers(withTexts(withSeq(table(name)), 'id', 'owner', ...texts), 'created_at') //
            .addUniqueConstraint(`${name}_id`, ['id'])
        await withNumbers(owned('files', 'filename', 'purpose'), 'bytes')
          .addColumn('expires_at', 'bigint')
          .addColumn('digest', 'text')
          .execute()
        await withNumbers(owned('jobs', 'status', 'record'), 'is_paused').execute()
        await withNumbers(owned('chats', 'model', 'messages', 'answer', 'metadata'), 'bytes')
          .addColumn('tools', 'text')
          .execute()
        for (const name of ['files', 'jobs', 'chats']) {
          await index(name, 'owner', 'seq')
          await index(name, 'created_at', 'seq')
        }
        await index('files', 'expires_at')
        await index('jobs', 'status', 'seq')
        await withNumbers(withTexts(withSeq(table('events')), 'id', 'job', 'level', 'message'), 'created_at')
          .addColumn('data', 'text')
          .addUniqueConstraint('events_id', ['id'])
          .addForeignKeyConstraint('events_job', ['job'], 'jobs', ['id'], (key) => key.onDelete('cascade'))
          .execute()
        await index('events', 'job', 'seq')
        await withNumbers(
          withTexts(withSeq(table('models')), 'name', 'job', 'owner', 'place'),
          'created_at',
          'is_deleted',
        )
          .addUniqueConstraint('models_name', ['name'])
          .addForeignKeyConstraint('models_job', ['job'], 'jobs', ['id'], (key) => key.onDelete('cascade'))
          .execute()
        await index('models', 'owner')
        await withNumbers(withTexts(table('aliases'), 'name', 'model'), 'created_at')
          .addPrimaryKeyConstraint('aliases_name', ['name'])
          .execute()
        const labels = withNumbers(withTexts(table('labels'), 'kind', 'name', 'owner', 'value'), 'seq') //
          .addPrimaryKeyConstraint('labels_row', ['kind', 'seq', 'name'])
        await (isPostgres ? labels : labels.modifyEnd(sql`without rowid`)).execute()
        await index('labels', 'kind', 'owner', 'name', 'value', 'seq')
        await index('labels', 'kind', 'name', 'value', 'seq')
        await withNumbers(withTexts(table('sums'), 'owner', 'kind'), 'count', 'bytes')
          .addPrimaryKeyConstraint('sums_of', ['owner', 'kind'])
          .execute()
        await withTexts(table('unfinished'), 'place').addPrimaryKeyConstraint('unfinished_place', ['place']).execute()
      },
    },
  }
}
