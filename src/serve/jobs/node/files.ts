// Files that callers upload, whole or in parts, and files with the results of jobs.

import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { link, open } from 'node:fs/promises'
import path from 'node:path'
import { Readable } from 'node:stream'
import { isObject, jsonIn } from '../../../base/options.js'
import { seconds } from '../../adapters.js'
import { HttpError } from '../../http.js'
import type { Caller } from '../../keys.js'
import type { Call } from '../../route.js'
import { pageOf } from '../lists.js'
import { readForm, type Sink } from './multipart.js'
import { birth, newId, PRIVATE, Store, type Stored, writePrivate } from './store.js'

export interface FileEntry extends Stored {
  readonly bytes: number
  readonly filename: string
  readonly purpose: 'fine-tune' | 'fine-tune-results'
  readonly expires_at?: number
}

interface UploadEntry extends Stored {
  readonly bytes: number
  readonly filename: string
  readonly expires_at: number
  readonly fileExpiry?: number | undefined
  status: 'pending' | 'completed' | 'cancelled'
  parts: readonly { readonly id: string; readonly bytes: number }[]
  file?: string
}

export interface FileLimits {
  /** The most bytes of a file. */
  readonly maxFileBytes: number
  /** The most bytes of all files of one owner. */
  readonly maxOwnerBytes: number
}

