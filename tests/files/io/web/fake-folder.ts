// A stand-in in memory for a folder of the File System API, with the parts that HandleDirectory uses. Writes of more
// than `quota` bytes fail.

import { HandleDirectory } from '../../../../src/files/io/web/directories.js'

export class FakeFolder {
  readonly kind = 'directory'
  readonly name = ''
  readonly children = new Map<string, FakeFolder | FakeFile>()
  quota = Number.POSITIVE_INFINITY

  async *entries() {
    yield* this.children
  }

  async getFileHandle(name: string, { create = false } = {}): Promise<FakeFile> {
    const child = this.children.get(name) ?? (create ? new FakeFile(this) : undefined)
    if (child === undefined) throw new DOMException('no', 'NotFoundError')
    if (child.kind !== 'file') throw new DOMException('no', 'TypeMismatchError')
    this.children.set(name, child)
    return child
  }

  async getDirectoryHandle(name: string, { create = false } = {}): Promise<FakeFolder> {
    const child = this.children.get(name) ?? (create ? new FakeFolder() : undefined)
    if (child === undefined) throw new DOMException('no', 'NotFoundError')
    if (child.kind !== 'directory') throw new DOMException('no', 'TypeMismatchError')
    this.children.set(name, child)
    return child
  }

  async removeEntry(name: string): Promise<void> {
    const child = this.children.get(name)
    if (child?.kind === 'file' && child.writers > 0) throw new DOMException('locked', 'NoModificationAllowedError')
    if (!this.children.delete(name)) throw new DOMException('no', 'NotFoundError')
  }
}

class FakeFile {
  readonly kind = 'file'
  content: Blob = new Blob([])
  /** Open writers, which lock the file. */
  writers = 0
  readonly #folder: FakeFolder

  constructor(folder: FakeFolder) {
    this.#folder = folder
  }

  async getFile(): Promise<Blob> {
    return this.content
  }

  async createWritable() {
    const parts: Uint8Array<ArrayBuffer>[] = []
    this.writers++
    return {
      write: async (bytes: Uint8Array<ArrayBuffer>) => {
        if (bytes.byteLength > this.#folder.quota) throw new DOMException('full', 'QuotaExceededError')
        parts.push(bytes.slice())
      },
      close: async () => {
        this.writers--
        this.content = new Blob(parts)
      },
      abort: async () => {
        this.writers--
      },
    }
  }
}

export function handles() {
  const folder = new FakeFolder()
  return { folder, directory: new HandleDirectory(folder as unknown as FileSystemDirectoryHandle) }
}
