// Files that callers upload, and files with the results of jobs. A content is whole before its row is there.

import { createHash } from 'node:crypto'
import { constants } from 'node:fs'
import { copyFile, link, mkdir, open } from 'node:fs/promises'
import path from 'node:path'
import { codeOf, openFile, removeWritten, textLines, WholeOutput, withFileErrors } from '../../../api/node/parts.js'
import { closing } from '../../../core/base/bytes.js'
import { isObject, jsonIn } from '../../../core/base/options.js'
import { seconds } from '../../adapters.js'
import { checkFields } from '../../fields.js'
import { HttpError, invalid } from '../../http.js'
import type { Caller } from '../../keys.js'
import { fileStream } from '../../node/streams.js'
import type { Call } from '../../route.js'
import { newId, PRIVATE, PRIVATE_FOLDER, writePrivate } from '../../store/node/private.js'
import { pageOfRows } from '../../store/pages.js'
import { addToSum, requireRow, type Store, sumOf } from '../../store/store.js'
import type { Row, Rows } from '../../store/tables.js'
import { FILE_FIELDS } from '../fields.js'
import { readForm, type Write } from './multipart.js'

export type FileEntry = Row<'files'>

export interface FileLimits {
  readonly maxFileBytes: number
  readonly maxOwnerBytes: number
  /** Seconds that a file stays at most. */
  readonly maxAge: number
}

/** The properties of a file that are known before its content arrives. */
type About = Pick<FileEntry, 'owner' | 'filename'> & { readonly life?: number | undefined }

interface Life {
  readonly seconds: number
}

/** As file systems have it. */
const MAX_NAME = 255

/** The ending tells the trainer how to read it. */
export const CONTENT = 'content.jsonl'

/** Files that are removed at a time. */
const BATCH = 100

export class Files {
  constructor(
    private readonly store: Store,
    private readonly limits: FileLimits,
  ) {}

  /** Removes files that have expired. */
  async sweep(): Promise<void> {
    const oldest = Math.max(0, seconds() - this.limits.maxAge)
    for (;;) {
      const all = this.store.rows.selectFrom('files').selectAll().limit(BATCH)
      const old = await all
        .where(({ eb, or }) => or([eb('created_at', '<', oldest), eb('expires_at', '<', seconds())]))
        .execute()
      for (const file of old) await this.#remove(file)
      if (old.length < BATCH) return
    }
  }

  async get(id: string, caller: Caller, param?: string, status?: number): Promise<FileEntry> {
    const [found] = await this.store.rows.selectFrom('files').selectAll().where('id', '=', id).execute()
    return requireRow(found && this.#isThere(found) ? found : undefined, caller, 'file', id, param, status)
  }

  #isThere({ created_at, expires_at }: FileEntry): boolean {
    return Math.min(expires_at ?? Number.POSITIVE_INFINITY, created_at + this.limits.maxAge) >= seconds()
  }