/** Data are read by their ending. */
const CONTENT = 'content.jsonl'
const MAX_LINE = 8 << 20
/** As OpenAI has it. */
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
    const files = await Store.open<FileEntry>(path.join(folder, 'files'), 'file')
    return new Files(files, await Store.open<UploadEntry>(path.join(folder, 'uploads'), 'upload'), limits)
  }

  get(id: string, caller: Caller, param?: string, status?: number): FileEntry {
    this.#sweep()
    return this.files.get(id, caller, param, status)
  }

  retrieve({ id, caller }: Pick<Call, 'id' | 'caller'>): object {
    return wireFile(this.get(id, caller))
  }

  /** Gives a file a second name: it stays there if the file is deleted. */
  async keep(file: FileEntry, to: string): Promise<void> {
    await link(path.join(this.files.folderOf(file), CONTENT), to)
  }

  list({ request, caller }: Call): object {
    this.#sweep()
    const query = new URL(request.url).searchParams
    const purpose = query.get('purpose')
    const files = this.files.of(caller).filter((file) => purpose === null || file.purpose === purpose)
    return pageOf(files.map(wireFile), query, { most: 10_000 })
  }

  async create(call: Call): Promise<object> {
    const id = newId('file-')
    const sink = await this.#sinkOf(id, call.caller.name, this.limits.maxFileBytes)
    return this.#keeping(id, sink, async () => {
      let filename = ''
      const fields = await readForm(call, this.limits.maxFileBytes, async (field, name) => {
        if (field !== 'file') throw new HttpError(400, 'file: the form has another file', { param: 'file' })
        filename = name
        return sink
      })
      const { purpose, 'expires_after[anchor]': anchor, 'expires_after[seconds]': lasting, ...others } = fields
      const [unknown] = Object.keys(others)
      if (unknown !== undefined) {
        throw new HttpError(400, `${unknown}: this server has no such option`, { param: unknown })
      }
      if (purpose !== 'fine-tune') {
        throw new HttpError(400, 'purpose: files are for fine-tuning here; expected fine-tune', { param: 'purpose' })
      }
      const life = Number(lasting)
      const isLife = anchor === 'created_at' && Number.isSafeInteger(life) && life >= 3600 && life <= 2_592_000
      if ((anchor ?? lasting) !== undefined && !isLife) {
        throw new HttpError(400, 'expires_after: anchor created_at, and seconds from 3600 to 2592000', {
          param: 'expires_after',
        })
      }
      return { ...birth(id, call.caller), filename, ...(isLife && { expires_at: seconds() + life }) }
    })
  }

  /** Makes a file of texts of the server. */
  async write(id: string, owner: string, filename: string, purpose: FileEntry['purpose'], text: string): Promise<void> {
    const folder = await this.files.makeFolder(id)
    await writePrivate(path.join(folder, CONTENT), text)
    await this.files.put({ id, owner, created_at: seconds(), bytes: Buffer.byteLength(text), filename, purpose })
  }

  /** Makes a file of records that are here already. */
  async createFrom({ caller }: Call, text: string): Promise<object> {
    if (text === '') throw new HttpError(400, 'lowrank: no stored completion fits', { param: 'lowrank' })
    this.#requireRoom(this.#owned(caller.name) + Buffer.byteLength(text))
    const id = newId('file-')
    await this.write(id, caller.name, 'stored.jsonl', 'fine-tune', text)
    return this.retrieve({ id, caller })
  }

  content({ id, caller }: Call): Response {
    const file = this.get(id, caller)
    const stream = createReadStream(path.join(this.files.folderOf(file), CONTENT))
    return new Response(Readable.toWeb(stream) as ReadableStream<Uint8Array>, {
      headers: { 'content-type': 'application/octet-stream', 'content-length': String(file.bytes) },
    })
  }

  async remove({ id, caller }: Call): Promise<object> {
    await this.files.remove(this.get(id, caller))
    return { id, object: 'file', deleted: true }
  }

  async createUpload({ fields, caller }: Call): Promise<object> {
    const { bytes, filename, expires_after } = fields as {
      bytes: number
      filename: string
      expires_after?: { seconds: number }
    }
    const { maxFileBytes } = this.limits
    if (bytes > maxFileBytes) throw new HttpError(413, `A file has at most ${maxFileBytes} bytes`, { param: 'bytes' })
    this.#requireRoom(this.#owned(caller.name) + bytes)
    const [entry, fileExpiry] = [birth(newId('upload_'), caller), expires_after?.seconds]
    const upload: UploadEntry = {
      ...{ ...entry, bytes, filename, fileExpiry },
      ...{ expires_at: entry.created_at + UPLOAD_SECONDS, status: 'pending', parts: [] },
    }
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
      await readForm(call, Math.min(PART_BYTES, upload.bytes), async () => ({
        async write(piece) {
          bytes += piece.length
          await file.write(piece)
        },
      }))
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
    const { part_ids, md5 } = call.fields as { part_ids: string[]; md5?: string }
    const names = part_ids.map((part) => upload.parts.find(({ id }) => id === part)?.id)
    if (names.length === 0 || names.includes(undefined) || new Set(names).size < names.length) {
      throw new HttpError(400, 'part_ids: not the parts of this upload', { param: 'part_ids' })
    }
    const id = newId('file-')
    const digest = createHash('md5')
    const sink = await this.#sinkOf(id, upload.owner, upload.bytes, upload)
    await this.#keeping(id, sink, async () => {
      for (const name of names) {
        for await (const piece of createReadStream(path.join(this.uploads.folderOf(upload), name!))) {
          digest.update(piece)
          await sink.write(piece)
        }
      }
      if (sink.bytes !== upload.bytes) {
        throw new HttpError(400, `The parts have ${sink.bytes} bytes, and the upload ${upload.bytes}`)
      }
      if (md5 !== undefined && md5 !== digest.digest('hex')) {
        throw new HttpError(400, 'md5: the parts have another digest', { param: 'md5' })
      }
      const { owner, filename, fileExpiry } = upload
      const expiry = fileExpiry === undefined ? {} : { expires_at: seconds() + fileExpiry }
      return { ...birth(id, call.caller), owner, filename, ...expiry }
    })
    Object.assign(upload, { status: 'completed', file: id })
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
    this.#sweep()
    return this.uploads.get(id, caller)
  }

  #wireUpload(upload: UploadEntry): object {
    const { id, bytes, created_at, expires_at, filename, status, file } = upload
    const made = file === undefined ? undefined : this.files.find(file)
    const shared = { id, object: 'upload', bytes, created_at, expires_at, filename, purpose: 'fine-tune', status }
    return { ...shared, file: made === undefined ? null : wireFile(made) }
  }

  /** Finishes a file that `fill` has written through its sink, or leaves nothing of it. */
  async #keeping(
    id: string,
    sink: FileSink,
    fill: () => Promise<Omit<FileEntry, 'bytes' | 'purpose'>>,
  ): Promise<object> {
    try {
      const about = await fill()
      await sink.end()
      const file: FileEntry = { ...about, bytes: sink.bytes, purpose: 'fine-tune' }
      await this.files.put(file)
      return wireFile(file)
    } catch (error) {
      await sink.abort()
      await this.files.remove({ id })
      throw error
    }
  }

  /** @param instead what the file takes the place of */
  async #sinkOf(id: string, owner: string, most: number, instead?: UploadEntry): Promise<FileSink> {
    const folder = await this.files.makeFolder(id)
    const file = await open(path.join(folder, CONTENT), 'wx', PRIVATE.mode)
    const lines = new Lines()
    const freed = instead?.bytes ?? 0
    const owned = this.#owned(owner) - freed
    const sink: FileSink = {
      bytes: 0,
      write: async (piece) => {
        sink.bytes += piece.length
        if (sink.bytes > most) throw new HttpError(413, `file: larger than ${most} bytes`, { param: 'file' })
        this.#requireRoom(owned + sink.bytes)
        lines.take(piece)
        await file.writeFile(piece)
      },
      end: async () => {
        lines.end()
        // Other files may have come meanwhile.
        this.#requireRoom(this.#owned(owner) - freed + sink.bytes)
        await file.sync()
        await file.close()
      },
      abort: () => file.close().catch(() => {}),
    }
    return sink
  }

  /** Bytes that belong to an owner. */
  #owned(owner: string): number {
    const all = [...this.files.all(), ...this.uploads.all()]
    return all.reduce((sum, entry) => sum + (entry.owner === owner ? entry.bytes : 0), 0)
  }

  #requireRoom(bytes: number): void {
    const { maxOwnerBytes } = this.limits
    if (bytes <= maxOwnerBytes) return
    throw new HttpError(429, `Your files have more than ${maxOwnerBytes} bytes: delete some`, {
      type: 'rate_limit_error',
      code: 'storage_full',
    })
  }

  /** Removes what has expired. */
  #sweep(): void {
    const now = seconds()
    for (const store of [this.files, this.uploads] as readonly Store<Stored & { expires_at?: number }>[]) {
      for (const entry of store.all()) if ((entry.expires_at ?? now) < now) void store.remove(entry)
    }
  }
}

