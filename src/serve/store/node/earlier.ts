// Folders of earlier servers, which kept each record as a file: FOLDER/KIND/ID/record.json. The records become rows in
// one transaction, and are then moved to before-database/. Bytes stay in place. Whatever has another name is not the
// server's: it stays as it is.

import { isUtf8 } from 'node:buffer'
import { lstat, mkdir, readdir, readFile, rename, rmdir, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { codeOf, fileError, isUnfinishedWork, removeWritten, withFileErrors } from '../../../api/node/parts.js'
import { FileError, listed } from '../../../core/base/errors.js'
import {
  COUNT,
  isObject,
  jsonIn,
  type Kind,
  kind,
  listOf,
  NAME,
  OBJECT,
  type OptionTable,
  oneOf,
  ranged,
  STRING,
} from '../../../core/base/options.js'
import type { Job } from '../../jobs/job.js'
import { type Chat, insertChat } from '../../jobs/node/completions.js'
import { CONTENT, type FileEntry, insertFile } from '../../jobs/node/files.js'
import { insertEvent, insertJob, type JobEvent, OF_NEW_JOB, offerModel } from '../../jobs/node/job-rows.js'
import { readLines } from '../../jobs/node/results.js'
import type { Store } from '../store.js'
import type { Rows } from '../tables.js'
import { PRIVATE, PRIVATE_FOLDER } from './private.js'

/** A record as earlier servers wrote it. */
type Record = { readonly id: string; readonly owner: string; readonly created_at: number }
type OldJob = Job & { readonly deleted?: readonly string[] }

interface EntryKind {
  /** The word for an entry in error messages. */
  readonly noun: string
  readonly id: RegExp
  readonly record: OptionTable
  /** Files that an earlier server wrote before the record of an entry, or removed after it. */
  readonly files: RegExp
  insert(rows: Rows, record: never, place: string): Promise<void>
}

const SIZE = ranged('an integer of at least 0')
const SECONDS = ranged('a finite number')
const orAbsent = ({ expected, accepts }: Kind) => kind(expected, (value) => value === undefined || accepts(value))
const OWNED = { owner: STRING, created_at: SECONDS, expires_at: orAbsent(SECONDS) }
const ANSWER = kind('a chat completion', (value) => {
  const [choice] = isObject(value) && Array.isArray(value.choices) ? value.choices : []
  return isObject(choice) && isObject(choice.message)
})

export const KINDS: Readonly<{ [Name in 'files' | 'jobs' | 'completions']: EntryKind }> = {
  files: {
    noun: 'file',
    id: /^file-[0-9a-f]{24}$/,
    record: { bytes: SIZE, filename: STRING, purpose: STRING },
    files: new RegExp(`^${CONTENT.replace('.', '\\.')}$`),
    async insert(rows, { id, owner, created_at, expires_at, bytes, filename, purpose }: FileEntry) {
      const file = { id, owner, created_at, expires_at: expires_at ?? null, bytes, filename, purpose, digest: null }
      await insertFile(rows, file)
    },
  },
  jobs: {
    noun: 'job',
    id: /^ftjob-[0-9a-f]{24}$/,
    record: {
      ...{ model: STRING, base: STRING, suffix: STRING, training_file: STRING, lowrank: OBJECT, turns: SIZE },
      ...{ hyperparameters: OBJECT, checkpointEvery: COUNT, checkpoints: listOf(OBJECT), deleted: listOf(STRING) },
      method: oneOf('supervised', 'dpo', 'reinforcement'),
      status: oneOf('validating_files', 'queued', 'running', 'succeeded', 'failed', 'cancelled'),
    },
    files: new RegExp(`${OF_NEW_JOB.source}|^events\\.jsonl$`),
    async insert(rows, { deleted = [], ...job }: OldJob, place) {
      await insertJob(rows, job)
      for (const { step, created_at, isResult } of job.checkpoints) {
        if (!isResult || job.status !== 'cancelled')
          await offerModel(rows, job, created_at, isResult ? undefined : step)
      }
      if (deleted.length > 0)
        await rows.updateTable('models').set({ is_deleted: 1 }).where('name', 'in', deleted).execute()
      // Events that cannot be read cost the job nothing else.
      for (const event of await readLines<JobEvent>(path.join(place, EVENTS)).catch(() => [])) {
        const { id, created_at, level, message, data } = event
        if (!STRING.accepts(id) || !STRING.accepts(message) || !SECONDS.accepts(created_at)) continue
        const row = { id, job: job.id, created_at, level: level ?? 'info', message }
        await insertEvent(rows, { ...row, data: isObject(data) ? JSON.stringify(data) : null })
      }
    },
  },
  completions: {
    noun: 'stored completion',
    id: /^chatcmpl-[\w-]+$/,
    record: { messages: listOf(OBJECT), answer: ANSWER, metadata: OBJECT },
    files: /^$/,
    insert: (rows, chat: Chat) => insertChat(rows, chat),
  },
}
type KindName = keyof typeof KINDS
const TABLES = { files: 'files', jobs: 'jobs', completions: 'chats' } as const

const RECORD = 'record.json'
const EVENTS = 'events.jsonl'
const ALIASES = 'aliases.json'
const MARKER = 'lowrank-server.json'
/** Earlier servers refuse a folder in which a completion has such a name. */
const NOW_IN = 'now-in-the-database'
export const BEFORE = 'before-database'

/** Records that are read before they are written. */
const BATCH = 200

/** The names in a folder, but for those of the file system and hidden ones. */
export async function namesOf(folder: string): Promise<string[]> {
  const names = await withFileErrors(folder, 'cannot be read', () => readdir(folder))
  return names.filter((name) => !name.startsWith('.') && name !== 'lost+found').sort()
}

/** True for a folder without a record in which nothing is that an earlier server did not write before the record. */
async function isUnfinished(folder: string, { files }: EntryKind): Promise<boolean> {
  const entries = await withFileErrors(folder, 'cannot be read', () => readdir(folder, { withFileTypes: true }))
  return entries.every((entry) => isUnfinishedWork(entry.name) || (entry.isFile() && files.test(entry.name)))
}

function isThere(file: string): Promise<boolean> {
  return lstat(file).then(
    () => true,
    () => false,
  )
}

/**
 * Checks a folder without a database: it must be empty, or an earlier server's.
 *
 * @throws FileError if it has other things in it
 */
export async function requireOurs(folder: string): Promise<void> {
  if (await isThere(path.join(folder, MARKER))) return
  let records = 0
  const [others, strange]: string[][] = [[], []]
  for (const name of await namesOf(folder)) {
    if (!Object.hasOwn(KINDS, name)) {
      // Earlier servers kept unfinished uploads in `uploads`.
      if (!name.startsWith(ALIASES) && name !== 'uploads') others.push(name)
      continue
    }
    const entryKind = KINDS[name as KindName]
    for (const id of await namesOf(path.join(folder, name))) {
      const place = path.join(folder, name, id)
      const hasRecord = entryKind.id.test(id) && (await isThere(path.join(place, RECORD)))
      if (hasRecord) records++
      else if (!entryKind.id.test(id) || !(await isUnfinished(place, entryKind))) strange.push(`${name}/${id}`)
    }
  }
  const foreign = records === 0 ? [...strange, ...others] : strange
  if (foreign.length === 0) return
  throw new FileError({
    where: folder,
    what: 'it has other things in it',
    got: listed(foreign, 'entries'),
    hint: 'Give an empty or a new folder',
  })
}

/**
 * Makes rows of all records that can be read, and moves them to before-database/. The others are named and stay. A
 * server that is killed meanwhile makes the same rows at its next start.
 */
export async function takeOver(store: Store, onError: (error: unknown) => void): Promise<void> {
  const root = store.folder
  // Later, records may have become readable.
  const isFirst = !(await isThere(path.join(root, 'completions', NOW_IN)))
  const places: { readonly name: KindName; readonly id: string; readonly created_at: number }[] = []
  for (const name of Object.keys(KINDS) as KindName[]) {
    for (const id of await namesOf(path.join(root, name)).catch(ignoreAbsent)) {
      if (name === 'completions' && id === NOW_IN) continue
      try {
        // A server that was killed meanwhile may have moved its record already.
        const isKnown = isFirst && (await isRow(store.rows, name, id))
        const record = await readRecord(root, name, id, isFirst && !isKnown)
        if (record !== undefined) places.push({ name, id, created_at: record.created_at })
        else if (isKnown && name === 'completions') await removeEmpty(path.join(root, name, id))
      } catch (error) {
        onError(error)
      }
    }
  }
  const aliases = await readAliases(path.join(root, ALIASES), onError)
  if (places.length === 0 && aliases === undefined && !isFirst) return
  places.sort((a, b) => a.created_at - b.created_at || (a.id < b.id ? -1 : 1))
  await store.write(async (rows) => {
    const countsOf = () => Promise.all(Object.values(TABLES).map((table) => countOf(rows, table)))
    const before = await countsOf()
    let added = 0
    for (let i = 0; i < places.length; i += BATCH) {
      for (const { name, id } of places.slice(i, i + BATCH)) {
        if (await isRow(rows, name, id)) continue
        const record = (await readRecord(root, name, id, false))!
        await KINDS[name].insert(rows, record as never, path.join(root, name, id))
        added++
      }
    }
    for (const { name, model, created } of aliases ?? []) {
      const row = { name, model, created_at: created }
      await rows
        .insertInto('aliases')
        .values(row)
        .onConflict((conflict) => conflict.doNothing())
        .execute()
    }
    const sum = (counts: readonly number[]) => counts.reduce((total, count) => total + count, 0)
    const grown = sum(await countsOf()) - sum(before)
    if (grown === added) return
    throw new FileError({ where: root, what: `${added} records became ${grown} rows`, hint: 'Nothing was changed' })
  })
  for (const { name, id } of places) await moveRecord(root, name, id)
  if (aliases !== undefined) await move(root, ALIASES)
  if (!isFirst) return
  await mkdir(path.join(root, 'completions', NOW_IN), PRIVATE_FOLDER)
  const text = 'The records of this folder are in store.sqlite, which earlier versions of lowrank cannot read.\n'
  await writeFile(path.join(root, 'completions', NOW_IN, 'README.txt'), text, PRIVATE)
  if (await isThere(path.join(root, MARKER))) await move(root, MARKER)
}

const ignoreAbsent = (error: FileError): string[] => {
  if (codeOf(error.cause) === 'ENOENT') return []
  throw error
}

async function isRow(rows: Rows, name: KindName, id: string): Promise<boolean> {
  const table = TABLES[name] as 'jobs'
  return (await rows.selectFrom(table).select('id').where('id', '=', id).execute()).length > 0
}

async function countOf(rows: Rows, table: (typeof TABLES)[KindName]): Promise<number> {
  const { n } = await rows
    .selectFrom(table as 'jobs')
    .select(({ fn }) => fn.countAll<number>().as('n'))
    .executeTakeFirstOrThrow()
  return Number(n)
}

/**
 * Returns undefined if there is none.
 *
 * @param mayRemove removes an entry that an earlier server certainly never finished
 */
async function readRecord(root: string, name: KindName, id: string, mayRemove: boolean): Promise<Record | undefined> {
  const entryKind = KINDS[name]
  const place = path.join(root, name, id)
  const file = path.join(place, RECORD)
  if (!entryKind.id.test(id)) {
    throw new FileError({ where: place, what: 'not made by this server; it stays as it is', hint: 'Move it elsewhere' })
  }
  let text: string
  try {
    text = await readFile(file, 'utf8')
  } catch (error) {
    if (codeOf(error) !== 'ENOENT') throw fileError(file, 'cannot be read, and stays as it is', error)
    if (!mayRemove) return undefined
    if (!(await isUnfinished(place, entryKind))) throw fileError(file, 'cannot be read, and stays as it is', error)
    await removeWritten(place, (written) => entryKind.files.test(written))
    return undefined
  }
  const record = jsonIn(text)
  const fits = ([member, { accepts }]: [string, Kind]) => isObject(record) && accepts(record[member])
  const isWhole = isObject(record) && record.id === id && Object.entries({ ...OWNED, ...entryKind.record }).every(fits)
  if (isWhole) return record as unknown as Record
  const what = `not the record of a ${entryKind.noun}; it stays as it is`
  throw new FileError({ where: file, what, hint: 'Repair it, or remove its folder' })
}

async function moveRecord(root: string, name: KindName, id: string): Promise<void> {
  await move(root, path.join(name, id, RECORD))
  if (name === 'jobs') await move(root, path.join(name, id, EVENTS)).catch(() => {})
  if (name === 'completions') await removeEmpty(path.join(root, name, id))
}

const removeEmpty = (folder: string): Promise<void> => rmdir(folder).catch(() => {})

async function move(root: string, file: string): Promise<void> {
  const [from, to] = [path.join(root, file), path.join(root, BEFORE, file)]
  await withFileErrors(from, 'cannot be moved', async () => {
    await mkdir(path.dirname(to), PRIVATE_FOLDER)
    await rename(from, to)
  })
}

interface Alias {
  readonly name: string
  readonly model: string
  readonly created: number
}

const IS_ALIAS = kind('an alias', (value) => {
  return isObject(value) && NAME.accepts(value.name) && NAME.accepts(value.model) && Number.isFinite(value.created)
})
const IS_ALIASES = listOf(IS_ALIAS)

/** Returns undefined if there is no such file, or none that can be read. */
async function readAliases(file: string, onError: (error: unknown) => void): Promise<readonly Alias[] | undefined> {
  let bytes: Buffer
  try {
    bytes = await readFile(file)
  } catch (error) {
    if (codeOf(error) !== 'ENOENT') onError(fileError(file, 'cannot be read, and stays as it is', error))
    return undefined
  }
  const text = bytes.toString()
  const stored = jsonIn(text)
  if (IS_ALIASES.accepts(stored) && isUtf8(bytes)) return stored as readonly Alias[]
  const aliases = aliasesIn(text)
  const got = `${aliases.length} that can be read, and go on`
  onError(new FileError({ where: file, what: 'not a list of aliases', got, hint: `It is in ${BEFORE} as it was` }))
  return aliases
}

/** The aliases that are whole in a damaged file. Bytes that are no text make no name. */
function aliasesIn(text: string): Alias[] {
  const objects = text.match(/\{(?:[^{}"]|"(?:[^"\\]|\\.)*")*\}/g) ?? []
  return objects.flatMap((object) => {
    const value = jsonIn(object)
    return IS_ALIAS.accepts(value) && !object.includes('\uFFFD') ? [value as Alias] : []
  })
}
