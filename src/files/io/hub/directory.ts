// A repository of the Hub at one commit. Its list of files is known, and a file is downloaded when it is opened.

import {
  type ByteSource,
  type Directory,
  foldersIn,
  namesIn,
  ReadOnlyDirectory,
  splitName,
} from '../../../core/base/bytes.js'
import { didYouMean, FileError } from '../../../core/base/errors.js'
import type { SignalLike } from '../../../core/base/globals.js'
import { DEFAULT_REVISION, type HubSource } from '../source.js'
import type { HubConnection } from './request.js'

/** Progress of a download. The first call comes before the first byte, the last call when the file is complete. */
export interface DownloadProgress {
  /** The repository and the path in it, or a URL. */
  readonly name: string
  readonly byteLength: number
  /** Bytes received so far. Not 0 at the start if an earlier download is continued. */
  readonly receivedBytes: number
}

/** Function that is called during downloads. */
export type OnDownload = (progress: DownloadProgress) => void

export interface RemoteOptions {
  /** The Hub's address. Default: HF_ENDPOINT in Node, else the public Hub's. */
  readonly endpoint?: string | undefined
  /**
   * An access token for private and gated repositories. It is sent to the Hub only. Default in Node: HF_TOKEN, else the
   * file that `hf auth login` writes; an empty text sends none. In a page, everyone who sees the page can read it.
   */
  readonly token?: string | undefined
  /** Reads large files in ranges, and keeps nothing of them. Default: each file is downloaded whole. */
  readonly readsRanges?: boolean | undefined
  /** Called before each download and while it runs. */
  readonly onDownload?: OnDownload | undefined
  /** Called when the Hub cannot be reached and the cache is used, and when a file cannot be stored. */
  readonly onWarning?: ((message: string) => void) | undefined
  /** Stops downloads. Finished parts stay in the cache. */
  readonly signal?: SignalLike | undefined
  /** Replaces the times of {@link HubConnection}. */
  readonly times?: Pick<HubConnection, 'stallMs' | 'retryMs' | 'slowMs'> | undefined
}

export function hubName({ id, revision, path }: HubSource): string {
  return `${id}${revision === DEFAULT_REVISION ? '' : `@${revision}`}${path === '' ? '' : `/${path}`}`
}

export class HubDirectory extends ReadOnlyDirectory implements Directory {
  readonly name: string
  protected override readonly refusal = {
    what: 'nothing is written to the Hub',
    hint: 'Write to a local folder, and upload that',
  }
  readonly hubId: string
  readonly hubRevision: string | undefined

  constructor(
    readonly source: HubSource,
    readonly commit: string,
    private readonly files: {
      readonly paths: ReadonlySet<string>
      open(path: string, isInPlace?: boolean): Promise<ByteSource>
    },
  ) {
    super()
    this.name = hubName(source)
    this.hubId = source.id
    this.hubRevision = source.revision === DEFAULT_REVISION ? undefined : source.revision
  }

  at(path: string): HubDirectory {
    return new HubDirectory({ ...this.source, path }, this.commit, this.files)
  }

  async list(folder?: string): Promise<string[]> {
    return namesIn(this.#inside(), folder)
  }

  async folders(): Promise<string[]> {
    return foldersIn(this.#inside())
  }

  async has(path: string): Promise<boolean> {
    return this.files.paths.has(this.#full(path))
  }

  async open(path: string, isInPlace?: boolean): Promise<ByteSource> {
    const full = this.#full(path)
    if (this.files.paths.has(full)) return this.files.open(full, isInPlace)
    throw new FileError({
      where: `${this.name}/${path}`,
      what: 'no such file in the repository',
      hint: didYouMean(path, this.#inside(), 3),
    })
  }

  #inside(): string[] {
    const prefix = this.source.path === '' ? '' : `${this.source.path}/`
    return [...this.files.paths]
      .filter((path) => path.startsWith(prefix))
      .map((path) => path.slice(prefix.length))
      .sort()
  }

  #full(path: string): string {
    return [...(this.source.path === '' ? [] : [this.source.path]), ...splitName(path, this.name)].join('/')
  }
}
