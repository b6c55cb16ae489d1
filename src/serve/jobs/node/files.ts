// Files that callers upload, and files with the results of jobs.

import { link, open, stat } from 'node:fs/promises'
import path from 'node:path'
import { openFile, textLines } from '../../../api/node/parts.js'
import { closing } from '../../../core/base/bytes.js'
import { FileError } from '../../../core/base/errors.js'
import { isObject, jsonIn } from '../../../core/base/options.js'
import { seconds } from '../../adapters.js'
import { checkFields } from '../../fields.js'
import { HttpError, invalid } from '../../http.js'
import type { Caller } from '../../keys.js'
import { fileStream } from '../../node/streams.js'
import type { Call } from '../../route.js'
import { FILE_FIELDS } from '../fields.js'
import { pageOf } from '../lists.js'
import { readForm, type Write } from './multipart.js'
import { newId, PRIVATE, Store, type Stored, type StoreOptions } from './store.js'

export interface FileEntry extends Stored {
  readonly bytes: number
  readonly filename: string
  readonly purpose: 'fine-tune' | 'fine-tune-results'
}

export interface FileLimits {
  readonly maxFileBytes: number
  readonly maxOwnerBytes: number
  /** Seconds that a file stays at most. */
  readonly maxAge: number
  readonly onError: StoreOptions['onError']
}

/** The properties of a file that are known before its content arrives. */
type About = Pick<FileEntry, 'owner' | 'filename'> & { readonly life?: number | undefined }

interface Life {
  readonly seconds: number
}

/** As file systems have it. */
const MAX_NAME = 255

/** The ending tells the trainer how to read it. */
const CONTENT = 'content.jsonl'

export class Files {
  private constructor(
    private readonly files: Store<FileEntry>,
    private readonly limits: FileLimits,
  ) {}

  static async open(folder: string, limits: FileLimits): Promise<Files> {
    const { maxAge, onError } = limits
    const files = await Store.open<FileEntry>(folder, 'files', { maxAge, onError })
    for (const file of files.all()) await checkSize(path.join(files.folderOf(file), CONTENT), file.bytes).catch(onError)
    return new Files(files, limits)
  }

  /** Removes files that have expired. */
  sweep(): Promise<void> {
    return this.files.sweep()
  }

  get(id: string, caller: Caller, param?: string, status?: number): FileEntry {
    return this.files.get(id, caller, param, status)
  }

  retrieve({ id, caller }: Pick<Call, 'id' | 'caller'>): object {
    return wireFile(this.get(id, caller))
  }

  /** Links a file to a second place, where it stays if the file is deleted. */
  async keep(file: FileEntry, to: string): Promise<void> {
    await link(path.join(this.files.folderOf(file), CONTENT), to)
  }

  list({ request, caller }: Call): object {
    const purpose = new URL(request.url).searchParams.get('purpose')
    const files = this.files.of(caller).filter((file) => purpose === null || file.purpose === purpose)
    return pageOf(files.map(wireFile), request, { most: 10_000 })
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

  async write(id: string, owner: string, filename: string, purpose: FileEntry['purpose'], text: string): Promise<void> {
    await this.files.write(id, CONTENT, text)
    await this.files.put({ id, owner, created_at: seconds(), bytes: Buffer.byteLength(text), filename, purpose })
  }

  async createFrom({ caller }: Call, text: string): Promise<object> {
    if (text === '') throw invalid('lowrank', 'no stored completion fits')
    this.#requireRoom(this.#owned(caller.name) + Buffer.byteLength(text))
    const id = newId('file-')
    await this.write(id, caller.name, 'stored.jsonl', 'fine-tune', text)
    return this.retrieve({ id, caller })
  }

  async content({ id, caller }: Call): Promise<Response> {
    const file = this.get(id, caller)
    const content = await open(path.join(this.files.folderOf(file), CONTENT))
    return new Response(fileStream(content, file.bytes), {
      headers: { 'content-type': 'application/octet-stream', 'content-length': String(file.bytes) },
    })
  }

  async remove({ id, caller }: Call): Promise<object> {
    await this.files.remove(this.get(id, caller))
    return { id, object: 'file', deleted: true }
  }

  /** Makes a file of what `fill` writes, or leaves nothing of it. */
  async #receive(owner: string, most: number, fill: (write: Write) => Promise<About>) {
    const id = newId('file-')
    const place = path.join(await this.files.makeFolder(id), CONTENT)
    const owned = this.#owned(owner)
    let bytes = 0
    try {
      const content = await open(place, 'wx', PRIVATE.mode)
      const write = async (piece: Uint8Array) => {
        bytes += piece.length
        if (bytes > most) throw new HttpError(413, `file: larger than ${most} bytes`, { param: 'file' })
        this.#requireRoom(owned + bytes)
        await content.writeFile(piece)
      }
      const { life, ...about } = await fill(write)
        .finally(() => content.sync())
        .finally(() => content.close())
      await checkLines(place)
      // Other files may have come meanwhile.
      this.#requireRoom(this.#owned(owner) + bytes)
      const created_at = seconds()
      const expiry = life === undefined ? {} : { expires_at: created_at + life }
      const file: FileEntry = { id, created_at, ...about, ...expiry, bytes, purpose: 'fine-tune' }
      await this.files.put(file)
      return wireFile(file)
    } catch (error) {
      await this.files.remove({ id })
      throw error
    }
  }

  #owned(owner: string): number {
    return this.files.all().reduce((sum, file) => sum + (file.owner === owner ? file.bytes : 0), 0)
  }

  #requireRoom(bytes: number): void {
    const { maxOwnerBytes } = this.limits
    if (bytes <= maxOwnerBytes) return
    const details = { type: 'rate_limit_error', code: 'storage_full' }
    throw new HttpError(429, `Your files have more than ${maxOwnerBytes} bytes: delete some`, details)
  }
}

function wireFile({ id, bytes, created_at, filename, purpose, expires_at }: FileEntry) {
  const about = { id, object: 'file', bytes, created_at, filename, purpose, status: 'processed' }
  return { ...about, ...(expires_at !== undefined && { expires_at }) }
}

/** @throws FileError if something damaged the file */
async function checkSize(file: string, bytes: number): Promise<void> {
  const found = await stat(file).catch(() => undefined)
  if (found?.isFile() && found.size === bytes) return
  throw new FileError({ where: file, what: `damaged: not a file of ${bytes} bytes; it stays as it is` })
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
