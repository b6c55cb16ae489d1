// Interfaces for reading and writing bytes, independent of any file system. io/ implements them for Node and browsers.

import { FileError, FormatError, LowrankError, listed } from './errors.js'
import type { BlobLike, FileLike } from './globals.js'
import { checkArgument, OBJECT, objectOf } from './options.js'

/** Random access to immutable bytes: a file, a Blob, a range of a URL, an array. */
export interface ByteSource {
  /** A path or URL, for error messages. */
  readonly name: string
  /** The number of bytes. */
  readonly byteLength: number
  /** A path in the local file system that native code can open, if there is one (symlinks resolved). */
  readonly realPath?: string
  /** The number of the open file in this process, if there is one. Other threads may read from it too. */
  readonly fd?: number
  /** The same bytes as a Blob, if there is one. A Blob can be sent to a worker without a copy. */
  readonly blob?: BlobLike
  /**
   * Reads exactly `byteLength` bytes from `offset`. Throws FileError if the range is outside the source or unreadable.
   */
  read(offset: number, byteLength: number): Promise<Uint8Array>
  /**
   * Fills the caller's memory with bytes from `offset`. This is faster than `read`, because allocating new memory takes
   * longer than reading. Throws as `read` does.
   */
  readInto?(offset: number, memory: Uint8Array): Promise<void>
  /** Downloads the whole file. Undefined if the file is already on this machine, or if every `read` asks the server. */
  readonly fetch?: (() => Promise<void>) | undefined
  /** Closes the file. */
  close(): Promise<void>
}

/** Receives bytes in order. Nothing is visible under the final name before `commit`. */
export interface ByteSink {
  /** A path or URL, for error messages. */
  readonly name: string
  /** The number of the open file in this process, if threads may write anywhere in it. */
  readonly fd?: number
  /** Appends bytes. Throws FileError if they cannot be written. */
  write(bytes: Uint8Array): Promise<void>
  /** Flushes and gives the output its final name. */
  commit(): Promise<void>
  /** Drops everything that was written. Safe to call after a failed write, and does nothing after `commit`. */
  abort(): Promise<void>
}

/** A folder of named files, with `/` between the parts of a nested name. */
export interface Directory {
  /** A path or URL, for error messages. */
  readonly name: string
  /** The repository's id, if the folder is on the Hub. */
  readonly hubId?: string | undefined
  /** The revision that was asked for, if the folder is on the Hub and this is not the default revision. */
  readonly hubRevision?: string | undefined
  /**
   * Returns the sorted names of the files directly inside. Returns an empty list if the folder does not exist.
   *
   * @param folder a folder inside, whose files are listed instead
   */
  list(folder?: string): Promise<string[]>
  /**
   * Returns the sorted names of the folders directly inside. Without this method, a folder is found only by its name.
   */
  folders?(): Promise<string[]>
  /** Says whether there is a file of that name. */
  has(path: string): Promise<boolean>
  /**
   * Opens a file. Throws FileError if it does not exist.
   *
   * @param isInPlace true if a file on a server may stay there until the `fetch` of the source is called; false if it
   *   is downloaded whole, even by a directory that otherwise reads ranges
   */
  open(path: string, isInPlace?: boolean): Promise<ByteSource>
  /**
   * Returns a sink for a new file, or for one that replaces an old file. Makes folders as needed.
   *
   * @param isNew `commit` throws FileError if something has the name by then. Meant for folders that several programs
   *   use
   */
  create(path: string, isNew?: boolean): Promise<ByteSink>
  /** Removes a file. Does nothing if it does not exist. */
  remove(path: string): Promise<void>
  /**
   * Appends to a file, which is made if it does not exist. Unlike with `create`, the bytes are visible at once, and a
   * crash can leave only a part of them. Without this method, files always appear whole.
   */
  append?(path: string, bytes: Uint8Array): Promise<void>
  /**
   * Locks the folder, so that only one writer of a kind uses it. Without this method, folders do not know of other
   * writers.
   *
   * @param what the kind of writer, for error messages
   * @throws FileError while another writer has the lock
   */
  reserve?(what: string): Promise<Reservation>
  /**
   * Writes files that appear together or not at all, while nobody else writes here. Without this method, each file
   * appears when it is complete.
   *
   * @param write gets the folder for the files
   * @param isNew whether to fail if the folder is not empty when the files are complete. By default they are added to
   *   the files in it
   * @throws FileError if another process writes here or was faster; anything that `write` throws
   */
  together?<T>(write: (folder: Directory) => Promise<T>, isNew?: boolean): Promise<T>
  /** Returns how many bytes are free where the folder is. Without this method, nobody asks before writing. */
  freeBytes?(): number
  /** Says whether another object stands for the same folder. Implement it if the folder has no path that tells. */
  isSame?(directory: Directory): Promise<boolean>
}

