// Folders in a browser: files that the user picked, folders of the File System API, and streams that the page provides.

import {
  type ByteSink,
  type ByteSource,
  type Directory,
  foldersIn,
  namesIn,
  ReadOnlyDirectory,
  splitName,
} from '../../../core/base/bytes.js'
import { FileError, messageOf } from '../../../core/base/errors.js'
import type { ByteStreamLike, FileLike, FolderHandle } from '../../../core/base/globals.js'
import { checkArgument, FUNCTION, hasMethods, kind } from '../../../core/base/options.js'
import { BlobSource } from './files.js'

export function isFile(value: unknown): value is FileLike {
  return hasMethods(value, 'slice', 'arrayBuffer') && typeof (value as Partial<File>).name === 'string'
}

export const FILES = kind('a list of Files, such as an input has', (value) => {
  return hasMethods(value, Symbol.iterator) && [...(value as Iterable<unknown>)].every(isFile)
})

const HANDLE = kind('a FileSystemDirectoryHandle', (value) => hasMethods(value, 'getFileHandle', 'getDirectoryHandle'))

/** Files that a user picked or dropped, as a folder that can be read but not written. */
export class FilesDirectory extends ReadOnlyDirectory implements Directory {
  readonly name: string
  protected override readonly refusal = {
    what: 'files that a user picked cannot be written',
    hint: 'Write to a HandleDirectory or to streams',
  }
  readonly #files = new Map<string, File>()

  /**
   * @param files of `<input type="file" multiple>`, by their names, or of `<input type="file" webkitdirectory>`, by
   *   their paths inside the folder
   * @param name for messages. Default: the folder's
   */
  constructor(files: Iterable<FileLike>, name?: string) {
    super()
    checkArgument(files, FILES, 'files')
    let folder: string | undefined
    for (const file of files) {
      // The path is folder/name or folder/inner/name.
      const [first, ...rest] = (file.webkitRelativePath || `/${file.name}`).split('/')
      folder ??= first
      this.#files.set(rest.join('/'), file)
    }
    this.name = name ?? (folder || 'files')
  }