  #folderOf(id: string): string {
    return path.join(this.store.folder, 'files', id)
  }

  async retrieve({ id, caller }: Pick<Call, 'id' | 'caller'>): Promise<object> {
    return wireFile(await this.get(id, caller))
  }

  /** Links a file to a second place, where it stays if the file is deleted. Copies it if it cannot be linked. */
  async keep({ id }: FileEntry, to: string): Promise<void> {
    const content = path.join(this.#folderOf(id), CONTENT)
    await link(content, to).catch((error) => {
      if (!['EXDEV', 'EPERM', 'ENOSYS', 'ENOTSUP', 'EMLINK'].includes(codeOf(error) ?? '')) throw error
      return copyFile(content, to, constants.COPYFILE_EXCL)
    })
  }

  list({ request, caller }: Call): Promise<object> {
    const purpose = new URL(request.url).searchParams.get('purpose')
    const oldest = Math.max(0, seconds() - this.limits.maxAge)
    const young = this.store.rows.selectFrom('files').selectAll().where('created_at', '>=', oldest)
    const there = young.where(({ eb, or }) => or([eb('expires_at', 'is', null), eb('expires_at', '>=', seconds())]))
    const own = caller.isAdmin ? there : there.where('owner', '=', caller.name)
    const from = purpose === null ? own : own.where('purpose', '=', purpose as FileEntry['purpose'])
    return pageOfRows(this.store, { request, from, most: 10_000 }, wireFile)
  }

  create(call: Call): Promise<object> {
    const { maxFileBytes } = this.limits
    const owner = call.caller.name
    return this.#receive(owner, maxFileBytes, async (write) => {
      let filename = ''
      const given = await readForm(call, maxFileBytes, (field, name) => {
        if (field !== 'file') throw invalid('file', 'the form has another file')
        if (name.length > MAX_NAME) throw invalid('file', `its name is longer than ${MAX_NAME} characters`)
        filename = name
        return write
      })
      const { 'expires_after[anchor]': anchor, 'expires_after[seconds]': lasting, ...others } = given
      const life = (anchor ?? lasting) === undefined ? {} : { expires_after: { anchor, seconds: Number(lasting) } }
      const { expires_after } = checkFields({ ...others, ...life }, FILE_FIELDS) as { expires_after?: Life }
      return { owner, filename, life: expires_after?.seconds }
    })
  }

  /** Writes the content of a file that the server makes. `insertFile` adds its row. */
  async write(id: string, text: string): Promise<Pick<FileEntry, 'bytes' | 'digest'>> {
    await mkdir(this.#folderOf(id), PRIVATE_FOLDER)
    await writePrivate(path.join(this.#folderOf(id), CONTENT), text)
    return { bytes: Buffer.byteLength(text), digest: createHash('sha256').update(text).digest('hex') }
  }

  async createFrom({ caller }: Call, text: string): Promise<object> {
    if (text === '') throw invalid('lowrank', 'no stored completion fits')
    await this.#requireRoom(this.store.rows, caller.name, Buffer.byteLength(text))
    return this.#made(async (id) => {
      const about = { id, owner: caller.name, created_at: seconds(), filename: 'stored.jsonl', expires_at: null }
      return { ...about, purpose: 'fine-tune', ...(await this.write(id, text)) }
    })
  }

  async content({ id, caller }: Call): Promise<Response> {
    const file = await this.get(id, caller)
    const place = path.join(this.#folderOf(id), CONTENT)
    const content = await withFileErrors(place, 'cannot be read', () => open(place))
    return new Response(fileStream(content, file.bytes), {
      headers: { 'content-type': 'application/octet-stream', 'content-length': String(file.bytes) },
    })
  }

  async remove({ id, caller }: Call): Promise<object> {
    await this.#remove(await this.get(id, caller))
    return { id, object: 'file', deleted: true }
  }

  async #remove({ id, owner, bytes }: FileEntry): Promise<void> {
    const place = `files/${id}`
    await this.store.write(async (rows) => {
      const { numDeletedRows } = await rows.deleteFrom('files').where('id', '=', id).executeTakeFirst()
      if (numDeletedRows === 0n) return
      await addToSum(rows, owner, 'files', -1, -bytes)
      await begin(rows, place)
    })
    await this.#clear(place)
  }

  /** Removes what is no file any more, or never was. */
  async #clear(place: string): Promise<void> {
    await removeWritten(path.join(this.store.folder, place), (name) => name === CONTENT)
    await this.store.write((rows) => end(rows, place))
  }

  /** Makes a file of what `fill` writes, or leaves nothing of it. */
  #receive(owner: string, most: number, fill: (write: Write) => Promise<About>) {
    return this.#made(async (id) => {
      const output = await WholeOutput.begin(path.join(this.#folderOf(id), CONTENT))
      const { bytes: owned } = await sumOf(this.store.rows, owner, 'files')
      const hash = createHash('sha256')
      let bytes = 0
      const content = await open(output.made, 'wx', PRIVATE.mode)
      const write = async (piece: Uint8Array) => {
        bytes += piece.length
        if (bytes > most) throw new HttpError(413, `file: larger than ${most} bytes`, { param: 'file' })
        this.#requireBytes(owned + bytes)
        hash.update(piece)
        await content.writeFile(piece)
      }
      const { life, ...about } = await fill(write)
        .finally(() => content.close())
        .catch(async (error) => {
          await output.close()
          throw error
        })
      await checkLines(output.made)
        .then(() => output.publish())
        .finally(() => output.close())
      const created_at = seconds()
      const expires_at = life === undefined ? null : created_at + life
      return { id, created_at, ...about, expires_at, bytes, purpose: 'fine-tune', digest: hash.digest('hex') }
    })
  }

  /** Adds the row of a file whose content `make` writes. */
  async #made(make: (id: string) => Promise<Omit<FileEntry, 'seq'>>): Promise<object> {
    const id = newId('file-')
    const place = `files/${id}`
    await this.store.write((rows) => begin(rows, place))
    try {
      await mkdir(this.#folderOf(id), PRIVATE_FOLDER)
      const file = await make(id)
      await this.store.write(async (rows) => {
        // Other files may have come meanwhile.
        await this.#requireRoom(rows, file.owner, file.bytes)
        await insertFile(rows, file)
        await end(rows, place)
      })
      return wireFile(file)
    } catch (error) {
      // Otherwise it goes at the next start.
      await this.#clear(place).catch(() => {})
      throw isNoRoom(error) ? new HttpError(507, 'The disk of the server is full', { code: 'disk_full' }) : error
    }
  }

  async #requireRoom(rows: Rows, owner: string, bytes: number): Promise<void> {
    this.#requireBytes((await sumOf(rows, owner, 'files')).bytes + bytes)
  }

  #requireBytes(bytes: number): void {
    const { maxOwnerBytes } = this.limits
    if (bytes <= maxOwnerBytes) return
    const details = { type: 'rate_limit_error', code: 'storage_full' }
    throw new HttpError(429, `Your files have more than ${maxOwnerBytes} bytes: delete some`, details)
  }
}