/**
 * A place to read a model, an adapter or a checkpoint from: a path (not in browsers), a model on the Hub (`org/name`,
 * `hf:org/name@revision/folder`), a URL, files that a user picked, or an object that implements {@link Directory}.
 */
export type Source = string | Directory | Iterable<FileLike>

/** A place to write a result to: a path (not in browsers), or an object that implements {@link Directory}. */
export type Target = string | Directory

/** A folder, or a file in it. */
export interface Place {
  readonly directory: Directory
  /** The file's path. Undefined if the folder itself is meant. */
  readonly file?: string | undefined
}

export interface Reservation {
  /** Throws FileError if the lock was lost because somebody removed it. */
  check(): Promise<void>
  release(): Promise<void>
}

export class MemorySource implements ByteSource {
  readonly name: string
  readonly byteLength: number
  readonly #bytes: Uint8Array

  constructor(bytes: Uint8Array, name = 'memory') {
    this.name = name
    this.byteLength = bytes.byteLength
    this.#bytes = bytes
  }

  async read(offset: number, byteLength: number): Promise<Uint8Array> {
    checkRange(this, offset, byteLength)
    return this.#bytes.subarray(offset, offset + byteLength)
  }

  async close(): Promise<void> {}
}

/** A Directory in memory, for tests and for callers that already have the files in memory. */
export class MemoryDirectory implements Directory {
  readonly name: string
  /** The content of each file by path. */
  readonly files: Map<string, Uint8Array> = new Map()

  constructor(files: Record<string, Uint8Array | string> = {}, name = 'memory') {
    this.name = name
    checkArgument(files, OBJECT, 'files')
    for (const [path, content] of Object.entries(files)) {
      this.files.set(path, typeof content === 'string' ? new TextEncoder().encode(content) : content)
    }
  }

  async list(folder?: string): Promise<string[]> {
    return namesIn(this.files.keys(), folder)
  }

  async folders(): Promise<string[]> {
    return foldersIn(this.files.keys())
  }

  async has(path: string): Promise<boolean> {
    return this.files.has(path)
  }

  async open(path: string): Promise<ByteSource> {
    const bytes = this.files.get(path)
    if (bytes === undefined) throw new FileError({ where: `${this.name}/${path}`, what: 'no such file' })
    return new MemorySource(bytes, `${this.name}/${path}`)
  }

  async create(path: string): Promise<ByteSink> {
    const chunks: Uint8Array[] = []
    return {
      name: `${this.name}/${path}`,
      // Copy with a constructor: `slice` of a Node Buffer would return a view of memory that the caller may change.
      write: async (bytes) => void chunks.push(new Uint8Array(bytes)),
      commit: async () => void this.files.set(path, concatBytes(chunks)),
      abort: async () => void chunks.splice(0),
    }
  }

  async remove(path: string): Promise<void> {
    this.files.delete(path)
  }

  async append(path: string, bytes: Uint8Array): Promise<void> {
    this.files.set(path, concatBytes([this.files.get(path) ?? new Uint8Array(), bytes]))
  }
}

/** Splits a file name into its parts. Throws if the name, which may come from a download, leads out of the folder. */
export function splitName(name: string, directory: string): string[] {
  const parts = name.split('/')
  if (parts.every((part) => !['', '.', '..'].includes(part) && !/[\0\\]|^[a-z]:/i.test(part))) return parts
  throw new FileError({
    where: directory,
    what: 'a file name that leads out of the folder or nowhere',
    expected: 'name or folder/name',
    got: JSON.stringify(name),
  })
}

export function namesIn(paths: Iterable<string>, folder?: string): string[] {
  const prefix = folder === undefined ? '' : `${folder}/`
  const inside = [...paths].filter((path) => path.startsWith(prefix)).map((path) => path.slice(prefix.length))
  return inside.filter((path) => !path.includes('/')).sort()
}

/** Returns the folders at the beginnings of paths, sorted. */
export function foldersIn(paths: Iterable<string>): string[] {
  const nested = [...paths].filter((path) => path.includes('/'))
  return [...new Set(nested.map((path) => path.slice(0, path.indexOf('/'))))].sort()
}

