// Files that callers upload, whole or in parts, and files with the results of jobs.

import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { link, open, stat } from 'node:fs/promises'
import path from 'node:path'
import { closing } from '../../../core/base/bytes.js'
import { FileError } from '../../../core/base/errors.js'
import { isObject, jsonIn } from '../../../core/base/options.js'
import { textLines } from '../../../files/data/text-chunks.js'
import { openFile } from '../../../files/io/node/files.js'
import { seconds } from '../../adapters.js'
import { checkFields } from '../../fields.js'
import { HttpError, invalid } from '../../http.js'
import type { Caller } from '../../keys.js'
import { fileStream } from '../../node/streams.js'
import type { Call } from '../../route.js'
import { FILE_FIELDS } from '../fields.js'
import { pageOf } from '../lists.js'
import { readForm, type Write } from './multipart.js'
import { birth, newId, PRIVATE, Store, type Stored, type StoreOptions } from './store.js'

export interface FileEntry extends Stored {
  readonly bytes: number
  readonly filename: string
  readonly purpose: 'fine-tune' | 'fine-tune-results'
}

interface UploadEntry extends Stored {
  readonly bytes: number
  readonly filename: string
  /** Seconds that the file stays. */
  readonly life?: number | undefined
  status: 'pending' | 'completed' | 'cancelled'
  parts: readonly { readonly id: string; readonly bytes: number }[]
  file?: string
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

/** The ending tells the trainer how to read it. */
const CONTENT = 'content.jsonl'
/** OpenAI's limit. */
const PART_BYTES = 64 << 20
const UPLOAD_SECONDS = 3600
const MAX_PARTS = 10_000

export class Files {
  private constructor(
    private readonly files: Store<FileEntry>,
    private readonly uploads: Store<UploadEntry>,
    private readonly limits: FileLimits,
  ) {}

  static async open(folder: string, limits: FileLimits): Promise<Files> {
    const { maxAge, onError } = limits
    const files = await Store.open<FileEntry>(folder, 'files', { maxAge, onError })
    const uploads = await Store.open<UploadEntry>(folder, 'uploads', { maxAge: UPLOAD_SECONDS, onError })
    const contents = [
      ...files.all().map((file) => ({ place: path.join(files.folderOf(file), CONTENT), bytes: file.bytes })),
      ...uploads.all().flatMap((upload) => {
        return upload.parts.map(({ id, bytes }) => ({ place: path.join(uploads.folderOf(upload), id), bytes }))
      }),
    ]
    for (const { place, bytes } of contents) await checkSize(place, bytes).catch(onError)
    return new Files(files, uploads, limits)
  }

  /** Removes files and uploads that have expired. */
  async sweep(): Promise<void> {
    await Promise.all([this.files.sweep(), this.uploads.sweep()])
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
    return this.#receive({ owner, most: maxFileBytes }, async (write) => {
      let filename = ''
      const given = await readForm(call, maxFileBytes, (field, name) => {
        if (field !== 'file') throw invalid('file', 'the form has another file')
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

  async createUpload({ fields, caller }: Call): Promise<object> {
    const { bytes, filename, expires_after } = fields as { bytes: number; filename: string; expires_after?: Life }
    const { maxFileBytes } = this.limits
    if (bytes > maxFileBytes) throw new HttpError(413, `A file has at most ${maxFileBytes} bytes`, { param: 'bytes' })
    this.#requireRoom(this.#owned(caller.name) + bytes)
    const about = { ...birth(newId('upload_'), caller), bytes, filename, life: expires_after?.seconds }
    const upload: UploadEntry = { ...about, status: 'pending', parts: [] }
    await this.uploads.put(upload)
    return this.#wireUpload(upload)
  }

  async addPart(call: Call): Promise<object> {
    const upload = this.#pending(call)
    const id = newId('part_')
    if (upload.parts.length >= MAX_PARTS) throw new HttpError(400, `An upload has at most ${MAX_PARTS} parts`)
    const file = await open(path.join(this.uploads.folderOf(upload), id), 'wx', PRIVATE.mode)
    let bytes = 0
    try {
      await readForm(call, Math.min(PART_BYTES, upload.bytes), () => async (piece) => {
        bytes += piece.length
        await file.writeFile(piece)
      })
    } finally {
      await file.close()
    }
    this.#pending(call)
    const parts = [...upload.parts, { id, bytes }]
    if (parts.reduce((sum, part) => sum + part.bytes, 0) > upload.bytes) {
      throw new HttpError(400, `The parts have more than the ${upload.bytes} bytes of the upload`)
    }
    upload.parts = parts
    await this.uploads.put(upload)
    return { id, object: 'upload.part', created_at: seconds(), upload_id: upload.id }
  }

  async complete(call: Call): Promise<object> {
    const upload = this.#pending(call)
    const { owner, filename, life, bytes } = upload
    const { part_ids, md5 } = call.fields as { part_ids: string[]; md5?: string }
    const parts = part_ids.map((part) => upload.parts.find(({ id }) => id === part))
    if (parts.length === 0 || parts.includes(undefined) || new Set(parts).size < parts.length) {
      throw invalid('part_ids', 'not the parts of this upload')
    }
    const sum = parts.reduce((total, part) => total + part!.bytes, 0)
    if (sum !== bytes) throw new HttpError(400, `The parts have ${sum} bytes, and the upload ${bytes}`)
    const file = await this.#receive({ owner, most: bytes, replaced: bytes }, async (write) => {
      const digest = createHash('md5')
      for (const part of parts) {
        const place = path.join(this.uploads.folderOf(upload), part!.id)
        await checkSize(place, part!.bytes)
        for await (const piece of createReadStream(place)) {
          digest.update(piece)
          await write(piece)
        }
      }
      if (md5 !== undefined && md5 !== digest.digest('hex')) throw invalid('md5', 'the parts have another digest')
      return { owner, filename, life }
    })
    Object.assign(upload, { status: 'completed', file: file.id })
    const shown = this.#wireUpload(upload)
    await this.uploads.remove(upload)
    return shown
  }

  async cancelUpload(call: Call): Promise<object> {
    const upload = this.#pending(call)
    upload.status = 'cancelled'
    await this.uploads.remove(upload)
    return this.#wireUpload(upload)
  }

  #pending({ id, caller }: Call): UploadEntry {
    return this.uploads.get(id, caller)
  }

  #wireUpload({ id, bytes, created_at, filename, status, file }: UploadEntry): object {
    const made = file === undefined ? undefined : this.files.find(file)
    const shared = { id, object: 'upload', bytes, created_at, expires_at: created_at + UPLOAD_SECONDS, filename }
    return { ...shared, purpose: 'fine-tune', status, file: made === undefined ? null : wireFile(made) }
  }

  /**
   * Makes a file of what `fill` writes, or leaves nothing of it.
   *
   * @param replaced bytes of the upload that the file replaces
   */
  async #receive(
    { owner, most, replaced = 0 }: { owner: string; most: number; replaced?: number },
    fill: (write: Write) => Promise<About>,
  ) {
    const id = newId('file-')
    const place = path.join(await this.files.makeFolder(id), CONTENT)
    const owned = this.#owned(owner) - replaced
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
      this.#requireRoom(this.#owned(owner) - replaced + bytes)
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
    const all = [...this.files.all(), ...this.uploads.all()]
    return all.reduce((sum, entry) => sum + (entry.owner === owner ? entry.bytes : 0), 0)
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
