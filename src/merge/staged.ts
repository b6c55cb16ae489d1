// Several files that get their names together or not at all, in any folder.

import type { ByteSink, ByteSource, Directory } from '../base/bytes.js'
import { FileError } from '../base/errors.js'
import type { RunSettings } from './settings.js'

/** A folder whose new files appear when `commit` is called, in the order in which they were made. */
export class StagedDirectory implements Directory {
  readonly name: string
  readonly #target: Directory
  readonly #options: RunSettings
  readonly #totalBytes: number
  #staged: { path: string; sink: ByteSink }[] = []
  readonly #linked: string[] = []
  #writtenBytes = 0

  constructor(target: Directory, totalBytes: number, options: RunSettings) {
    this.name = target.name
    this.#target = target
    this.#totalBytes = totalBytes
    this.#options = options
  }

  get writtenBytes(): number {
    return this.#writtenBytes
  }

  list(folder?: string): Promise<string[]> {
    return this.#target.list(folder)
  }

  has(path: string): Promise<boolean> {
    return this.#target.has(path)
  }

  open(path: string): Promise<ByteSource> {
    return this.#target.open(path)
  }

  async create(path: string): Promise<ByteSink> {
    const sink = await this.#target.create(path)
    this.#staged.push({ path, sink })
    return {
      name: sink.name,
      write: async (bytes) => {
        this.#options.signal?.throwIfAborted()
        await sink.write(bytes)
        this.#writtenBytes += bytes.byteLength
        this.#options.onProgress?.({ writtenBytes: this.#writtenBytes, totalBytes: this.#totalBytes })
      },
      commit: async () => {},
      abort: () => sink.abort(),
    }
  }

  /** The link has its name at once; `abort` takes it away. */
  async link(path: string, realPath: string): Promise<void> {
    if (this.#target.link === undefined) throw new FileError({ where: path, what: 'no hard links can be made here' })
    await this.#target.link(path, realPath)
    this.#linked.push(path)
  }

  async isSame(other: Directory): Promise<boolean> {
    return other === this.#target || ((await this.#target.isSame?.(other)) ?? false)
  }

  /** Takes back a file that was not committed yet, or removes one that was there before. */
  async remove(path: string): Promise<void> {
    const staged = this.#staged.filter((entry) => entry.path === path)
    this.#staged = this.#staged.filter((entry) => entry.path !== path)
    for (const { sink } of staged) await sink.abort()
    if (staged.length === 0) await this.#target.remove(path)
  }

  async commit(): Promise<void> {
    this.#options.signal?.throwIfAborted()
    const named: string[] = []
    try {
      for (const { path, sink } of this.#staged) {
        await sink.commit()
        named.push(path)
      }
    } catch (error) {
      for (const path of named) await this.#target.remove(path)
      throw error
    }
  }

  /** Drops what has not got its name yet. */
  async abort(): Promise<void> {
    // The first file may have made the folder, which goes only when it is empty.
    for (const { sink } of this.#staged.toReversed()) await sink.abort()
    for (const path of this.#linked) await this.#target.remove(path)
  }
}
