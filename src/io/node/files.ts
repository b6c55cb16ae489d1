// Reads are positional, so that one source serves many readers. Writes get their name complete or never.

import { constants, type Dirent, type Stats } from 'node:fs'
import { access, type FileHandle, open, readdir, realpath, rename, stat, unlink } from 'node:fs/promises'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import {
  type ByteSink,
  type ByteSource,
  checkRange,
  type Directory,
  type Place,
  type Reservation,
  splitName,
} from '../../base/bytes.js'
import { ConfigError, FileError } from '../../base/errors.js'
import { refuseAddress } from '../source.js'
import { codeOf, fileError, REASONS, withFileErrors } from './errors.js'
import { isDirectory, makeFolders, removeEmptyFolders, syncFolder } from './folders.js'
import { reserveFolder } from './reserve.js'
import { isMountPoint, realOutput, removeUnfinished, unfinishedName, WholeOutput } from './whole-output.js'

/** How the Hugging Face Hub names models; a relative path may look the same. */
const HUB_NAME = /^[\w-][\w.-]*\/[\w.-]+$/

/** read(2) and write(2) take less than 2 GiB at a time on some systems. */
const MAX_TRANSFER_BYTES = 1 << 30

export interface FileOptions {
  /** New files are on disk when they get their names. Default true. */
  fsync?: boolean
}

/** A folder that does not exist is empty until a file is created. */
export class NodeDirectory implements Directory {
  constructor(
    readonly name: string,
    private readonly options: FileOptions = {},
  ) {}

  list(folder?: string): Promise<string[]> {
    return namesIn(
      folder === undefined ? this.name : this.#resolve(folder),
      (status) => status.isFile() || status.isSymbolicLink(),
    )
  }

  folders(): Promise<string[]> {
    return namesIn(this.name, (status) => status.isDirectory())
  }

  async has(file: string): Promise<boolean> {
    const target = this.#resolve(file)
    try {
      return (await stat(target)).isFile()
    } catch (error) {
      if (codeOf(error) === 'ENOENT' || codeOf(error) === 'ENOTDIR') return false
      throw fileError(target, 'cannot be read', error)
    }
  }