export function concatBytes(chunks: readonly Uint8Array[]): Uint8Array {
  const result = new Uint8Array(chunks.reduce((sum, chunk) => sum + chunk.byteLength, 0))
  let offset = 0
  for (const chunk of chunks) {
    result.set(chunk, offset)
    offset += chunk.byteLength
  }
  return result
}

export function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  if (a.byteLength !== b.byteLength) return false
  const isWhole = a.byteOffset % 4 === 0 && b.byteOffset % 4 === 0
  // Compare words of 32 bits. With 64 bits, each word would be an object for the garbage collector.
  const words = isWhole ? Math.floor(a.byteLength / 4) : 0
  const [x, y] = [a, b].map(({ buffer, byteOffset }) => new Int32Array(buffer, isWhole ? byteOffset : 0, words))
  let differs = 0
  for (let i = 0; i < words; i++) differs |= x[i] ^ y[i]
  for (let i = words * 4; i < a.byteLength; i++) differs |= a[i] ^ b[i]
  return differs === 0
}

const COMPARED_BYTES = 1 << 20

/** Says whether the contents of two tensors in files are equal. */
export async function sameContents(a: Contents, b: Contents): Promise<boolean> {
  if (a.byteLength !== b.byteLength) return false
  for (let at = 0; at < a.byteLength; at += COMPARED_BYTES) {
    const length = Math.min(COMPARED_BYTES, a.byteLength - at)
    const [x, y] = await Promise.all([a, b].map(({ source, offset }) => source.read(offset + at, length)))
    if (!sameBytes(x, y)) return false
  }
  return true
}

interface Contents {
  readonly source: ByteSource
  readonly offset: number
  readonly byteLength: number
}

export function checkRange(source: ByteSource, offset: number, byteLength: number): void {
  if (offset < 0 || byteLength < 0 || offset + byteLength > source.byteLength) {
    throw new FileError({
      where: source.name,
      what: 'read past the end',
      expected: `a range inside ${source.byteLength} bytes`,
      got: `[${offset}, ${offset + byteLength})`,
      hint: 'The file may be cut short: download it again',
    })
  }
}

/** Reads a whole file. Throws FormatError with `what` if it has more than `most` bytes. */
export async function readAll(
  source: ByteSource,
  most = Number.POSITIVE_INFINITY,
  what = 'too large',
): Promise<Uint8Array> {
  const { name: where, byteLength } = source
  if (byteLength <= most) return source.read(0, byteLength)
  throw new FormatError({ where, what, expected: `at most ${most} bytes`, got: `${byteLength}` })
}

/** Returns the result of `use`, and closes what was opened. */
export async function closing<Opened extends { close(): Promise<void> }, T>(
  opened: Opened,
  use: (opened: Opened) => T | Promise<T>,
): Promise<T> {
  try {
    return await use(opened)
  } finally {
    await opened.close()
  }
}

/** Returns the result of `use`. If `use` fails, closes `opened`. */
export async function closingOnError<Opened extends { close(): Promise<void> }, T>(
  opened: Opened,
  use: (opened: Opened) => T | Promise<T>,
): Promise<T> {
  try {
    return await use(opened)
  } catch (error) {
    await opened.close()
    throw error
  }
}

export async function withSource<T>(
  directory: Pick<Directory, 'open'>,
  path: string,
  use: (source: ByteSource) => T | Promise<T>,
): Promise<T> {
  return closing(await directory.open(path), use)
}

/** The base class of folders that cannot be written to. */
export abstract class ReadOnlyDirectory {
  abstract readonly name: string
  protected abstract readonly refusal: { readonly what: string; readonly hint: string }

  create(path: string): Promise<never> {
    return this.#refuse(path)
  }

  remove(path: string): Promise<never> {
    return this.#refuse(path)
  }

  async #refuse(path: string): Promise<never> {
    throw new FileError({ where: `${this.name}/${path}`, ...this.refusal })
  }
}

export async function writeFile(
  directory: Pick<Directory, 'create'>,
  path: string,
  content: Uint8Array | string,
  isNew?: boolean,
): Promise<void> {
  const bytes = typeof content === 'string' ? new TextEncoder().encode(content) : content
  await writeThrough(directory, path, (sink) => sink.write(bytes), isNew)
}

export async function writeThrough(
  directory: Pick<Directory, 'create'>,
  path: string,
  write: (sink: ByteSink) => Promise<void>,
  isNew?: boolean,
): Promise<void> {
  const sink = await directory.create(path, isNew)
  try {
    await write(sink)
    await sink.commit()
  } catch (error) {
    await sink.abort()
    throw error
  }
}