  async list(folder?: string): Promise<string[]> {
    return namesIn(this.#files.keys(), folder)
  }

  async folders(): Promise<string[]> {
    return foldersIn(this.#files.keys())
  }

  async has(path: string): Promise<boolean> {
    return this.#files.has(path)
  }

  async open(path: string): Promise<ByteSource> {
    const file = this.#files.get(path)
    if (file === undefined) throw new FileError({ where: `${this.name}/${path}`, what: 'no such file' })
    return new BlobSource(file, `${this.name}/${path}`)
  }
}

/** A folder of the File System API. A new file exists immediately. It is empty until it is committed. */
export class HandleDirectory implements Directory {
  readonly name: string
  readonly #handle: FileSystemDirectoryHandle

  /**
   * @param handle from `navigator.storage.getDirectory()`, `showDirectoryPicker({ mode: 'readwrite' })`, or a folder in
   *   one of them
   * @param name for messages. Default: the handle's
   */
  constructor(handle: FolderHandle, name?: string) {
    checkArgument(handle, HANDLE, 'handle')
    this.#handle = handle
    this.name = name ?? (handle.name || 'opfs')
  }

  list(folder?: string): Promise<string[]> {
    return this.#entries('file', folder)
  }

  folders(): Promise<string[]> {
    return this.#entries('directory')
  }

  async isSame(directory: Directory): Promise<boolean> {
    return directory instanceof HandleDirectory && this.#handle.isSameEntry(directory.#handle)
  }

  async #entries(wanted: FileSystemHandleKind, folder?: string): Promise<string[]> {
    const names: string[] = []
    try {
      const inner = folder === undefined ? undefined : (await this.#place(`${folder}/any`, false)).folder
      for await (const [name, { kind }] of (inner ?? this.#handle).entries()) if (kind === wanted) names.push(name)
    } catch (error) {
      if (folder !== undefined && nameOf(error) === 'NotFoundError') return []
      throw handleError(this.name, 'cannot be listed', error)
    }
    return names.sort()
  }

  async has(path: string): Promise<boolean> {
    try {
      await this.#file(path)
      return true
    } catch (error) {
      if (['NotFoundError', 'TypeMismatchError'].includes(nameOf(error))) return false
      throw handleError(`${this.name}/${path}`, 'cannot be read', error)
    }
  }

  async open(path: string): Promise<ByteSource> {
    const where = `${this.name}/${path}`
    return withHandleErrors(where, 'cannot be read', async () => {
      return new BlobSource(await (await this.#file(path)).getFile(), where)
    })
  }

  async create(path: string): Promise<ByteSink> {
    const where = `${this.name}/${path}`
    const isNew = !(await this.has(path))
    return withHandleErrors(where, 'cannot be written', async () => {
      const file = await this.#file(path, true)
      if (file.createWritable === undefined) {
        throw new FileError({ where, what: 'this browser cannot write files of its own (createWritable)' })
      }
      return streamSink(await file.createWritable(), where, async () => {
        if (isNew) await this.remove(path)
      })
    })
  }

  async remove(path: string): Promise<void> {
    try {
      const { folder, name } = await this.#place(path, false)
      await folder.removeEntry(name)
    } catch (error) {
      if (nameOf(error) !== 'NotFoundError') throw handleError(`${this.name}/${path}`, 'cannot be removed', error)
    }
  }

  async #file(path: string, create = false): Promise<FileSystemFileHandle> {
    const { folder, name } = await this.#place(path, create)
    return folder.getFileHandle(name, { create })
  }

  async #place(path: string, create: boolean): Promise<{ folder: FileSystemDirectoryHandle; name: string }> {
    const parts = splitName(path, this.name)
    let folder = this.#handle
    for (const part of parts.slice(0, -1)) folder = await folder.getDirectoryHandle(part, { create })
    return { folder, name: parts[parts.length - 1] }
  }
}

/** Returns the stream for a file's bytes, or undefined if the file is not wanted. */
export type OpenStream = (path: string) => ByteStreamLike | undefined | Promise<ByteStreamLike | undefined>

/**
 * A folder that sends each file to a stream while it is written, for example to a download, an upload or an archive.
 * Each file is closed when all are complete, and aborted when they cannot be.
 */
export class StreamDirectory implements Directory {
  readonly name: string
  readonly #open: OpenStream

  /** @param open returns the stream for a file. If it returns undefined, the file is not written */
  constructor(open: OpenStream, name = 'streams') {
    checkArgument(open, FUNCTION, 'open')
    this.#open = open
    this.name = name
  }

  async list(): Promise<string[]> {
    return []
  }

  async has(): Promise<boolean> {
    return false
  }

  open(path: string): Promise<ByteSource> {
    return Promise.reject(new FileError({ where: `${this.name}/${path}`, what: 'what was sent on cannot be read' }))
  }

  async create(path: string): Promise<ByteSink> {
    const writer = (await this.#open(path))?.getWriter()
    return streamSink(
      {
        // Copy the bytes, because callers use their memory again while a stream may still hold the array.
        write: async (bytes) => writer?.write(new Uint8Array(bytes)),
        close: async () => writer?.close(),
        abort: async () => writer?.abort(),
      },
      `${this.name}/${path}`,
    )
  }

  async remove(): Promise<void> {}
}

interface Writer {
  write(bytes: Uint8Array<ArrayBuffer>): Promise<void>
  close(): Promise<void>
  abort(): Promise<void>
}

function streamSink(writer: Writer, name: string, dropped = async () => {}): ByteSink {
  let isOpen = true
  return {
    name,
    write: (bytes) => withHandleErrors(name, 'cannot be written', () => writer.write(bytes as Uint8Array<ArrayBuffer>)),
    async commit() {
      await withHandleErrors(name, 'cannot be written', () => writer.close())
      isOpen = false
    },
    async abort() {
      if (!isOpen) return
      isOpen = false
      await writer.abort().catch(() => {})
      await dropped()
    },
  }
}

const REASONS: Readonly<Record<string, string>> = {
  NotFoundError: 'no such file or folder',
  NotAllowedError: 'the user has not permitted it',
  NoModificationAllowedError: 'it is being written already',
  QuotaExceededError: 'no space left in what the browser grants',
  TypeMismatchError: 'it is a folder where a file is expected, or the other way round',
}

async function withHandleErrors<T>(where: string, action: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    throw handleError(where, action, error)
  }
}

function handleError(where: string, action: string, error: unknown): FileError {
  if (error instanceof FileError) return error
  const reason = REASONS[nameOf(error)] ?? messageOf(error)
  return new FileError({ where, what: `${action}: ${reason}`, cause: error })
}

function nameOf(error: unknown): string {
  return error instanceof Error || error instanceof DOMException ? error.name : ''
}