interface FileSink extends Sink {
  bytes: number
  end(): Promise<void>
  abort(): Promise<void>
}

function wireFile({ id, bytes, created_at, filename, purpose, expires_at }: FileEntry) {
  const expiry = expires_at === undefined ? {} : { expires_at }
  return {
    id,
    object: 'file',
    bytes,
    created_at,
    filename,
    purpose,
    status: 'processed',
    status_details: null,
    ...expiry,
  }
}

/** Checks that each line is a JSON object, while the pieces come. */
class Lines {
  readonly #decoder = new TextDecoder('utf-8', { fatal: true })
  #rest = ''
  #line = 1
  #isEmpty = true

  take(piece: Uint8Array): void {
    const lines = (this.#rest + this.#text(piece)).split('\n')
    this.#rest = lines.pop()!
    for (const line of lines) this.#check(line)
    if (this.#rest.length > MAX_LINE) throw this.#wrong(`is longer than ${MAX_LINE} characters`)
  }

  end(): void {
    this.#check(this.#rest + this.#text())
    if (this.#isEmpty) throw this.#wrong('is missing: the file is empty')
  }

  #text(piece?: Uint8Array): string {
    try {
      return this.#decoder.decode(piece, { stream: piece !== undefined })
    } catch {
      throw this.#wrong('is not UTF-8')
    }
  }

  #check(line: string): void {
    if (line.trim() !== '') {
      if (!isObject(jsonIn(line))) throw this.#wrong('is not a JSON object')
      this.#isEmpty = false
    }
    this.#line++
  }

  #wrong(what: string): HttpError {
    return new HttpError(400, `file: line ${this.#line} ${what}; expected JSONL`, {
      param: 'file',
      code: 'invalid_file_format',
    })
  }
}
