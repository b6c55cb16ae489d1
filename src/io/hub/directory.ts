// A repository of the Hub at one commit, as a folder that can be read: what it holds is known, and a file comes when it is opened.

import { type ByteSink, type ByteSource, type Directory, namesIn, splitName } from '../../base/bytes.js'
import { FileError, nearMisses } from '../../base/errors.js'
import { DEFAULT_REVISION, type HubSource } from '../source.js'

/** What is told while a file comes: first before its first byte, last when it is complete. */
export interface DownloadProgress {
  /** The repository and the path in it, or a URL. */
  readonly name: string
  readonly byteLength: number
  /** Of these bytes; more than 0 at the start where an earlier download is taken up again. */
  readonly receivedBytes: number
}

/** Hears of downloads. */
export type OnDownload = (progress: DownloadProgress) => void

/** `org/name`, with a revision that is not the default, and the path. */
export function hubName({ id, revision, path }: HubSource): string {
  return `${id}${revision === DEFAULT_REVISION ? '' : `@${revision}`}${path === '' ? '' : `/${path}`}`
}

/** A folder of a repository. Files that nobody opens are not loaded. */
export class HubDirectory implements Directory {
  readonly name: string
  /** Where it lies: the id, the revision that was asked for, and the folder in the repository. */
  readonly source: HubSource
  /** The commit that the files are of. */
  readonly commit: string
  readonly #paths: ReadonlySet<string>
  readonly #open: (path: string) => Promise<ByteSource>

  /**
   * @param paths of all files of the repository
   * @param open opens one of them
   */
  constructor(
    source: HubSource,
    commit: string,
    paths: ReadonlySet<string>,
    open: (path: string) => Promise<ByteSource>,
  ) {
    this.name = hubName(source)
    this.source = source
    this.commit = commit
    this.#paths = paths
    this.#open = open
  }

  /** The same repository, seen from another folder. */
  at(path: string): HubDirectory {
    return new HubDirectory({ ...this.source, path }, this.commit, this.#paths, this.#open)
  }

  async list(folder?: string): Promise<string[]> {
    return namesIn(this.#inside(), folder)
  }

  async folders(): Promise<string[]> {
    const nested = this.#inside().filter((path) => path.includes('/'))
    return [...new Set(nested.map((path) => path.slice(0, path.indexOf('/'))))]
  }

  async has(path: string): Promise<boolean> {
    return this.#paths.has(this.#full(path))
  }

  async open(path: string): Promise<ByteSource> {
    const full = this.#full(path)
    if (this.#paths.has(full)) return this.#open(full)
    const near = nearMisses(path, this.#inside())
    throw new FileError({
      where: `${this.name}/${path}`,
      what: 'no such file in the repository',
      ...(near.length > 0 && { hint: `Did you mean ${near.join(' or ')}?` }),
    })
  }

  create(path: string): Promise<ByteSink> {
    return Promise.reject(this.#readOnly(path))
  }

  remove(path: string): Promise<void> {
    return Promise.reject(this.#readOnly(path))
  }

  /** Paths below this folder, relative to it, sorted. */
  #inside(): string[] {
    const prefix = this.source.path === '' ? '' : `${this.source.path}/`
    return [...this.#paths]
      .filter((path) => path.startsWith(prefix))
      .map((path) => path.slice(prefix.length))
      .sort()
  }

  #full(path: string): string {
    return [...(this.source.path === '' ? [] : [this.source.path]), ...splitName(path, this.name)].join('/')
  }

  #readOnly(path: string): FileError {
    return new FileError({
      where: `${this.name}/${path}`,
      what: 'nothing is written to the Hub',
      hint: 'Write to a local folder, and upload that',
    })
  }
}