export const isNoRoom = (error: unknown): boolean =>
  ['ENOSPC', 'EDQUOT'].includes(codeOf(error) ?? codeOf((error as Error | undefined)?.cause) ?? '')

/** Says that a folder is not finished yet, or is about to be removed. */
export async function begin(rows: Rows, place: string): Promise<void> {
  await rows
    .insertInto('unfinished')
    .values({ place })
    .onConflict((conflict) => conflict.doNothing())
    .execute()
}

export async function end(rows: Rows, place: string): Promise<void> {
  await rows.deleteFrom('unfinished').where('place', '=', place).execute()
}

/** Adds a file, unless it is there already. */
export async function insertFile(rows: Rows, file: Omit<FileEntry, 'seq'>): Promise<void> {
  const added = rows
    .insertInto('files')
    .values(file)
    .onConflict((conflict) => conflict.column('id').doNothing())
  const { numInsertedOrUpdatedRows } = await added.executeTakeFirst()
  if (numInsertedOrUpdatedRows === 1n) await addToSum(rows, file.owner, 'files', 1, file.bytes)
}

function wireFile({ id, bytes, created_at, filename, purpose, expires_at }: Omit<FileEntry, 'seq'>) {
  const about = { id, object: 'file', bytes, created_at, filename, purpose, status: 'processed' }
  return { ...about, ...(expires_at !== null && { expires_at }) }
}

async function checkLines(file: string): Promise<void> {
  const wrong = (what: string) => invalid('file', `${what}; expected JSONL`, 'invalid_file_format')
  await closing(await openFile(file), async (source) => {
    let isEmpty = true
    for await (const { text, number } of textLines(source)) {
      if (text.trim() === '') continue
      if (!isObject(jsonIn(text))) throw wrong(`line ${number} is not a JSON object`)
      isEmpty = false
    }
    if (isEmpty) throw wrong('the file is empty')
  })
}
