// Reads are positional, so that one source serves many readers. Writes get their name complete or never.

import { constants, type Dirent, type Stats } from 'node:fs'
import { access, appendFile, type FileHandle, lstat, open, readdir, realpath, stat, unlink } from 'node:fs/promises'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import {
  type ByteSink,
  type ByteSource,
  checkRange,
  closingOnError,
  type Directory,
  type Place,
  type Reservation,
  splitName,
} from '../../../core/base/bytes.js'
import { ConfigError, FileError } from '../../../core/base/errors.js'
import { refuseAddress } from '../source.js'
import { codeOf, fileError, REASONS, withFileErrors } from './errors.js'
import { freeBytes, makeFolders } from './folders.js'
import { LOCK, reserveFolder } from './reserve.js'
import { isMountPoint, lostError, realOutput, WholeOutput } from './whole-output.js'

/** How the Hugging Face Hub names models; a relative path may look the same. */
const HUB_NAME = /^[\w-][\w.-]*\/[\w.-]+$/

/** read(2) takes less than 2 GiB at a time on some systems. */
const MAX_TRANSFER_BYTES = 1 << 30

/** A folder that does not exist is empty until a file is created. */
export class NodeDirectory implements Directory {
  constructor(readonly name: string) {}

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

  async create(file: string, isNew?: boolean): Promise<ByteSink> {
    return createFile(this.#resolve(file), isNew)
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
      // Flushed, because files that are written later may rely on these lines.
      await appendFile(target, bytes, { flush: true })
    })
  }

  freeBytes(): number {
    return freeBytes(this.name)
  }

  async reserve(what: string): Promise<Reservation> {
    return reserveFolder(this.name, what)
  }

  async together<T>(write: (folder: Directory) => Promise<T>, isNew = false): Promise<T> {
    const out = await realOutput(this.name)
    if (await canAppear(out)) return makeFolder(out, write)
    const lock = await this.reserve('process')
    try {
      if (isNew && (await readdir(out)).some((name) => name !== LOCK)) throw lostError(this.name)
      return await write(this)
    } finally {
      await lock.release()
    }
  }

  #resolve(file: string): string {
    return path.join(this.name, ...splitName(file, this.name))
  }
}

/** A folder that nobody sees yet, so that its files need nothing to be whole. Messages name the folder it will be. */
export class UnfinishedFolder extends NodeDirectory {
  constructor(
    name: string,
    private readonly out: string,
  ) {
    super(name)
  }

  override async create(file: string): Promise<ByteSink> {
    const parts = splitName(file, this.out)
    return openSink(path.join(this.name, ...parts), path.join(this.out, ...parts))
  }

  override together<T>(write: (folder: Directory) => Promise<T>): Promise<T> {
    return write(this)
  }
}

async function makeFolder<T>(out: string, write: (folder: Directory) => Promise<T>): Promise<T> {
  const output = await WholeOutput.begin(out)
  try {
    const result = await write(new UnfinishedFolder(output.made, out))
    await output.publish()
    return result
  } finally {
    await output.close()
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

/** Returns the path that a text or file:// URL names. Throws ConfigError if it is the address of another place. */
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

/** Closes files of models that a program drops without `close`: Node warns of handles that it collects open. */
const dropped = new FinalizationRegistry<FileHandle>((handle) => void handle.close().catch(() => {}))

function fileSource(handle: FileHandle, name: string, size: number, realPath: string): ByteSource {
  const source: ByteSource & Required<Pick<ByteSource, 'readInto'>> = {
    name,
    byteLength: size,
    realPath,
    fd: handle.fd,
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
  dropped.register(source, handle)
  return source
}

/**
 * Makes a file that appears whole or not at all. Devices, pipes and sockets are written into.
 *
 * @param isNew fails if something has the name by the time the file is whole. Otherwise an existing file is replaced
 */
async function createFile(name: string, isNew = false): Promise<ByteSink> {
  if (await isStream(name)) return openSink(name, name, 'a')
  const output = await WholeOutput.begin(name)
  return closingOnError(output, async () => {
    const sink = await openSink(output.made, name)
    return {
      name,
      write: sink.write,
      async commit() {
        await sink.commit()
        await output.publish(isNew ? undefined : async () => {})
        await output.close()
      },
      async abort() {
        await sink.abort()
        await output.close()
      },
    }
  })
}

/**
 * True for devices and pipes, which can be written to but not replaced. /dev/stdout is a link to a file if the shell
 * sends it there.
 */
async function isStream(name: string): Promise<boolean> {
  const status = await stat(name).catch(() => undefined)
  if (status?.isDirectory()) throw new FileError({ where: name, what: 'is a folder' })
  if (status === undefined || !status.isFile()) return status !== undefined
  return /^\/(dev|proc)\//.test(path.resolve(name)) && (await lstat(name)).isSymbolicLink()
}

async function openSink(file: string, name: string, flags = 'w'): Promise<ByteSink> {
  const handle = await withFileErrors(name, 'cannot be written', async () => {
    await makeFolders(path.dirname(file))
    return open(file, flags)
  })
  return {
    name,
    fd: handle.fd,
    write: (bytes) => withFileErrors(name, 'cannot be written', () => handle.writeFile(bytes)),
    commit: () => withFileErrors(name, 'cannot be written', () => handle.close()),
    abort: () => handle.close().catch(() => {}),
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
    const what = 'a file, or inside a file, and not a folder'
    throw new FileError({ where: folder, what, hint: 'Name a folder', cause: error })
  }
}