  async open(file: string): Promise<ByteSource> {
    return openFile(this.#resolve(file))
  }

  async create(file: string): Promise<ByteSink> {
    return createFile(this.#resolve(file), this.options)
  }

  async remove(file: string): Promise<void> {
    const target = this.#resolve(file)
    try {
      await unlink(target)
    } catch (error) {
      if (codeOf(error) !== 'ENOENT') throw fileError(target, 'cannot be removed', error)
    }
  }

  async append(file: string, bytes: Uint8Array): Promise<void> {
    const target = this.#resolve(file)
    await withFileErrors(target, 'cannot be written', async () => {
      await makeFolders(path.dirname(target))
      const handle = await open(target, 'a')
      try {
        await handle.appendFile(bytes)
        // Files that are written later may rely on these lines.
        await handle.sync()
      } finally {
        await handle.close()
      }
    })
  }

  async reserve(what: string): Promise<Reservation> {
    return reserveFolder(this.name, what)
  }

  async together<T>(write: (folder: Directory) => Promise<T>): Promise<T> {
    const out = await realOutput(this.name)
    if (!(await canAppear(out))) {
      const lock = await this.reserve('process')
      return write(this).finally(() => lock.release())
    }
    const output = await WholeOutput.begin(out, this.options)
    try {
      const result = await write(new NodeDirectory(output.folder, this.options))
      await output.publishFolder(false)
      return result
    } finally {
      await output.close()
    }
  }

  #resolve(file: string): string {
    return path.join(this.name, ...splitName(file, this.name))
  }
}

async function canAppear(out: string): Promise<boolean> {
  const entries = await readdir(out).catch((error) => (codeOf(error) === 'ENOENT' ? undefined : ['something else']))
  if (entries === undefined) return true
  if (entries.length > 0 || (await isMountPoint(out))) return false
  return access(path.dirname(out), constants.W_OK).then(
    () => true,
    () => false,
  )
}

/**
 * The path that a text names, also as a file:// URL.
 *
 * @throws ConfigError for the address of another place
 */
export function localPath(text: string, where: string): string {
  if (/^file:\/\//i.test(text)) {
    try {
      return fileURLToPath(text)
    } catch (cause) {
      throw new ConfigError({ where, what: 'a file:// URL that names no path', got: JSON.stringify(text), cause })
    }
  }
  refuseAddress(text, where, 'a path')
  return text
}

export async function locate(target: string): Promise<Place> {
  try {
    if ((await stat(target)).isDirectory()) return { directory: new NodeDirectory(target), file: undefined }
    return { directory: new NodeDirectory(path.dirname(target)), file: path.basename(target) }
  } catch (cause) {
    if (codeOf(cause) !== 'ENOENT' || !HUB_NAME.test(target)) throw fileError(target, 'cannot be read', cause)
    const [owner] = target.split('/')
    const hint = `If ${owner} is a local folder, this name is a path. For a model on the Hub, write hf:${target}`
    throw new FileError({ where: target, what: REASONS.ENOENT, hint, cause })
  }
}

export async function openFile(file: string): Promise<ByteSource> {
  let handle: FileHandle | undefined
  try {
    // Opening a pipe would wait until something writes into it.
    const status = await stat(file)
    if (!status.isFile())
      throw new FileError({ where: file, what: status.isDirectory() ? 'is a folder' : 'is no file' })
    handle = await open(file, 'r')
    return fileSource(handle, file, (await handle.stat()).size, await realpath(file))
  } catch (error) {
    await handle?.close()
    throw fileError(file, 'cannot be read', error)
  }
}

function fileSource(handle: FileHandle, name: string, size: number, realPath: string): ByteSource {
  const source: ByteSource & Required<Pick<ByteSource, 'readInto'>> = {
    name,
    byteLength: size,
    realPath,
    async read(offset, byteLength) {
      checkRange(source, offset, byteLength)
      // All bytes are read before anyone sees them, so they need not be zeros first.
      const { buffer, byteOffset } = Buffer.allocUnsafeSlow(byteLength)
      const result = new Uint8Array(buffer, byteOffset, byteLength)
      await source.readInto(offset, result)
      return result
    },
    async readInto(offset, memory) {
      const { byteLength } = memory
      checkRange(source, offset, byteLength)
      await withFileErrors(name, 'cannot be read', async () => {
        for (let done = 0; done < byteLength; ) {
          const length = Math.min(byteLength - done, MAX_TRANSFER_BYTES)
          const { bytesRead } = await handle.read(memory, done, length, offset + done)
          if (bytesRead === 0) throw new FileError({ where: name, what: 'became shorter while it was being read' })
          done += bytesRead
        }
      })
    },
    close: () => handle.close(),
  }
  return source
}

export async function createFile(name: string, { fsync = true }: FileOptions = {}): Promise<ByteSink> {
  const folder = path.dirname(name)
  const temporary = unfinishedName(name)
  let handle: FileHandle
  let firstMade: string | undefined
  try {
    if (await isDirectory(name)) throw new FileError({ where: name, what: 'is a folder' })
    firstMade = await makeFolders(folder)
    await removeUnfinished(name)
    handle = await open(temporary, 'wx')
  } catch (error) {
    await removeEmptyFolders(folder, firstMade)
    throw fileError(name, 'cannot be written', error)
  }
  let isOpen = true
  return {
    name,
    write: (bytes) =>
      withFileErrors(name, 'cannot be written', async () => {
        for (let done = 0; done < bytes.byteLength; ) {
          const length = Math.min(bytes.byteLength - done, MAX_TRANSFER_BYTES)
          const { bytesWritten } = await handle.write(bytes, done, length)
          done += bytesWritten
        }
      }),
    async commit() {
      await withFileErrors(name, 'cannot be written', async () => {
        // Without this a crash could leave the final name on a file whose bytes never reached the disk.
        if (fsync) await handle.sync()
        await handle.close()
        await rename(temporary, name)
      })
      isOpen = false
      if (fsync) await syncFolder(folder)
    },
    async abort() {
      if (!isOpen) return
      isOpen = false
      await handle.close().catch(() => {})
      await unlink(temporary).catch(() => {})
      await removeEmptyFolders(folder, firstMade)
    },
  }
}

async function namesIn(folder: string, isMeant: (status: Dirent | Stats) => boolean): Promise<string[]> {
  try {
    const entries = await readdir(folder, { withFileTypes: true })
    const names = entries.map(async (entry) => {
      // Links to nothing are named, so that whoever needs the file says that it is missing.
      const status = entry.isSymbolicLink() ? await stat(path.join(folder, entry.name)).catch(() => entry) : entry
      return isMeant(status) ? [entry.name] : []
    })
    return (await Promise.all(names)).flat().sort()
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return []
    if (codeOf(error) !== 'ENOTDIR') throw fileError(folder, 'cannot be listed', error)
    const what = 'no folder but a file, or inside one'
    throw new FileError({ where: folder, what, hint: 'Name a folder', cause: error })
  }
}