/** Parses JSON as Python writes it, with NaN and infinite numbers. Throws SyntaxError. */
export function parsePythonJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return JSON.parse(
      text.replace(/("(?:[^"\\]|\\.)*")|-?\b(?:NaN|Infinity)\b/gs, (found, string) => {
        // 1e999 is read as infinity, which is refused by name when it is used.
        return string ?? found.replace(/NaN|Infinity/, '1e999')
      }),
    )
  }
}

/** Writes several files that belong together. If the folder can do that, they appear together or not at all. */
export async function writeTogether<T>(
  directory: Directory,
  write: (folder: Directory) => Promise<T>,
  isNew?: boolean,
): Promise<T> {
  return directory.together === undefined ? write(directory) : directory.together(write, isNew)
}

/**
 * The largest JSON file to read. The largest known tokenizer.json has 35 MB. Parsing takes ten times a file's size in
 * memory.
 */
const MAX_JSON_BYTES = 1 << 28

/** The largest text file to read. All of them are chat templates, and the largest that we know has about 20 kB. */
const MAX_TEXT_BYTES = 1_000_000

export async function readText(directory: Directory, path: string): Promise<string> {
  return withText(directory, path, (text) => text, MAX_TEXT_BYTES)
}

/** @throws FileError if something is in the folder */
export async function requireEmpty(folder: Directory): Promise<void> {
  const found = (await folder.list()).concat((await folder.folders?.()) ?? [])
  if (found.length === 0) return
  throw new FileError({
    where: folder.name,
    what: 'exists already and is not empty',
    got: listed(found),
    hint: 'Choose another folder',
  })
}

/** Reads JSON that may contain NaN and infinite numbers, as Python writes them. Throws FormatError above 256 MiB. */
export async function readJson(directory: Directory, path: string): Promise<unknown> {
  return withText(directory, path, parsePythonJson)
}

/** Does the same as {@link readJson}, but returns undefined if the file does not exist. */
export async function readJsonIfThere(directory: Directory, path: string): Promise<unknown> {
  return (await directory.has(path)) ? readJson(directory, path) : undefined
}

/** Reads a JSON object. Returns undefined if the file does not exist, and {} if it is not a JSON object. */
export async function readLeniently(directory: Directory, path: string): Promise<Record<string, unknown> | undefined> {
  try {
    const value = await readJsonIfThere(directory, path)
    return value === undefined ? undefined : objectOf(value)
  } catch (error) {
    if (error instanceof LowrankError) return {}
    throw error
  }
}

/** Returns the result of `use` for a file's text. If `use` throws SyntaxError, throws FormatError with the path. */
export async function withText<T>(
  directory: Directory,
  path: string,
  use: (text: string) => T,
  maxBytes = MAX_JSON_BYTES,
): Promise<T> {
  const source = await directory.open(path)
  try {
    return use(new TextDecoder().decode(await readAll(source, maxBytes)))
  } catch (cause) {
    if (!(cause instanceof SyntaxError)) throw cause
    const actual = await sniff(source)
    const what = actual === undefined ? `not valid JSON (${cause.message})` : `not JSON but ${actual.name}`
    throw new FormatError({ where: source.name, what, hint: actual?.hint, cause })
  } finally {
    await source.close()
  }
}

const TELLING_BYTES = 24

/** Recognizes a wrong kind of file by its first bytes, for error messages. */
export async function sniff(
  source: Pick<ByteSource, 'byteLength' | 'read'>,
): Promise<{ name: string; hint: string } | undefined> {
  const bytes = await source.read(0, Math.min(TELLING_BYTES, source.byteLength))
  const text = String.fromCharCode(...bytes)
  if (text.startsWith('version https://git-lfs')) {
    return { name: 'a pointer of Git LFS', hint: 'Fetch the file itself: git lfs pull, or download it' }
  }
  if (text.startsWith('GGUF')) {
    return {
      name: 'a GGUF file',
      hint: 'Take the safetensors checkpoint or the ONNX export that it was made from, and convert the merged model',
    }
  }
  if (text.startsWith('\x1f\x8b')) return { name: 'a file that is compressed (gzip)', hint: 'Unpack it first' }
  if (text.startsWith('PK\x03\x04') || text.startsWith('\x80\x02')) {
    return { name: 'a file by torch.save', hint: 'Take the safetensors file that is beside it, or save as one' }
  }
  if (/^\s*<(!doctype|html|\?xml)/i.test(text)) return { name: 'a page of HTML', hint: 'Download the file itself' }
  return undefined
}
